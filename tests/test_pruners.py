"""Check pruned generation against the unpruned model and against prompts assembled by hand."""

import contextlib
import copy
import functools
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import tiny
import torch
from families import FAMILIES, IN_CHUNKS
from transformers import GenerationConfig

from benchmarks.checkpoints import CHECKPOINTS, empty_model
from rcblib.codebook.codebook import Codebook
from rcblib.mllm import adapter_for
from rcblib.mllm.reduced import Reduced
from rcblib.pruners import ClsSimilarityPruner, CodebookPruner, Pruner, RandomPruner, register
from rcblib.pruners.context import tokens_of
from rcblib.records import (
    ONE_WORD_QUESTION,
    CodebookError,
    ParameterError,
    UnsupportedModelError,
    VisualView,
)
from rcblib.tensors.scoring import redundancy_scores

PROMPTS = [
    "USER: <image>\nWhat does this image show ? ASSISTANT:",
    "USER: <image>\n<image>\nWhat does the image on the left show and the red bird on the right ? ASSISTANT:",
    "USER: How many cat are in a red apple ? ASSISTANT:",
    "USER: Describe <image>\n ASSISTANT:",
]
"""Unequal lengths; one, two, no and one image."""

ALL_KEPT = RandomPruner(1.0)


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny.tiny_llava()


@pytest.fixture
def model(model_and_processor):
    return model_and_processor[0]


@pytest.fixture(scope="module")
def batch(model_and_processor):
    return inputs_of(model_and_processor[1], PROMPTS, tiny.random_images(4))


@pytest.fixture(scope="module")
def single(model_and_processor):
    return inputs_of(model_and_processor[1], PROMPTS[:1], tiny.random_images(1))


@pytest.fixture(scope="module")
def codebook(model_and_processor):
    """Prototypes that are visual tokens of another image."""
    tokens = adapter_for(*model_and_processor).encode(tiny.random_images(1, seed=7))[0].tokens
    return Codebook(tokens[::5].clone(), tuple(range(8)), "llava")


@pytest.fixture(scope="module")
def cut_off(model_and_processor, codebook):
    """A cosine that half of the tokens of the batch lie below."""
    images = adapter_for(*model_and_processor).encode(tiny.random_images(4))
    return (
        torch.cat([redundancy_scores(image.tokens, codebook.prototypes) for image in images]).median().item()
    )


def inputs_of(processor, prompts, images):
    return dict(processor(text=prompts, images=images or None, return_tensors="pt", padding=True))


def one_view(tokens):
    """Return tokens as the views of an image."""
    return (VisualView(tokens, (1, len(tokens))),)


def generate(model, inputs, pruner=None, **settings):
    settings = {"max_new_tokens": 6, "do_sample": False} | settings
    if pruner is None:
        return model.generate(**inputs, **settings)
    with pruner(model):
        return model.generate(**inputs, **settings)


def answer_by_hand(model, ids, mask, images, kept, n_new, position_ids):
    """Decode greedily one prompt whose visual rows are chosen by hand, without cache, mask or `generate`."""
    ids = ids[mask.bool()]
    visual, positions, rows = [], [], []
    for tokens, chosen in zip(images, kept, strict=True):
        visual += [(row, i) for i, row in enumerate(tokens)]
        rows += [len(visual) - len(tokens) + int(i) for i in chosen]
    embedding, pieces, n_seen = model.get_input_embeddings(), [], 0
    for place, token in enumerate(ids.tolist()):
        if token != 4:
            pieces.append(embedding.weight[token])
        else:
            n_seen += 1
            if n_seen - 1 not in rows:
                continue
            pieces.append(visual[n_seen - 1][0])
        positions.append(place)
    if position_ids == "renumbered":
        positions = list(range(len(pieces)))
    answer = []
    for _ in range(n_new):
        with torch.no_grad():
            hidden = model.model.language_model(
                inputs_embeds=torch.stack(pieces)[None],
                position_ids=torch.tensor([positions]),
                attention_mask=torch.ones(1, len(pieces), dtype=torch.long),
                use_cache=False,
            ).last_hidden_state
            answer.append(int(model.lm_head(hidden[0, -1]).argmax()))
        pieces.append(embedding.weight[answer[-1]])
        positions.append(positions[-1] + 1)
    return answer


