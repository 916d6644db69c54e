"""Check probing against one plain forward pass a run, its independence of batches, and runs that are killed."""

import copy
import dataclasses
import json
import os
import signal

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import tiny
import torch
from families import FAMILIES
from forked import forked
from pycocotools.mask import encode
from transformers import LlavaForConditionalGeneration

from benchmarks.footprint import measured_peak
from rcblib.data.opening import world_note
from rcblib.mllm import ADAPTERS, adapter_for
from rcblib.mllm.fingerprint import model_fingerprint
from rcblib.probe import context
from rcblib.probe.config import ProbeConfig
from rcblib.probe.pictures import view_coverage, view_pictures
from rcblib.probe.run import probe
from rcblib.probe.store import probe_dataset, read_probe, shared_probe
from rcblib.records import ONE_WORD_QUESTION, ImageError, ParameterError, Sample, SceneObject
from rcblib.runs.files import read_table
from rcblib.tensors.divergence import divergence, entropy, top1_probability
from rcblib.tensors.geometry import paper_ranks, window

QUESTION = ONE_WORD_QUESTION
ARTICLE_SEED = 7
"""Of a tiny model that answers with an article to some inputs of every kind."""


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava(ARTICLE_SEED)


@pytest.fixture(scope="module")
def image():
    return tiny.random_images(2)[1]


@pytest.fixture(scope="module")
def table(pair, image):
    return probe(*pair, image, QUESTION)


def samples_of(n, seed=0, **changes):
    """Return samples with images of noise; `changes` go to every one."""
    return [
        dataclasses.replace(Sample(10 + i, lambda p=p: p, *p.size, file_name=f"{i}.png"), **changes)
        for i, p in enumerate(tiny.random_images(n, seed=seed))
    ]


def plain_logits(pair, rows):
    """Feed visual rows with one unpadded forward pass; after an article, feed again with the article appended."""
    model, processor = pair
    adapter = adapter_for(*pair)
    prompt = adapter.prompt(QUESTION).replace("<image>", "<image>" * len(rows))
    ids = processor.tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert (ids == adapter.image_token_id).sum() == len(rows)
    for n_articles in range(2):
        with torch.no_grad():
            logits = model(input_ids=ids, **adapter.generation_inputs([rows])).logits[0, -1]
        top = logits.argmax().reshape(1, 1)
        if n_articles == 1 or processor.tokenizer.decode(top[0]).strip().lower() not in ("a", "an", "the"):
            return logits, bool(n_articles)
        ids = torch.cat([ids, top], dim=1)


# Signals


@pytest.mark.parametrize("family", ["llava", "llava with DINOv2"])
def test_every_output_signal_equals_one_plain_run_for_each_input(family, image):
    pair = tiny.tiny_llava(ARTICLE_SEED) if family == "llava" else FAMILIES[family].build()
    table = probe(*pair, image, QUESTION)
    tokens = adapter_for(*pair).encode([image])[0].tokens
    replacement = pair[0].get_input_embeddings().weight[0].detach()
    whole, whole_article = plain_logits(pair, tokens)
    assert (table["global_article"] == whole_article).all()
    for position in (0, 5, 8, 14, 21, 35):
        row = table.iloc[position]
        cells = window(position, 6, 6)
        target_out, window_out = tokens.clone(), tokens.clone()
        target_out[position] = replacement
        window_out[cells] = replacement
        single, single_article = plain_logits(pair, tokens[position : position + 1])
        region, region_article = plain_logits(pair, tokens[cells])
        region_out, region_out_article = plain_logits(pair, target_out[cells])
        global_out, global_out_article = plain_logits(pair, window_out)
        flags = [single_article, region_article, region_out_article, global_out_article]
        columns = ["single_article", "region_article", "region_ablated_article", "global_ablated_article"]
        assert row[columns].tolist() == flags

        levels = {"": single, "region_": region, "global_": whole}
        for prefix, logits in levels.items():
            probability, token_id = top1_probability(logits)
            assert row[f"{prefix}top1_id"] == int(token_id)
            assert row[f"{prefix}top1_word"] == pair[1].tokenizer.decode([int(token_id)])
            assert row[f"{prefix}top1_probability"] == pytest.approx(float(probability), abs=1e-5)
            assert row[f"{prefix}entropy"] == pytest.approx(float(entropy(logits)), abs=1e-5)
        for level, intact, ablated in (("region", region, region_out), ("global", whole, global_out)):
            released = float(divergence(intact, ablated))
            textbook = float(divergence(intact, ablated, form="textbook"))
            assert row[f"{level}_divergence"] == pytest.approx(released, abs=1e-5)
            assert row[f"{level}_divergence_textbook"] == pytest.approx(textbook, abs=1e-5)
        influence = row["region_divergence"] + 16 * row["global_divergence"]
        assert row["influence"] == pytest.approx(influence, abs=1e-12)


