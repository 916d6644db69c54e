"""Check neighbours, positions and coverage of prototypes on cases small enough to count."""

import numpy as np
import pytest
import tiny
import torch

from rcblib.codebook.codebook import Codebook
from rcblib.mllm import adapter_for
from rcblib.reading.prototypes import (
    codebook_agreement,
    coverage_of_kept,
    first_token_agreement,
    nearest_tokens,
    prototypes_by_position,
)
from rcblib.records import CodebookError, ParameterError, Question
from rcblib.tensors.scoring import redundancy_scores


def codebook(rows, **changes):
    return Codebook(torch.tensor(rows), **changes)


def test_nearest_tokens_of_each_cluster_come_from_distinct_images():
    book = codebook([[1.0, 0.0], [2.0, 0.2], [0.0, 3.0]], metadata={"clusters": [0, 0, 1]})
    tokens = torch.tensor([[5.0, 0.0], [4.0, 0.4], [0.0, 1.0], [1.0, 1.0], [3.0, 3.1]])
    found = nearest_tokens(book, tokens, [7, 7, 8, 9, 9], n_nearest=2)
    assert found["cluster"].tolist() == [0, 0, 1, 1]
    assert found["row"].tolist() == [0, 3, 2, 4]
    assert found["image_id"].tolist() == [7, 9, 8, 9]
    expected = [1.0, (2 + 0.2) / (np.hypot(2, 0.2) * np.sqrt(2)), 1.0, 3.1 / np.hypot(3, 3.1)]
    np.testing.assert_allclose(found["similarity"], expected, rtol=1e-6)


def test_without_clusters_all_prototypes_are_one():
    found = nearest_tokens(codebook([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2), ["a", "b"], n_nearest=5)
    assert found["cluster"].tolist() == [0, 0]
    assert found["similarity"].tolist() == [1.0, 1.0]


def test_wrong_inputs_of_nearest_tokens_end_in_one_line():
    book = codebook([[1.0, 0.0]])
    with pytest.raises(CodebookError, match="width 2"):
        nearest_tokens(book, torch.ones(3, 4), [1, 2, 3])
    with pytest.raises(ParameterError, match="image_ids"):
        nearest_tokens(book, torch.ones(3, 2), [1, 2])
    with pytest.raises(ParameterError, match="n_nearest"):
        nearest_tokens(book, torch.ones(3, 2), [1, 2, 3], n_nearest=0)
    with pytest.raises(ParameterError, match="tokens"):
        nearest_tokens(book, torch.full((3, 2), torch.nan), [1, 2, 3])


def test_prototypes_are_counted_by_position():
    book = codebook([[1.0], [2.0], [3.0]], positions=(4, 0, 4))
    assert prototypes_by_position(book, 6).tolist() == [1, 0, 0, 0, 2, 0]
    with pytest.raises(CodebookError, match="up to 4"):
        prototypes_by_position(book, 4)
    with pytest.raises(CodebookError, match="none"):
        prototypes_by_position(codebook([[1.0]]), 4)


def test_coverage_of_kept_and_dropped_patches():
    table = coverage_of_kept(
        [np.array([1.0, 0.5, 0.25, 0.0]), np.zeros(4)], [[0, 2], [0, 1, 2, 3]], [11, 12]
    ).set_index("image_id")
    assert table.loc[11].to_dict() == {
        "kept": 0.625,
        "dropped": 0.25,
        "object_patches_kept": 0.5,
        "n_kept": 2,
        "n_object_patches": 2,
    }
    assert table.loc[12, "kept"] == 0.0
    assert np.isnan(table.loc[12, ["dropped", "object_patches_kept"]].astype(float)).all()
    with pytest.raises(ParameterError, match="one entry an image"):
        coverage_of_kept([np.zeros(4)], [[0], [1]], [11, 12])


def test_a_codebook_agrees_with_itself_and_not_with_its_opposite():
    angles = torch.linspace(0.1, 1.4, 20)
    images = [torch.stack([(angles + shift).cos(), (angles + shift).sin()], 1) for shift in (0.0, 0.05)]
    right, up = (
        [redundancy_scores(own, torch.tensor([to])) for own in images] for to in ([1.0, 0.0], [0.0, 1.0])
    )
    generator = np.random.default_rng(0)
    same = codebook_agreement(right, right, 0.25, generator=generator)
    assert (same["rank_correlation"].value, same["kept_overlap"].value) == (1.0, 1.0)
    other = codebook_agreement(right, up, 0.25, generator=generator)
    assert (other["rank_correlation"].value, other["kept_overlap"].value) == (-1.0, 0.0)
    assert other["kept_overlap"].n == 2
    with pytest.raises(ParameterError, match="retain_ratio"):
        codebook_agreement(right, right, 0.01, generator=generator)
    with pytest.raises(
        ParameterError, match="scores: got '40 of 2 images and 20 of 1 images'; accepted: of the same"
    ):
        codebook_agreement(right, right[:1], 0.25, generator=generator)


def test_first_tokens_agree_with_those_of_the_reference():
    adapter = adapter_for(*tiny.tiny_llava())
    tokens = {number: image.tokens for number, image in enumerate(adapter.encode(tiny.random_images(3)))}
    half = {number: rows[::2] for number, rows in tokens.items()}
    questions = [
        Question(number, task, text, "")
        for number in (2, 0, 1)
        for task, text in (("a", "What does this image show ?"), ("b", "Is there a cat in the image ?"))
    ]
    table = first_token_agreement(
        adapter, questions, {"whole": tokens, "again": dict(tokens), "half": half}, "whole", batch_size=2
    )
    assert table["variant"].value_counts().to_dict() == {"whole": 6, "again": 6, "half": 6}
    assert table["image_id"][:6].tolist() == [2, 2, 0, 0, 1, 1]
    assert (table[table["variant"] != "half"]["agrees"] == 1).all()
    for row in table.to_dict("records"):
        prompt = adapter.prompt(row["question"])
        intact, given = (
            adapter.first_token_logits(prompt, [images[row["image_id"]]])[0]
            for images in (tokens, half if row["variant"] == "half" else tokens)
        )
        assert row["probability"] == pytest.approx(given.softmax(-1)[intact.argmax()].item(), abs=1e-5)
        assert row["agrees"] == (given.argmax() == intact.argmax())
    assert table[table["variant"] == "half"]["probability"].lt(0.999).any()


def test_wrong_variants_end_in_one_line():
    adapter = adapter_for(*tiny.tiny_llava())
    rows = {0: torch.zeros(3, adapter.d_model)}
    asked = [Question(0, "a", "What is it ?", ""), Question(5, "a", "What is it ?", "")]
    with pytest.raises(ParameterError, match="at least one"):
        first_token_agreement(adapter, [], {"whole": rows}, "whole")
    with pytest.raises(ParameterError, match="reference: got 'all'"):
        first_token_agreement(adapter, asked, {"whole": rows}, "all")
    with pytest.raises(ParameterError, match=r"no tokens of images \[5\]"):
        first_token_agreement(adapter, asked, {"whole": rows}, "whole")