def tokens_per_prompt(model, inputs):
    """Return the visual tokens of each prompt's images, from pixels, by the count of placeholders."""
    features = iter(model.get_image_features(inputs["pixel_values"]).pooler_output)
    return [[next(features) for _ in range(int((row == 4).sum()) // 36)] for row in inputs["input_ids"]]


# Retaining everything


@pytest.mark.parametrize("position_ids", ["renumbered", "kept"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
        {"repetition_penalty": 1.3},
        pytest.param({"prefill_chunk_size": 8}, marks=IN_CHUNKS),
        {"cache_implementation": "static"},
        {"return_dict_in_generate": True, "output_logits": True},
        {"max_length": 110, "max_new_tokens": None},
        {"max_length": 110, "max_new_tokens": None, "min_length": 109, "num_beams": 2},
    ],
    ids=str,
)
def test_retaining_everything_equals_the_unpruned_model(model, batch, position_ids, settings):
    pruner = RandomPruner(1.0, position_ids=position_ids)
    torch.manual_seed(5)
    expected = generate(model, batch, **settings)
    torch.manual_seed(5)
    output = generate(model, batch, pruner, **settings)
    if settings.get("return_dict_in_generate"):
        for ours, theirs in zip(output.logits, expected.logits, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        output, expected = output.sequences, expected.sequences
    assert torch.equal(output, expected)
    assert [kept.tolist() for kept in pruner.kept] == [list(range(36))] * 4


def test_retaining_everything_equals_the_unpruned_model_without_cache(model, single):
    without = generate(model, single, ALL_KEPT, use_cache=False)
    assert torch.equal(without, generate(model, single, use_cache=False))


def test_answers_depend_on_the_image(model, batch, model_and_processor):
    others = inputs_of(model_and_processor[1], PROMPTS, tiny.random_images(4, seed=3))
    changed = (generate(model, batch) != generate(model, others)).any(1)
    assert changed.tolist() == [True, True, False, True]


# Pruned generation, against prompts assembled by hand


@pytest.mark.parametrize("position_ids", ["renumbered", "kept"])
@pytest.mark.parametrize("retain_ratio", [0.05, 0.3, 0.8])
def test_pruned_generation_equals_prompts_made_by_hand(model, batch, retain_ratio, position_ids):
    pruner = RandomPruner(retain_ratio, seed=3, position_ids=position_ids)
    output = generate(model, batch, pruner)
    n_prompt = batch["input_ids"].shape[1]
    assert torch.equal(output[:, :n_prompt], batch["input_ids"])
    kept = iter(pruner.kept)
    answers = []
    for i, images in enumerate(tokens_per_prompt(model, batch)):
        own = [next(kept) for _ in images]
        ids, mask = batch["input_ids"][i], batch["attention_mask"][i]
        answers.append(answer_by_hand(model, ids, mask, images, own, 6, position_ids))
    assert output[:, n_prompt:].tolist() == answers
    assert {len(k) for k in pruner.kept} == {round(36 * retain_ratio)}
    assert output[0].tolist() != generate(model, batch)[0].tolist()


def test_cut_counts_may_differ_between_images(model, batch, codebook, cut_off):
    pruner = CodebookPruner(codebook, max_similarity=cut_off)
    output = generate(model, batch, pruner)
    assert len({len(kept) for kept in pruner.kept}) > 1
    kept = iter(pruner.kept)
    for i, images in enumerate(tokens_per_prompt(model, batch)):
        own = [next(kept) for _ in images]
        for tokens, positions in zip(images, own, strict=True):
            scores = redundancy_scores(tokens, codebook.prototypes)
            assert positions.tolist() == (scores < cut_off).nonzero().flatten().tolist()
        answer = answer_by_hand(
            model, batch["input_ids"][i], batch["attention_mask"][i], images, own, 6, "renumbered"
        )
        assert output[i, batch["input_ids"].shape[1] :].tolist() == answer


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}], ids=str)
def test_beams_of_a_batch_are_those_of_its_prompts(
    model, batch, codebook, cut_off, model_and_processor, settings
):
    pruner = CodebookPruner(codebook, max_similarity=cut_off)
    n_each = settings.get("num_return_sequences", 1)
    together = generate(model, batch, pruner, **settings)
    assert torch.equal(
        together[:, : batch["input_ids"].shape[1]], batch["input_ids"].repeat_interleave(n_each, 0)
    )
    two = inputs_of(model_and_processor[1], [PROMPTS[1]], tiny.random_images(4)[1:3])
    alone = generate(model, two, pruner, **settings)[:, two["input_ids"].shape[1] :]
    assert torch.equal(together[n_each : 2 * n_each, batch["input_ids"].shape[1] :], alone)


@pytest.mark.parametrize("position_ids", ["renumbered", "kept"])
def test_the_llm_gets_the_positions_that_the_policy_says(model, single, position_ids):
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, named: seen.append(named["position_ids"][0].tolist()), with_kwargs=True
    )
    pruner = RandomPruner(0.25, seed=1, position_ids=position_ids)
    generate(model, single, pruner, max_new_tokens=3)
    handle.remove()
    ids = single["input_ids"][0].tolist()
    first, kept = ids.index(4), pruner.kept[0].tolist()
    expected = list(range(first)) + [first + i for i in kept] + list(range(first + 36, len(ids)))
    if position_ids == "renumbered":
        expected = list(range(len(expected)))
    assert seen == [expected, [expected[-1] + 1], [expected[-1] + 2]]