@pytest.mark.parametrize("piece", ["A", " A", "cat", " cat"])
def test_first_pieces_are_words_with_and_without_a_blank_before_them(piece, image):
    """Behind ChatML's line break an answer begins without a blank, unless the LLM writes one."""
    model, processor = FAMILIES["llava with DINOv2"].build()
    said = probe(model, processor, image, QUESTION, positions=[14])["top1_id"][0]
    (wanted,) = processor.tokenizer(piece)["input_ids"]
    head = model.lm_head.weight.data
    head[[said, wanted]] = head[[wanted, said]]
    row = probe(model, processor, image, QUESTION, positions=[14]).iloc[0]
    tokens = adapter_for(model, processor).encode([image])[0].tokens
    logits, article = plain_logits((model, processor), tokens[14:15])
    assert row["single_article"] == article == (piece.strip() == "A")
    assert row["top1_id"] == int(logits.argmax())
    assert article or row["top1_word"] == "cat"


KNOWN_MEANS = {
    "image_id": 0, "view": 0, "token": 17.5, "position": 17.5, "row": 2.5, "column": 2.5, "top1_id": 8.361111,
    "top1_probability": 0.232203, "entropy": 3.125577, "single_article": 0.222222, "region_top1_id": 32.5,
    "region_top1_probability": 0.224936, "region_entropy": 3.108735, "region_article": 0.555556,
    "global_top1_id": 35, "global_top1_probability": 0.385561, "global_entropy": 2.634154, "global_article": 1,
    "region_ablated_article": 0.527778, "global_ablated_article": 0.666667, "region_divergence": 0.006338,
    "global_divergence": 0.024318, "region_divergence_textbook": 0.041584, "global_divergence_textbook": 0.135685,
    "influence": 0.395421, "cls_similarity": 0.699903, "cls_rank": 18.5, "cls_attention": 0.027444,
    "attention_last_layer_0": 0.011955, "attention_last_layer_1": 0.023087,
    "attention_question_layer_0": 0.017689, "attention_question_layer_1": 0.020769,
}  # fmt: skip
"""Means of all columns with numbers, recorded when probing knew photos of one grid only."""


def test_tables_of_single_grids_stay_as_they_were(table):
    """Files of earlier runs are read along with new ones: the same columns in the same order, the same numbers."""
    others = ["top1_word", "region_top1_word", "global_top1_word", "object_category", "object_coverage"]
    assert set(table) == {*KNOWN_MEANS, *others}
    assert list(table)[:8] == [
        "image_id", "view", "token", "position", "row", "column", "top1_word", "top1_id"
    ]  # fmt: skip
    for name, mean in KNOWN_MEANS.items():
        assert table[name].mean() == pytest.approx(mean, rel=1e-3, abs=1e-5), name
    assert table["top1_word"].value_counts().to_dict() == {"<s>": 21, "blue": 8, "<pad>": 7}


def test_articles_occur_in_this_model_and_not_everywhere(table):
    for column in ("single_article", "region_article", "region_ablated_article", "global_ablated_article"):
        assert 0 < table[column].sum() < len(table), column
    assert table["global_article"].all()
    assert not table["global_top1_word"].str.lower().isin(["a", "an", "the"]).any()


