"""Check what holds for any input: of budgets, packing, prompts, positions; and what no change of form turns."""

import dataclasses

import pandas as pd
import pytest
import tiny
import torch
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st

from rcblib.codebook.codebook import Codebook
from rcblib.evaluate.parts import evaluate_parts
from rcblib.mllm import adapter_for
from rcblib.mllm.given import GivenPrompts
from rcblib.mllm.prompt import Batch, Prompt, VisualRows
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset
from rcblib.pruners import Budget, CodebookPruner, RandomPruner
from rcblib.records import NEWLINE, EncodedImage, Question, Sample, VisualView
from rcblib.runs.shards import Shard
from rcblib.tensors.scoring import RULES

SEEDS = st.integers(0, 2**32 - 1)
IMAGE, PAD = 4, 0


def numbers(seed, *shape):
    """Return a tensor of normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Budgets

SCORES = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=40).map(torch.tensor)
BUDGETS = st.one_of(
    st.builds(Budget, retain_ratio=st.floats(0, 1)),
    st.builds(Budget, retain_ratio=st.floats(0, 1), drops_ties=st.just(True)),
    st.builds(Budget, count=st.integers(0, 60)),
    st.builds(Budget, cut_off=st.floats(-1, 1)),
    st.builds(Budget, adaptive=st.sampled_from([lambda scores: len(scores) // 2, lambda scores: 99])),
)


@given(SCORES, BUDGETS)
def test_a_budget_keeps_ascending_positions_of_the_highest_scores(scores, budget):
    kept = budget.keep(scores)
    assert kept.dtype == torch.int64
    assert (kept.diff() > 0).all()
    assert set(kept.tolist()) <= set(range(len(scores)))
    dropped = torch.ones(len(scores), dtype=torch.bool)
    dropped[kept] = False
    if len(kept) and dropped.any():
        assert scores[kept].min() >= scores[dropped].max()
    if budget.count is not None:
        assert len(kept) == min(budget.count, len(scores))


@given(SCORES, BUDGETS, SEEDS)
def test_a_budget_keeps_the_same_scores_in_any_order(scores, budget, seed):
    shuffle = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    kept, again = scores[budget.keep(scores)], scores[shuffle][budget.keep(scores[shuffle])]
    assert kept.sort().values.tolist() == again.sort().values.tolist()


# Codebooks


@given(SEEDS, st.sampled_from(RULES), st.floats(0.1, 0.9), st.integers(-6, 6))
def test_pruning_depends_on_directions_only(seed, rule, retain_ratio, exponent):
    """Prototypes in another order, and longer or shorter ones and tokens, keep the same tokens.

    Powers of two scale exactly, so that not even rounding may differ.
    """
    tokens, prototypes = numbers(seed, 30, 8), numbers(seed + 1, 5, 8)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    scale = 2.0**exponent

    def kept(tokens, prototypes):
        pruner = CodebookPruner(Codebook(prototypes), rule=rule, retain_ratio=retain_ratio)
        return pruner.select((VisualView(tokens, (5, 6)),)).tolist()

    expected = kept(tokens, prototypes)
    assert kept(scale * tokens, prototypes) == expected
    assert kept(tokens, prototypes / scale) == expected
    if rule == "max_cosine":  # the order of a sum may turn a tie
        assert kept(tokens, prototypes[order]) == expected
    else:
        assert len(set(kept(tokens, prototypes[order])) ^ set(expected)) <= 2


# Tiles


@pytest.fixture(scope="module", params=["llava_next", "llava_onevision"])
def tiled(request):
    return adapter_for(*FAMILIES[request.param].build())


@given(width=st.integers(4, 160), height=st.integers(4, 160))
def test_the_packing_of_any_photo_is_the_models_own_and_ends_lines(tiled, width, height):
    (photo,) = tiny.random_images(1, (width, height))
    (image,) = tiled.encode([photo])
    order = image.packing.order
    is_token = order != NEWLINE
    assert sorted(order[is_token].tolist()) == list(range(image.n_tokens))
    inputs = tiled.processor.image_processor([photo], return_tensors="pt")
    with torch.no_grad():
        (read,) = tiled.model.get_image_features(**inputs).pooler_output
    tokens = torch.cat([view.tokens for view in image.views])
    assert torch.equal(read[is_token], tokens[order[is_token]])
    assert torch.equal(read[~is_token], image.packing.newline.expand_as(read[~is_token]))
    for view in image.views:
        assert view.n_tokens == view.grid[0] * view.grid[1]
        left, top, right, bottom = view.region
        assert left < right and top < bottom
        assert right > 0 and bottom > 0 and left < 1 and top < 1
    if len(image.views) > 1:  # lines are of equal length
        n_base = image.views[0].n_tokens
        ends = (order[n_base:] == NEWLINE).nonzero().flatten()
        assert len(ends) and len(order) - n_base == len(ends) * (int(ends[0]) + 1)
    flat = image.arranged("flatten")
    assert (flat.packing.order == NEWLINE).sum() <= 1 or image.whole is None


# Prompts and positions


@st.composite
def prompts_with_rows(draw):
    """Draw a prompt with placeholders, and the rows of each image of which some were dropped."""
    texts = draw(st.lists(st.lists(st.integers(6, 60), max_size=5), min_size=1, max_size=4))
    ids, n_each = list(texts[0]), []
    for text in texts[1:]:
        n_each.append(draw(st.integers(1, 6)))
        ids += [IMAGE, *text]
    visual = []
    for n in n_each:
        kept = torch.tensor(sorted(draw(st.sets(st.integers(0, n - 1), min_size=1))))
        visual.append(VisualRows(numbers(n, len(kept), 2), kept[None], n, kept, n))
    prompt = Prompt.of(ids or [7], [IMAGE])
    if draw(st.booleans()):
        prompt = prompt.expanded(n_each)
    return prompt, visual, n_each


@given(prompts_with_rows())
def test_an_assembled_prompt_keeps_text_and_the_places_of_what_is_kept(drawn):
    prompt, visual, n_each = drawn
    assembled = prompt.filled(visual)
    text = prompt.ids != IMAGE
    assert assembled.ids(IMAGE)[~assembled.is_visual].tolist() == prompt.ids[text].tolist()
    assert int(assembled.is_visual.sum()) == sum(map(len, visual))
    positions = assembled.positions[0]
    assert (positions.diff() > 0).all()
    whole = prompt.filled([VisualRows.in_order(torch.zeros(n, 2)) for n in n_each])
    assert whole.positions[0].tolist() == list(range(len(whole)))
    # What is kept stands where it stood with everything there; text does too.
    kept = torch.ones(len(whole), dtype=torch.bool)
    for (start, stop), rows in zip(whole.spans, visual, strict=True):
        kept[start:stop] = False
        kept[start + rows.numbers] = True
    assert positions.tolist() == kept.nonzero().flatten().tolist()


@given(st.lists(prompts_with_rows(), min_size=1, max_size=4))
def test_a_batch_pads_on_the_left_and_changes_no_prompt(drawn):
    assembled = [prompt.filled(visual) for prompt, visual, _ in drawn]
    batch = Batch(assembled)
    ids, positions = batch.input_ids(IMAGE, PAD), batch.position_ids
    for number, alone in enumerate(assembled):
        there = batch.is_there[number]
        assert there.tolist() == sorted(there.tolist())
        assert ids[number][there].tolist() == alone.ids(IMAGE).tolist()
        assert (ids[number][~there] == PAD).all()
        assert positions[number][there].tolist() == alone.positions[0].tolist()
    spans = [(number, column.tolist()) for number, column in batch.spans.images]
    assert all((ids[number, columns] == IMAGE).all() for number, columns in spans)


@given(
    st.lists(st.lists(st.integers(6, 60), min_size=1, max_size=6), min_size=1, max_size=3), st.integers(1, 9)
)
def test_arguments_of_generate_that_keep_everything_are_those_given(texts, n_tokens):
    n_columns = max(map(len, texts)) + n_tokens
    rows = [[PAD] * (n_columns - len(t) - n_tokens) + [IMAGE] * n_tokens + t for t in texts]
    ids = torch.tensor(rows)
    given_arguments = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "token_type_ids": ids + 1}
    prompts = GivenPrompts(given_arguments, PAD, None)
    image = EncodedImage((VisualView(torch.zeros(n_tokens, 2), (1, n_tokens)),))
    placed = prompts.place([image] * len(texts), lambda image: image.n_tokens, IMAGE)
    assert [each.prompt for each in placed] == list(range(len(texts)))
    batch = prompts.filled([VisualRows.in_order(torch.zeros(n_tokens, 2))] * len(texts))
    cut = prompts.cut(batch, IMAGE)
    assert torch.equal(cut["input_ids"], ids)
    assert torch.equal(cut["attention_mask"], given_arguments["attention_mask"])
    there = given_arguments["attention_mask"].bool()
    assert torch.equal(cut["token_type_ids"][there], given_arguments["token_type_ids"][there])


# The order and the division of work


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava(7)


@pytest.fixture(scope="module")
def samples():
    images = tiny.random_images(4, seed=3)
    return [Sample(20 + i, lambda p=p: p, *p.size, file_name=f"{i}.png") for i, p in enumerate(images)]


def sorted_rows(table, *keys):
    return table.sort_values(list(keys), kind="stable", ignore_index=True)


def test_probing_does_not_depend_on_order_or_shards(pair, samples, tmp_path):
    config = ProbeConfig(question="What does this image show ?", positions="grid", n_side=2, batch_size=4)
    whole = probe_dataset(*pair, samples, config, tmp_path / "whole", progress=False).table
    shuffled = [samples[i] for i in (2, 0, 3, 1)]
    other = probe_dataset(*pair, shuffled, config, tmp_path / "shuffled", progress=False).table
    keys = ("image_id", "view", "token")
    pd.testing.assert_frame_equal(sorted_rows(other, *keys), sorted_rows(whole, *keys))
    shards = [Shard(number, 3).of(samples) for number in (1, 2, 3)]
    parts = [probe_dataset(*pair, own, config, tmp_path / "shards", progress=False).table for own in shards]
    pd.testing.assert_frame_equal(sorted_rows(pd.concat(parts), *keys), sorted_rows(whole, *keys))


def test_answers_do_not_depend_on_order_batches_or_shards(pair, samples, tmp_path):
    texts = ("What does this image show ?", "Is there a cat in the image ?", "How many red apple are there ?")
    questions = [Question(s.image_id, "one_word", text, "cat", text[:8]) for text in texts for s in samples]
    pruners = {"all": None, "random": RandomPruner(0.3, seed=1)}
    settings = dict(max_new_tokens=3, images_per_part=1, progress=False)
    whole, _ = evaluate_parts(*pair, questions, samples, pruners, 12, folder=tmp_path / "whole", **settings)
    keys = ("method", "image_id", "subset")
    backwards, _ = evaluate_parts(
        *pair, questions[::-1], samples[::-1], pruners, 12, folder=tmp_path / "back", **settings
    )
    alone, _ = evaluate_parts(*pair, questions, samples, pruners, 1, folder=tmp_path / "one", **settings)
    shards = pd.concat(
        evaluate_parts(
            *pair, questions, samples, pruners, 12, folder=tmp_path / "n", shard=Shard(number, 2), **settings
        )[0]
        for number in (1, 2)
    )
    expected = sorted_rows(whole, *keys)
    for table in (backwards, alone, shards):
        found = sorted_rows(table, *keys)
        columns = [name for name in expected if "seconds" not in name]
        pd.testing.assert_frame_equal(found[columns], expected[columns])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_encoded_as_its_images_are_one_by_one(family):
    adapter = adapter_for(*FAMILIES[family].build())
    pictures = [tiny.random_images(1, size, seed=i)[0] for i, size in enumerate(FAMILIES[family].sizes)]
    together = adapter.encode(pictures)
    again = adapter.encode(pictures[::-1])[::-1]
    for one, both, turned in zip(pictures, together, again, strict=True):
        (alone,) = adapter.encode([one])
        for views in zip(alone.views, both.views, turned.views, strict=True):
            assert len({dataclasses.astuple(v)[1] for v in views}) == 1
            torch.testing.assert_close(views[1].tokens, views[0].tokens, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(views[2].tokens, views[0].tokens, rtol=1e-4, atol=1e-5)