def test_position_policies_give_different_answers(model, single):
    logits = []
    for position_ids in ("renumbered", "kept"):
        pruner = RandomPruner(0.25, seed=1, position_ids=position_ids)
        output = generate(model, single, pruner, return_dict_in_generate=True, output_logits=True)
        logits.append(output.logits[0])
    assert (logits[0] - logits[1]).abs().max() > 0.01


def test_sampling_is_that_of_the_pruned_distribution(model, single):
    """A temperature near zero makes sampling greedy; a seed makes it repeatable."""
    pruner = RandomPruner(0.3)
    cold = generate(model, single, pruner, do_sample=True, temperature=1e-6, top_k=0)
    assert torch.equal(cold, generate(model, single, pruner))
    warm = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        warm.append(generate(model, single, pruner, do_sample=True, max_new_tokens=12).tolist())
    assert warm[0] == warm[1] != warm[2]


# What callers give and get


def test_padding_is_inferred_as_generate_does(model, batch):
    bare = {name: value for name, value in batch.items() if name != "attention_mask"}
    pruner = RandomPruner(0.3)
    assert torch.equal(generate(model, bare, pruner), generate(model, batch, pruner))
    assert torch.equal(generate(model, bare, ALL_KEPT), generate(model, bare))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32])
def test_inputs_are_left_as_they_are(model, batch, dtype):
    expected = generate(model, batch, RandomPruner(0.3))
    inputs = batch | {"attention_mask": batch["attention_mask"].to(dtype)}
    before = copy.deepcopy(inputs)
    assert torch.equal(generate(model, inputs, RandomPruner(0.3)), expected)
    assert inputs.keys() == before.keys()
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


def test_ids_may_be_given_first_and_a_config_beside_them(model, single):
    pruner = RandomPruner(0.3)
    expected = generate(model, single, pruner)
    rest = {name: value for name, value in single.items() if name != "input_ids"}
    config = GenerationConfig(max_new_tokens=6, do_sample=False)
    with pruner(model):
        assert torch.equal(model.generate(single["input_ids"], config, **rest), expected)
    with pruner(model):
        assert torch.equal(model.generate(**single, generation_config=config), expected)


@pytest.mark.parametrize("place", ["argument", "config", "model"])
def test_lengths_count_the_prompt_as_given(model, single, place):
    model = copy.deepcopy(model)
    n_prompt = single["input_ids"].shape[1]
    lengths = {"max_length": n_prompt + 4, "min_length": n_prompt + 2}
    expected = generate(model, single, RandomPruner(0.3), max_new_tokens=4)
    model.generation_config.eos_token_id = int(expected[0, n_prompt])  # would end the answer at once
    with RandomPruner(0.3)(model):
        if place == "argument":
            output = model.generate(**single, **lengths)
        elif place == "config":
            config = GenerationConfig(**lengths)
            output = model.generate(**single, generation_config=config)
            assert config.max_length == n_prompt + 4
        else:
            model.generation_config.update(**lengths)
            output = model.generate(**single)
    assert n_prompt + 2 <= output.shape[1] <= n_prompt + 4
    assert torch.equal(output[:, :n_prompt], single["input_ids"])
    assert model.generation_config.eos_token_id not in output[0, n_prompt : n_prompt + 2]


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_the_default_length_is_that_of_generate(model, single):
    with RandomPruner(0.3)(model):
        assert model.generate(**single).shape[1] == single["input_ids"].shape[1] + 20