def test_the_table_is_tidy(table):
    assert table["position"].tolist() == table["token"].tolist() == list(range(36))
    assert (table["row"] * 6 + table["column"]).tolist() == list(range(36))
    assert (table["view"] == 0).all()
    assert table["global_top1_probability"].nunique() == 1
    numbers = table.drop(columns=["object_coverage"]).select_dtypes("number")
    assert np.isfinite(numbers.to_numpy()).all()
    assert table["object_coverage"].isna().all()
    assert table["object_category"].isna().all()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_results_do_not_depend_on_the_batch_size(pair, image, table, batch_size):
    """Articles make lengths unequal, so that batches are padded; 1e-5 is float32 rounding over two layers."""
    again = probe(*pair, image, QUESTION, batch_size=batch_size)
    pd.testing.assert_frame_equal(again, table, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_windows", [1, 3])
def test_results_do_not_depend_on_how_many_windows_are_held(pair, image, table, n_windows, monkeypatch):
    monkeypatch.setattr(context, "N_WINDOWS", n_windows)
    parts = context.parts_of(range(36), (6, 6))
    assert sorted(sum(parts, [])) == list(range(36)) and len(parts) == -(-16 // n_windows)
    again = probe(*pair, image, QUESTION)
    pd.testing.assert_frame_equal(again, table, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_positions_or_images(pair, tmp_path, monkeypatch):
    """Answers are as wide as the vocabulary: those of all positions at once would be most of what is held."""
    monkeypatch.setattr(context, "N_WINDOWS", 2)
    monkeypatch.setattr(adapter_for(*pair).model.config.text_config, "vocab_size", 50_000)
    wide = torch.nn.Linear(pair[0].lm_head.in_features, 50_000, bias=False)
    monkeypatch.setitem(pair[0]._modules, "lm_head", wide)
    inner = [7, 8, 13, 14, 19, 20, 25, 26]  # a window each
    peaks = {}
    for n_images, positions in ((1, inner[:4]), (1, inner), (3, inner)):
        config = ProbeConfig(question=QUESTION, positions=positions, attention=False, batch_size=2)
        folder = tmp_path / f"{n_images} {len(positions)}"
        samples = samples_of(n_images)
        peaks[n_images, len(positions)] = measured_peak(
            lambda samples=samples, config=config, folder=folder: probe_dataset(
                *pair, samples, config, folder, progress=False
            )
        )
    answers = 4 * 50_000 * 4  # of four more positions at one level, in bytes
    least = min(peaks.values())
    assert max(peaks.values()) - least < answers / 2 < least


def test_the_image_is_encoded_once_and_windows_are_read_once(pair, image, monkeypatch):
    adapter = ADAPTERS["llava"]
    encoded, inputs = [], []
    original_encode, original_logits = adapter.encode_pixels, adapter.first_token_logits

    def encode_pixels(self, *args, **kwargs):
        encoded.append(1)
        return original_encode(self, *args, **kwargs)

    def first_token_logits(self, prompt, visual, **kwargs):
        if kwargs.get("answer_prefix") is None:
            inputs.extend(sum(map(len, rows)) if isinstance(rows, list) else len(rows) for rows in visual)
        return original_logits(self, prompt, visual, **kwargs)

    monkeypatch.setattr(adapter, "encode_pixels", encode_pixels)
    monkeypatch.setattr(adapter, "first_token_logits", first_token_logits)
    probe(*pair, image, QUESTION, attention=False)
    assert len(encoded) == 1
    # 36 targets in 6 x 6 cells have 4 x 4 different windows.
    assert inputs.count(1) == 36
    assert inputs.count(9) == 16 + 36
    assert inputs.count(36) == 1 + 16


def test_a_choice_of_positions_gives_the_rows_of_all(pair, image, table):
    few = probe(*pair, image, QUESTION, positions=[35, 0, 20])
    expected = table.iloc[[0, 20, 35]].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, expected, rtol=1e-4, atol=1e-5)
    as_array = probe(*pair, image, QUESTION, positions=np.array([0, 20, 35]), attention=False)
    assert as_array["position"].tolist() == [0, 20, 35]


def test_the_paper_s_ranks_are_those_of_similarity_to_cls(pair, image, table):
    ranked = probe(*pair, image, QUESTION, positions="paper_ranks")
    assert sorted(ranked["cls_rank"]) == [rank + 1 for rank in paper_ranks(36)]
    assert ranked["position"].is_monotonic_increasing
    by_rank = table.sort_values("cls_rank")
    assert by_rank["cls_similarity"].is_monotonic_decreasing
    assert by_rank["cls_rank"].tolist() == list(range(1, 37))


def test_the_grid_is_evenly_spaced(pair, image):
    assert probe(*pair, image, positions="grid", n_side=2, attention=False)["position"].tolist() == [
        7,
        10,
        25,
        28,
    ]


def test_attention_columns_are_those_of_the_adapter(pair, image, table):
    adapter = adapter_for(*pair)
    (encoded,) = adapter.encode([image], ["cls_attention"])
    attention = adapter.text_to_image_attention(adapter.prompt(QUESTION), encoded.tokens)
    for name in ("last", "question"):
        for layer in range(2):
            column = table[f"attention_{name}_layer_{layer}"].to_numpy()
            np.testing.assert_array_equal(column, attention[name][layer].numpy())
    np.testing.assert_array_equal(
        table["cls_attention"].to_numpy(), encoded.views[0].signals["cls_attention"].numpy()
    )
    without = probe(*pair, image, QUESTION, attention=False)
    assert without["cls_attention"].isna().all()
    assert not [name for name in without if name.startswith("attention_")]


def test_weights_and_candidates_are_settings(pair, image, table):
    other = probe(*pair, image, QUESTION, k_region=2.0, k_global=0.5, n_candidates=3, n_head_candidates=2)
    expected = 2 * other["region_divergence"] + 0.5 * other["global_divergence"]
    np.testing.assert_allclose(other["influence"], expected)
    assert (other["top1_probability"] >= 0.5).all()
    assert (other["region_divergence"] - table["region_divergence"]).abs().max() > 1e-4


def test_encoders_without_cls_have_no_ranks(image):
    pair = FAMILIES["llava with SigLIP"].build()
    table = probe(*pair, image, QUESTION, positions="paper_positions")
    assert table["position"].tolist() == paper_ranks(36)
    assert not [name for name in table if name.startswith("cls_")]
    with pytest.raises(
        ParameterError, match="positions: got 'paper_ranks'; accepted: all, grid or paper_pos"
    ):
        probe(*pair, image, QUESTION, positions="paper_ranks")


def test_ranks_as_positions_need_no_cls(pair, image):
    table = probe(*pair, image, QUESTION, positions="paper_positions", attention=False)
    assert table["position"].tolist() == paper_ranks(36)
    assert table["cls_rank"].tolist() != [rank + 1 for rank in paper_ranks(36)]


class TwoViews(ADAPTERS["llava"]):
    """See every image twice, the second time upside down."""

    def encode_pixels(self, model_inputs, needs=()):
        return [
            dataclasses.replace(image, views=(image.views[0], self.turned(image.views[0])))
            for image in super().encode_pixels(model_inputs, needs)
        ]

    @staticmethod
    def turned(view):
        return dataclasses.replace(
            view,
            tokens=view.tokens.flip(0),
            signals={name: signal.flip(0) for name, signal in view.signals.items()},
            kind="tile",
        )


def test_views_are_probed_one_by_one_with_the_others_intact(pair, image, table, monkeypatch):
    monkeypatch.setitem(ADAPTERS, "llava", TwoViews)
    both = probe(*pair, image, QUESTION)
    assert both["view"].tolist() == [0] * 36 + [1] * 36
    assert both["token"].tolist() == list(range(72))
    assert both["position"].tolist() == list(range(36)) * 2
    alone = ["top1_probability", "entropy", "single_article"]
    np.testing.assert_allclose(both.loc[:35, alone].astype(float), table[alone].astype(float), atol=1e-5)
    np.testing.assert_allclose(
        both.loc[36:, alone].astype(float), table[alone][::-1].astype(float), atol=1e-5
    )
    tokens = adapter_for(*pair).encode([image])[0].views
    rows = torch.cat([tokens[0].tokens, tokens[1].tokens])
    replaced = rows.clone()
    replaced[[36 + cell for cell in window(0, 6, 6)]] = pair[0].get_input_embeddings().weight[0].detach()
    expected = divergence(plain_logits(pair, rows)[0], plain_logits(pair, replaced)[0])
    assert both.loc[36, "global_divergence"] == pytest.approx(float(expected), abs=1e-5)


# Objects


def objects_sample(size, boxes):
    """Return a sample of a noise image ``(width, height)`` with a rectangle a category: ``(x, y, width, height)``."""
    objects = []
    for category, (x, y, width, height) in boxes:
        mask = np.zeros((size[1], size[0]), np.uint8, order="F")
        mask[y : y + height, x : x + width] = 1
        objects.append(SceneObject(category, (x, y, width, height), encode(mask), float(mask.sum())))
    (picture,) = tiny.random_images(1, size)
    return picture, Sample(3, lambda: picture, *size, objects=tuple(objects))


def test_coverage_follows_the_crop_of_the_image_processor(pair):
    """The processor keeps the middle 24 columns of 48: the grid's first cell starts at column 12."""
    boxes = [("cat", (12, 0, 4, 4)), ("dog", (20, 4, 2, 4)), ("cat", (22, 4, 1, 4)), ("bird", (0, 0, 12, 24))]
    picture, sample = objects_sample((48, 24), boxes)
    table = probe(*pair, picture, sample=sample, attention=False, positions=[0, 1, 6, 8, 35])
    assert table["object_coverage"].tolist() == [1.0, 0.0, 0.0, 0.75, 0.0]
    assert table["object_category"].where(table["object_category"].notna(), "").tolist() == [
        "cat",
        "",
        "",
        "dog",
        "",
    ]
    assert (table["image_id"] == 3).all()


def test_without_a_crop_the_grid_covers_the_whole_image(pair):
    boxes = [("cat", (0, 0, 8, 4))]
    picture, sample = objects_sample((48, 24), boxes)
    processor = copy.deepcopy(pair[1])
    processor.image_processor.do_center_crop = False
    processor.image_processor.size = {"height": 24, "width": 24}
    table = probe(pair[0], processor, picture, sample=sample, attention=False, positions=[0, 1])
    assert table["object_coverage"].tolist() == [1.0, 0.0]


def test_overlapping_masks_count_once_and_the_larger_share_names_the_patch(pair):
    boxes = [("cat", (0, 0, 8, 4)), ("dog", (0, 0, 8, 8))]
    picture, sample = objects_sample((48, 48), boxes)
    table = probe(*pair, picture, sample=sample, attention=False, positions=[0, 1, 2])
    assert table["object_coverage"].tolist() == [1.0, 0.0, 0.0]
    assert table["object_category"][0] == "dog"


def test_no_objects_are_coverage_zero(pair):
    picture, sample = objects_sample((24, 24), [])
    table = probe(*pair, picture, sample=sample, attention=False, positions=[0, 1])
    assert table["object_coverage"].tolist() == [0.0, 0.0]
    assert table["object_category"].isna().all()


# Wrong inputs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": "every"}, "positions: got 'every'"),
        ({"positions": []}, "positions: got"),
        ({"positions": [1, 1]}, "positions: got"),
        ({"positions": [-1]}, "positions: got"),
        ({"positions": [36]}, "positions: got 36"),
        ({"positions": 3}, "positions: got 3"),
        ({"positions": "grid"}, "grids of 6 x 6 tokens'; accepted: a grid of at least 8 x 8 tokens"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"sharing": "often"}, "sharing: got 'often'; accepted: auto, always, never"),
        ({"batch_size": 2.5}, "batch_size: got 2.5"),
        ({"n_candidates": 0}, "n_candidates: got 0"),
        ({"k_global": float("nan")}, "k_global: got nan"),
        ({"question": " "}, "question: got ' '"),
        ({"question": "Is <image> red ?"}, "visual: got"),
        ({"n_candidate": 10}, "n_candidate: got 10; accepted: no parameter of this name"),
    ],
)
def test_wrong_settings_end_in_one_line(pair, image, settings, message):
    with pytest.raises(ParameterError) as error:
        probe(*pair, image, **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_features_that_are_not_finite_are_refused_before_the_llm_runs(image, monkeypatch):
    model, processor = tiny.tiny_llava()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias[3] = float("nan")
    monkeypatch.setattr(ADAPTERS["llava"], "first_token_logits", None)
    with pytest.raises(ParameterError, match="visual tokens: got 'NaN or infinity"):
        probe(model, processor, image)


def test_unreadable_images_are_named(pair, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for given in (broken, tmp_path / "missing.jpg"):
        with pytest.raises(ImageError, match="cannot be read"):
            probe(*pair, given)
    with pytest.raises(ImageError, match="got NoneType; accepted: a PIL image or a file"):
        probe(*pair, None)


def test_a_file_gives_what_its_image_gives(pair, image, table, tmp_path):
    image.save(tmp_path / "photo.png")
    pd.testing.assert_frame_equal(probe(*pair, tmp_path / "photo.png", QUESTION), table)


def test_a_sample_of_another_size_is_refused(pair, image):
    with pytest.raises(ParameterError, match="sample: got"):
        probe(*pair, image, sample=dataclasses.replace(samples_of(1)[0], width=99))


# Datasets

CONFIG = ProbeConfig(question=QUESTION, positions="grid", n_side=3, batch_size=4)
N_SAMPLES, N_FINISHED = 6, 3


def probing_run(folder):
    """Probe in a process that dies in the image after those that are finished, as one that is killed does."""
    adapter, encoded = ADAPTERS["llava"], []
    original = adapter.encode_pixels

    def encode_pixels(self, *args, **kwargs):
        encoded.append(1)
        if len(encoded) > N_FINISHED:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    adapter.encode_pixels = encode_pixels
    probe_dataset(*tiny.tiny_llava(ARTICLE_SEED), samples_of(N_SAMPLES), CONFIG, folder)


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    """Return an uninterrupted run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, probe_dataset(*pair, samples_of(N_SAMPLES), CONFIG, folder, progress=False)


def test_a_dataset_gives_the_tables_and_tokens_of_its_images(pair, finished):
    folder, results = finished
    samples = samples_of(N_SAMPLES)
    assert (
        results.table["image_id"].unique().tolist() == list(results.tokens) == [s.image_id for s in samples]
    )
    for sample in (samples[0], samples[-1]):
        own = results.table[results.table["image_id"] == sample.image_id].reset_index(drop=True)
        alone = probe(*pair, sample.image, QUESTION, "grid", n_side=3, batch_size=4, sample=sample)
        pd.testing.assert_frame_equal(own, alone, check_dtype=False)
        tokens = adapter_for(*pair).encode([sample.image])[0].tokens
        assert torch.equal(results.tokens[sample.image_id], tokens)
    assert len(results.tokens) == N_SAMPLES
    with pytest.raises(KeyError):
        _ = results.tokens[999]


def test_files_carry_config_and_versions(finished, pair):
    folder, _ = finished
    _, metadata = read_table(folder / "000000000010.parquet")
    assert metadata["config"]["question"] == QUESTION
    settings = {
        "question",
        "positions",
        "n_side",
        "n_head_candidates",
        "n_candidates",
        "k_region",
        "k_global",
    }
    assert set(metadata["config"]) == settings | {"attention"}  # as before views could be chosen
    assert set(metadata["sample"]) == {"image_id", "source", "file_name", "pixels", "objects"}
    assert metadata["model_fingerprint"] == model_fingerprint(pair[0])
    assert metadata["sample"]["file_name"] == "0.png"
    assert (
        metadata["provenance"]["torch"] == torch.__version__.split("+")[0] or metadata["provenance"]["torch"]
    )
    assert str(folder) not in json.dumps(metadata)


def test_row_tokens_follow_the_rows(finished):
    _, results = finished
    shuffled = dataclasses.replace(results, table=results.table.sample(frac=0.5, random_state=0))
    rows = shuffled.row_tokens()
    assert rows.shape == (len(shuffled.table), 40)
    for row, (_, entry) in zip(rows, shuffled.table.iterrows(), strict=True):
        assert torch.equal(row, results.tokens[entry["image_id"]][entry["token"]])


def test_a_folder_reads_back_without_the_model(finished):
    folder, results = finished
    again = read_probe(folder)
    pd.testing.assert_frame_equal(again.table, results.table)
    assert again.description == results.description
    assert list(again.tokens) == list(results.tokens)


def test_a_killed_run_resumes_and_loses_no_finished_image(pair, finished, tmp_path, monkeypatch):
    assert forked(probing_run, tmp_path) == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(before) == N_FINISHED
    # As if it had died between the two files of an image.
    (tmp_path / f"{10 + N_FINISHED:012d}.safetensors").write_bytes(b"")

    encoded, original = [], ADAPTERS["llava"].encode_pixels
    monkeypatch.setattr(
        ADAPTERS["llava"], "encode_pixels", lambda self, *a, **k: encoded.append(1) or original(self, *a, **k)
    )
    results = probe_dataset(*pair, samples_of(N_SAMPLES), CONFIG, tmp_path, progress=False)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert {name: after[name] for name in before} == before
    assert len(encoded) == N_SAMPLES - N_FINISHED
    _, whole = finished
    pd.testing.assert_frame_equal(results.table, whole.table, rtol=1e-5, atol=1e-6)
    for image_id, tokens in whole.tokens.items():
        torch.testing.assert_close(results.tokens[image_id], tokens)


def test_a_finished_run_probes_nothing_again(finished, pair, monkeypatch, capsys):
    folder, results = finished
    monkeypatch.setattr(ADAPTERS["llava"], "encode_pixels", None)
    few = samples_of(N_SAMPLES)[2:5]
    again = probe_dataset(*pair, few, dataclasses.replace(CONFIG, batch_size=9), folder)
    assert again.table["image_id"].unique().tolist() == [12, 13, 14]
    assert capsys.readouterr().out == "probing: 3 of 3 images are there already\n"


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"n_candidates": 9}, "{'n_candidates': 9}"), ({"question": "Is there a cat ?"}, "Is there a cat ?")],
)
def test_a_folder_of_another_config_is_refused(finished, pair, changes, named):
    folder, _ = finished
    with pytest.raises(ParameterError, match="config: got") as error:
        probe_dataset(*pair, samples_of(1), dataclasses.replace(CONFIG, **changes), folder)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_folder_of_another_model_is_refused(finished):
    folder, _ = finished
    with pytest.raises(ParameterError, match="config: got {'model_fingerprint': "):
        probe_dataset(*tiny.tiny_llava(1), samples_of(1), CONFIG, folder)


@pytest.mark.parametrize("changes", [{"source": "scenes/test"}, {"seed": 1}, {"objects": ()}])
def test_another_image_of_the_same_id_is_refused(finished, pair, changes):
    folder, _ = finished
    with pytest.raises(ParameterError, match=r"samples: got .*the image that the folder has under this id"):
        probe_dataset(*pair, samples_of(1, **changes), CONFIG, folder)


def test_foreign_folders_are_refused(pair, tmp_path):
    (tmp_path / "other.parquet").write_bytes(b"")
    with pytest.raises(ParameterError, match="folder: got"):
        probe_dataset(*pair, samples_of(1), CONFIG, tmp_path)
    with pytest.raises(ParameterError, match="folder: got"):
        read_probe(tmp_path)


def test_a_damaged_file_is_probed_again(finished, pair, tmp_path):
    folder, results = finished
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "000000000011.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="probing it again"):
        again = probe_dataset(*pair, samples_of(2), CONFIG, tmp_path, progress=False)
    pd.testing.assert_frame_equal(again.table, results.table[:18])


def test_unreadable_samples_are_named_before_any_image_is_probed(pair, tmp_path):
    def fail():
        raise OSError("truncated")

    samples = [*samples_of(2), Sample(99, fail, 5, 5, file_name="torn.jpg")]
    with pytest.raises(ImageError, match=r"'torn.jpg' cannot be read.*truncated"):
        probe_dataset(*pair, samples, CONFIG, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_samples_and_repeated_ids_are_refused(pair, tmp_path):
    with pytest.raises(ImageError, match="samples: got none"):
        probe_dataset(*pair, [], CONFIG, tmp_path)
    with pytest.raises(ParameterError, match=r"image ids \[10\] more than once"):
        probe_dataset(*pair, samples_of(1) * 2, CONFIG, tmp_path)


def test_progress_is_visible(pair, tmp_path, capsys):
    probe_dataset(*pair, samples_of(2), ProbeConfig(positions=(0,), attention=False), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "probing: image 1 of 2 (id 10)",
        "probing: image 2 of 2 (id 11)",
    ]
    assert all("images/s" in line for line in lines)


@pytest.mark.parametrize("shortest", [24, 40])
def test_coverage_is_of_what_the_processor_crops(shortest):
    """Also where the shorter side is resized to more than is cropped, as DINOv2's own processor does."""
    model, processor = FAMILIES["llava with DINOv2"].build()
    processor.image_processor.size = {"shortest_edge": shortest}
    mask = np.zeros((120, 200), np.uint8)
    mask[30:80, 40:110] = 1
    rle = encode(mask.copy(order="F"))
    cat = SceneObject(
        "cat", (40, 30, 70, 50), {"size": [120, 200], "counts": rle["counts"]}, float(mask.sum())
    )
    picture = PIL.Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, 2))
    sample = Sample(0, lambda: picture, 200, 120, objects=(cat,))
    (view,) = adapter_for(model, processor).encode([picture])[0].views
    (shown,) = view_pictures(processor, picture)
    expected = shown.mean(-1).reshape(6, 4, 6, 4).mean((1, 3)).ravel()
    found = view_coverage(processor, sample, view).share.numpy()
    np.testing.assert_allclose(found, expected, atol=0.06)  # the processor smoothes edges
    assert found.max() == 1 and found.min() == 0