def test_a_limit_inside_the_prompt_is_an_error(model, single):
    n_prompt = single["input_ids"].shape[1]
    with pytest.raises(
        ParameterError, match=f"max_length: got {n_prompt}; accepted: more than the {n_prompt} tokens"
    ):
        generate(model, single, RandomPruner(0.3), max_length=n_prompt, max_new_tokens=None)


@pytest.mark.filterwarnings("ignore:.*nothing was pruned")
@pytest.mark.parametrize("pixels", ["absent", "none"])
def test_prompts_without_images_pass_through(model, model_and_processor, pixels):
    inputs = inputs_of(model_and_processor[1], [PROMPTS[2]], None)
    given = inputs if pixels == "absent" else inputs | {"pixel_values": None}
    pruner = RandomPruner(0.1)
    assert torch.equal(generate(model, given, pruner), generate(model, inputs))
    assert pruner.kept == []


def test_what_was_kept_is_told_for_each_image_since_entering(model, batch, single):
    pruner = RandomPruner(0.5)
    with pruner(model) as pruned:
        assert pruned.pruner is pruner
        model.generate(**batch, max_new_tokens=1)
        assert len(pruned.kept) == len(pruner.kept) == 4
        model.generate(**single, max_new_tokens=1)
    assert pruner.log is pruned
    assert pruned.adapter is None  # a log does not keep a model alive
    assert pruner.n_tokens == [36] * 5
    assert pruner.n_retained == [18] * 5
    assert [[part.tolist() for part in parts] for parts in pruner.kept_by_view] == [
        [kept.tolist()] for kept in pruner.kept
    ]
    for kept in pruner.kept:
        assert kept.dtype == torch.int64
        assert kept.device.type == "cpu"
        assert len(kept) == 18
        assert (kept.diff() > 0).all()
    with pytest.warns(UserWarning, match="nothing was pruned"), pruner(model):
        assert pruner.kept == []


def test_the_least_redundant_token_survives_with_a_warning(model, batch, codebook):
    pruner = CodebookPruner(codebook, max_similarity=-1.0)
    with pytest.warns(UserWarning, match="keeps none of 36 visual tokens"):
        output = generate(model, batch, pruner)
    assert [len(kept) for kept in pruner.kept] == [1] * 4
    for tokens, kept in zip(sum(tokens_per_prompt(model, batch), []), pruner.kept, strict=True):
        assert int(kept[0]) == int(redundancy_scores(tokens, codebook.prototypes).argmin())
    assert output.shape[1] == batch["input_ids"].shape[1] + 6


# The model is left as it was


def state(model):
    implementation = (
        model.config._attn_implementation,
        model.model.language_model.config._attn_implementation,
    )
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return sorted(vars(model)), implementation, hooks, model.generation_config.to_dict()


def test_the_model_is_left_as_it_was_after_errors(model, batch):
    generate(model, batch)
    before = state(model)
    with pytest.raises(RuntimeError, match="on purpose"), RandomPruner(0.3)(model):
        raise RuntimeError("on purpose")
    assert state(model) == before

    def fail(*_arguments):
        raise RuntimeError("inside the LLM")

    handle = model.model.language_model.register_forward_pre_hook(fail)
    pruner = RandomPruner(0.3)
    with pytest.raises(RuntimeError, match="inside the LLM"):
        generate(model, batch, pruner)
    handle.remove()
    assert state(model) == before
    assert generate(model, batch, pruner).shape[0] == 4


def test_a_generate_of_the_instance_comes_back(model, single):
    calls = []
    plain = model.generate

    def own(*arguments, **named):
        calls.append(1)
        return plain(*arguments, **named)

    model.generate = own
    try:
        generate(model, single, RandomPruner(0.3))
        assert model.generate is own
        assert calls == [1]
    finally:
        del model.generate


def test_contexts_do_not_nest(model, single):
    outer = RandomPruner(0.3)
    other_model = tiny.tiny_llava(seed=1)[0]
    with outer(model):
        for inner, where in ((RandomPruner(0.5), model), (outer, model), (outer, other_model)):
            with pytest.raises(ParameterError, match="inside a pruner's context"), inner(where):
                pass
        with RandomPruner(0.5)(other_model):
            other_model.generate(**single, max_new_tokens=1)
        model.generate(**single, max_new_tokens=1)
    assert len(outer.kept) == 1
    assert "generate" not in vars(model) and "forward" not in vars(model)
    assert "generate" not in vars(type(model)) and type(model).forward.__module__ == type(model).__module__