# Models


def test_the_note_is_for_embedded_models_outside_their_world():
    model, _ = tiny.tiny_llava()
    photos, scenes = samples_of(1), samples_of(1, source="scenes/test")
    assert world_note(model, photos) == ""
    model.config.rcb_world = "scenes"
    assert world_note(model, scenes) == ""
    note = world_note(model, scenes + photos)
    assert note.startswith("Outside its world")
    assert "photos" in note


def test_a_fingerprint_is_the_model_s_own(tmp_path):
    model, _ = tiny.tiny_llava()
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert model_fingerprint(loaded) == model_fingerprint(model)
    assert model_fingerprint(tiny.tiny_llava(1)[0]) != model_fingerprint(model)
    loaded.config.vision_feature_layer = -1
    assert model_fingerprint(loaded) != model_fingerprint(model)
    assert model_fingerprint(model.half()) != model_fingerprint(tiny.tiny_llava()[0])


def test_llava_15_with_its_real_settings_is_probed():
    model, processor = tiny.reduced_llava_15()
    table = probe(
        model, processor, tiny.random_images(1, (500, 375))[0], positions="paper_ranks", batch_size=8
    )
    assert len(table) == 96
    assert table["cls_rank"].between(1, 24).sum() == 24
    assert table["position"].max() > 500
    assert np.isfinite(table["influence"]).all()