# Wrong inputs end before anything is generated


@pytest.fixture
def untouched(model):
    """Fail if the LLM or the vision encoder runs."""

    def fail(*_arguments):
        raise AssertionError("work was done")

    parts = (model.model.language_model, model.model.vision_tower)
    handles = [part.register_forward_pre_hook(fail) for part in parts]
    yield model
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs_embeds", torch.zeros(1, 3, 40)),
        ("position_ids", torch.zeros(1, 3, dtype=torch.long)),
        ("mm_encoder_outputs", {}),
        ("vision_feature_layer", -1),
    ],
)
def test_what_would_bypass_the_pruner_is_refused(untouched, single, name, value):
    with pytest.raises(ParameterError, match=f"generate: got '{name}'"):
        generate(untouched, single | {name: value}, RandomPruner(0.3))


def test_gaps_without_a_cache_are_refused(untouched, single):
    with pytest.raises(ParameterError, match="use_cache: got False"):
        generate(untouched, single, RandomPruner(0.3, position_ids="kept"), use_cache=False)


def test_chunks_that_would_be_read_without_their_images_are_refused(untouched, single, monkeypatch):
    monkeypatch.setattr("rcblib.pruners.steps.READS_IMAGES_IN_CHUNKS", False)
    with pytest.raises(ParameterError, match="prefill_chunk_size: got 8; accepted: None before transformers"):
        generate(untouched, single, RandomPruner(0.3), prefill_chunk_size=8)


def test_token_ids_and_mask_are_checked(untouched, single):
    with pytest.raises(ParameterError, match="input_ids: got 'NoneType'"):
        generate(untouched, {"pixel_values": single["pixel_values"]}, RandomPruner(0.3))
    with pytest.raises(ParameterError, match="attention_mask: got"):
        generate(untouched, single | {"attention_mask": torch.ones(1, 3)}, RandomPruner(0.3))


def test_placeholders_must_match_the_images(model, single, batch):
    few = single | {"pixel_values": batch["pixel_values"][:2]}
    with pytest.raises(ParameterError, match="36 image placeholders.*72, one for each visual token"):
        generate(model, few, RandomPruner(0.3))
    ids = batch["input_ids"][[0, 3]].clone()
    first = int((ids[0] == 4).nonzero()[0])
    ids[0, first] = 10
    ids[1, -1] = 4
    shifted = {"input_ids": ids, "attention_mask": batch["attention_mask"][[0, 3]]}
    with pytest.raises(ParameterError, match="spread over two prompts"):
        generate(model, shifted | {"pixel_values": batch["pixel_values"][:2]}, RandomPruner(0.3))


def test_other_models_are_refused():
    with (
        pytest.raises(UnsupportedModelError, match="supported: llava"),
        RandomPruner(0.3)(torch.nn.Linear(1, 1)),
    ):
        pass


def test_a_codebook_must_fit_the_model(untouched, codebook):
    narrow = Codebook(codebook.prototypes[:, :39], codebook.image_ids, "llava")
    with pytest.raises(CodebookError, match="width 39 do not fit visual tokens of width 40"):
        generate(untouched, {}, CodebookPruner(narrow, max_similarity=0.5))
    foreign = Codebook(codebook.prototypes, codebook.image_ids, "llava_onevision")
    with pytest.raises(CodebookError, match="family 'llava_onevision', the model is of family 'llava'"):
        generate(untouched, {}, CodebookPruner(foreign, max_similarity=0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"max_similarity": 0.4, "retain_ratio": 0.5}, "exactly one"),
        ({"max_similarity": 1.5}, "max_similarity: got 1.5"),
        ({"retain_ratio": -0.1}, "retain_ratio: got -0.1"),
        ({"retain_ratio": float("nan")}, "retain_ratio: got nan"),
        ({"retain_ratio": 0.5, "rule": "cosine"}, "rule: got 'cosine'"),
        ({"max_similarity": 0.5, "rule": "double_softmax"}, "max_similarity"),
        ({"retain_ratio": 0.5, "position_ids": "old"}, "position_ids: got 'old'"),
        (
            {"retain_ratio": 0.5, "layout": "flat"},
            "layout: got 'flat'; accepted: one of .'packed', 'flatten'",
        ),
        (
            {"retain_ratio": 0.5, "scope": "frame"},
            "scope: got 'frame'; accepted: one of .'tile', 'image', 'video'",
        ),
    ],
)
def test_budgets_are_checked_when_a_pruner_is_made(codebook, settings, message):
    with pytest.raises(ParameterError, match=message):
        CodebookPruner(codebook, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomPruner(1.2), "retain_ratio: got 1.2"),
        (lambda: RandomPruner(None), "exactly one"),
        (lambda: RandomPruner(0.5, seed=-1), "seed: got -1"),
        (lambda: ClsSimilarityPruner(0.5, keep="middle"), "keep: got 'middle'"),
    ],
)
def test_baseline_parameters_are_checked(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


def test_nan_features_end_in_one_line(single, codebook):
    model = tiny.tiny_llava()[0]
    model.model.multi_modal_projector.linear_2.bias.data[3] = float("nan")
    with pytest.raises(ParameterError, match="NaN or infinity"):
        generate(model, single, CodebookPruner(codebook, max_similarity=0.5))


# Methods


@pytest.mark.parametrize("rule", ["max_cosine", "double_softmax", "single_softmax"])
def test_codebook_rules_select_without_a_model(codebook, rule):
    tokens = torch.randn(36, 40, generator=torch.Generator().manual_seed(0))
    kept = CodebookPruner(codebook, rule, retain_ratio=0.25).select(one_view(tokens))
    lowest = redundancy_scores(tokens, codebook.prototypes, rule).argsort()[:9]
    assert kept.tolist() == sorted(lowest.tolist())


def test_random_positions_depend_on_seed_and_image_order_only(model, batch, single):
    together = RandomPruner(0.3, seed=4)
    generate(model, batch, together)
    one_by_one = RandomPruner(0.3, seed=4)
    with one_by_one(model):
        for _ in range(4):
            model.generate(**single, max_new_tokens=1)
    positions = [kept.tolist() for kept in together.kept]
    assert [kept.tolist() for kept in one_by_one.kept] == positions
    assert len({tuple(kept) for kept in positions}) == 4
    generate(model, batch, RandomPruner(0.3, seed=5))
    other_seed = RandomPruner(0.3, seed=5)
    generate(model, batch, other_seed)
    assert [kept.tolist() for kept in other_seed.kept] != positions
    assert together.select(one_view(torch.zeros(36, 40))).tolist() == positions[0]


def test_random_positions_are_uniform():
    counts = torch.zeros(36)
    for seed in range(600):
        counts[RandomPruner(0.25, seed=seed).select(one_view(torch.zeros(36, 40)))] += 1
    expected, deviation = 600 * 0.25, (600 * 0.25 * 0.75) ** 0.5
    assert ((counts - expected).abs() < 4.5 * deviation).all()


@pytest.mark.parametrize("keep", ["most", "least"])
def test_cls_similarity_keeps_its_end_of_the_order(model_and_processor, batch, keep):
    model, processor = model_and_processor
    pruner = ClsSimilarityPruner(0.25, keep=keep)
    generate(model, batch, pruner)
    encoded = adapter_for(model, processor).encode(tiny.random_images(4), ["cls_similarity"])
    for image, kept in zip(encoded, pruner.kept, strict=True):
        order = image.views[0].signals["cls_similarity"].argsort(descending=keep == "most")
        assert kept.tolist() == sorted(order[:9].tolist())
    with pytest.raises(ParameterError, match="cls_similarity"):
        pruner.select(one_view(torch.zeros(36, 40)))


def test_cls_similarity_needs_a_cls(single):
    model, _ = FAMILIES["llava with SigLIP"].build()
    with pytest.raises(ParameterError, match=r"without \[CLS\] similarity.*does not serve"):
        generate(model, single, ClsSimilarityPruner(0.25))
    assert generate(model, single, RandomPruner(0.25)).shape[1] == single["input_ids"].shape[1] + 6


def test_a_method_of_ones_own_is_one_function(model, batch):
    seen = []

    @dataclass(frozen=True)
    class Brightest(Pruner):
        needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "keys", "question"})

        def score(self, views, context=None):
            seen.append((views, context))
            return tokens_of(views).norm(dim=-1)

    pruner = Brightest(retain_ratio=0.1, position_ids="kept")
    generate(model, batch, pruner)
    flat = sum(tokens_per_prompt(model, batch), [])
    for tokens, kept in zip(flat, pruner.kept, strict=True):
        assert kept.tolist() == sorted(tokens.norm(dim=-1).topk(4).indices.tolist())
    assert [context.image_index for _, context in seen] == [0, 1, 2, 3]
    for (view,), _ in seen:
        shapes = {name: tuple(signal.shape) for name, signal in view.signals.items()}
        assert shapes == {"cls_attention": (36,), "keys": (36, 8)}
    for (_, context), row in zip(seen, [0, 1, 1, 3], strict=True):
        own = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert torch.equal(context.prompt_ids, own)