# Notebooks


def test_notebooks_with_the_same_model_images_and_settings_share_a_folder(pair, tmp_path, capsys):
    config = ProbeConfig(positions=(0, 7), attention=False)
    first = shared_probe(*pair, samples_of(2), config, tmp_path)
    assert "image 2 of 2" in capsys.readouterr().out
    bigger_batches = dataclasses.replace(config, batch_size=7)
    again = shared_probe(*pair, samples_of(2), bigger_batches, str(tmp_path))
    told = [
        "probing: 2 of 2 images are there already",
        f"probing: computed here, code {again.description['code']}",
    ]
    assert capsys.readouterr().out.splitlines() == told
    pd.testing.assert_frame_equal(first.table, again.table)
    assert len(list((tmp_path / "probe").iterdir())) == 1


def test_other_images_models_and_settings_get_folders_of_their_own(pair, tmp_path):
    config = ProbeConfig(positions=(0,), attention=False)
    other = samples_of(1, seed=1)
    shared_probe(*pair, samples_of(1), config, tmp_path, progress=False)
    shared_probe(*pair, other, config, tmp_path, progress=False)
    shared_probe(*pair, samples_of(1, source="scenes/test"), config, tmp_path, progress=False)
    shared_probe(*tiny.tiny_llava(3), samples_of(1), config, tmp_path, progress=False)
    shared_probe(*pair, samples_of(1), dataclasses.replace(config, positions=(1,)), tmp_path, progress=False)
    assert len(list((tmp_path / "probe").iterdir())) == 5
    shared_probe(*pair, samples_of(1, file_name="another.png"), config, tmp_path, progress=False)
    assert len(list((tmp_path / "probe").iterdir())) == 6
    shared_probe(*pair, samples_of(2), config, tmp_path, progress=False)
    assert len(list((tmp_path / "probe").iterdir())) == 6
    first, second = samples_of(2)
    with pytest.raises(ParameterError, match="the image that the folder has under this id"):
        renamed = dataclasses.replace(second, file_name="another.png")
        shared_probe(*pair, [first, renamed], config, tmp_path, progress=False)


def test_the_picture_of_a_view_is_what_the_encoder_gets_before_normalisation(pair):
    _, processor = pair
    image = tiny.random_images(1, size=(80, 40))[0]
    (picture,) = view_pictures(processor, image)
    assert picture.shape == (24, 24, 3)
    given = processor.image_processor([image], return_tensors="pt")["pixel_values"][0]
    settings = processor.image_processor
    normalised = (picture - np.array(settings.image_mean)) / np.array(settings.image_std)
    np.testing.assert_allclose(normalised, given.permute(1, 2, 0), atol=1e-5)
    grey = view_pictures(processor, image.convert("L"))[0]
    assert np.allclose(grey[..., 0], grey[..., 2])