# LLaVA-1.5's real settings


def test_real_settings_at_reduced_width_prune():
    model, processor = tiny.reduced_llava_15()
    adapter = adapter_for(model, processor)
    inputs = inputs_of(processor, [adapter.prompt(ONE_WORD_QUESTION)], tiny.random_images(1, (500, 375)))
    assert int((inputs["input_ids"] == 32000).sum()) == 576
    codebook = Codebook(adapter.encode(tiny.random_images(1, seed=2))[0].tokens[:20], family="llava")
    plain = generate(model, inputs, max_new_tokens=4)
    assert torch.equal(generate(model, inputs, ALL_KEPT, max_new_tokens=4), plain)
    pruner = CodebookPruner(codebook, retain_ratio=0.2)
    output = generate(model, inputs, pruner, max_new_tokens=4)
    assert torch.equal(output[:, :-4], inputs["input_ids"])
    assert [len(kept) for kept in pruner.kept] == [115]
    (tokens,) = model.get_image_features(inputs["pixel_values"]).pooler_output
    logits = adapter.first_token_logits(adapter.prompt(ONE_WORD_QUESTION), [tokens[pruner.kept[0]]])
    assert int(logits.argmax()) == int(output[0, -4])


def test_the_released_codebook_fits_the_full_size_model(shared_folder):
    codebook = Codebook.from_released(shared_folder / "codebooks" / "llava-1.5-7b.pt")
    model = empty_model(CHECKPOINTS[0])
    pruner = CodebookPruner(codebook, max_similarity=0.45)
    assert codebook.prototypes.shape == (454, 4096)
    pruner.check(adapter_for(model))
    other = Codebook.from_released(shared_folder / "codebooks" / "llava-onevision-qwen2-7b-ov.pt")
    with pytest.raises(CodebookError, match="width 3584"), CodebookPruner(other, max_similarity=0.45)(model):
        pass


@dataclass(frozen=True)
class FirstBecomes(Pruner):
    """Put rows in the place of the first token."""

    rows: torch.Tensor

    def reduce(self, views, context=None):
        return Reduced(torch.tensor([0]), self.rows)


@pytest.mark.parametrize("rows", [torch.zeros(1, 5), torch.full((1, 32), torch.nan)], ids=["width", "NaN"])
def test_rows_that_a_model_cannot_read_end_in_one_line(model, single, rows):
    with pytest.raises(ParameterError, match="^rows: got .*, from FirstBecomes$"):
        generate(model, single, FirstBecomes(rows, retain_ratio=0.5))


# Methods that override little


@dataclass(frozen=True)
class Inside(Pruner):
    """Do something inside the LLM only."""

    def inside(self, adapter, spans):
        return contextlib.nullcontext()


def test_a_method_that_acts_inside_the_llm_keeps_all_before_it_without_a_budget(model, batch):
    pruner = Inside()
    assert torch.equal(generate(model, batch, pruner), generate(model, batch))
    assert [len(kept) for kept in pruner.kept] == [36] * 4
    with pytest.raises(
        ParameterError, match="accepted: none; Pruner overrides neither score, select, reduce nor inside"
    ):
        Pruner(retain_ratio=0.2)


def test_a_budget_is_asked_for_and_checked_where_it_is_used():
    @dataclass(frozen=True)
    class Scores(Pruner):
        def score(self, views, context=None):
            return tokens_of(views).norm(dim=-1)

    @dataclass(frozen=True)
    class Selects(Pruner):
        def select(self, views, context=None):
            return torch.tensor([1])

    assert Selects().select(one_view(torch.ones(3, 2))).tolist() == [1]
    with pytest.raises(ParameterError, match="exactly one"):
        Scores()
    for kind in (Scores, Selects):
        with pytest.raises(ParameterError, match="retain_ratio: got 1.5"):
            kind(retain_ratio=1.5)


def test_the_first_token_survives_where_there_are_no_scores(model, single):
    @dataclass(frozen=True)
    class Nothing(Pruner):
        def select(self, views, context=None):
            return torch.tensor([], dtype=torch.int64)

    pruner = Nothing()
    with pytest.warns(UserWarning, match="Nothing keeps none of 36 visual tokens; the first stays"):
        generate(model, single, pruner)
    assert [kept.tolist() for kept in pruner.kept] == [[0]]


# What a method is known by


class Plain(Pruner):
    """Set what it differs by past the fields."""

    def __init__(self, sign):
        super().__init__(retain_ratio=0.5)
        self.sign = sign

    def score(self, views, context=None):
        return self.sign * tokens_of(views).norm(dim=-1)


def test_values_that_are_no_fields_have_no_description():
    with pytest.raises(ParameterError, match="^pruner: got 'Plain.sign'; accepted: settings that are fields"):
        Plain(1).description()
    for kind in (Plain, type("Other", (RandomPruner,), {}), int, RandomPruner(0.5)):
        with pytest.raises(
            ParameterError, match="kind: got .*; accepted: a frozen dataclass derived from Pruner"
        ):
            register("plain", kind)


def test_what_is_derived_from_fields_is_no_part_of_a_description(model, single):
    @dataclass(frozen=True)
    class Derived(RandomPruner):
        @functools.cached_property
        def table(self):
            return torch.arange(self.seed)

    pruner, expected = Derived(0.5, 3), Derived(0.5, 3).description()
    assert len(pruner.table) == 3
    generate(model, single, pruner)
    assert pruner.description() == expected


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_pruner_leaves_the_model_behind(model, single, copied):
    pruner = RandomPruner(0.5, 3)
    with pruner(model):
        model.generate(**single, max_new_tokens=1, do_sample=False)
        inside = copied(pruner)
    for own in (inside, copied(pruner)):
        assert own == pruner and own.log is None and own.kept == []
    assert len(pruner.kept) == 1


def test_codebooks_and_their_pruners_compare_by_content(codebook):
    same = Codebook(codebook.prototypes.clone(), codebook.image_ids, codebook.family)
    assert same == codebook and hash(same) == hash(codebook)
    pruners = [CodebookPruner(own, retain_ratio=0.5) for own in (codebook, same)]
    assert pruners[0] == pruners[1] and hash(pruners[0]) == hash(pruners[1])
    others = [
        Codebook(codebook.prototypes.double(), codebook.image_ids, codebook.family),
        Codebook(codebook.prototypes + 1, codebook.image_ids, codebook.family),
        Codebook(codebook.prototypes, codebook.image_ids, "llava_next"),
    ]
    assert all(other != codebook for other in others) and codebook != 1


def test_a_codebook_is_described_with_shape_and_dtype():
    zeros = [torch.zeros(2, 4), torch.zeros(4, 2), torch.zeros(4, 4).half(), torch.zeros(4, 4).bfloat16()]
    told = {CodebookPruner(Codebook(own), retain_ratio=0.5).description()["codebook"] for own in zeros}
    assert len(told) == len(zeros)


@pytest.mark.parametrize(
    "wrong",
    [{"inputs_embeds": torch.zeros(1, 1, 32)}, {"max_length": 2, "max_new_tokens": None}],
    ids=["refused", "too short"],
)
def test_images_that_were_handed_in_do_not_outlive_an_error(model, single, model_and_processor, wrong):
    images = adapter_for(*model_and_processor).encode(tiny.random_images(1))
    ids = {name: single[name] for name in ("input_ids", "attention_mask")}
    settings = {"max_new_tokens": 2, "do_sample": False}
    with RandomPruner(0.5)(model) as pruned:
        pruned.hand_in(images)
        with pytest.raises(ParameterError):
            model.generate(**ids, **settings | wrong)
        with pytest.raises(ValueError, match="zip"):
            pruned.hand_in([*images, *images], [0])
        output = model.generate(**single, **settings)
        pruned.hand_in(images)
        assert output.shape == model.generate(**ids, **settings).shape
