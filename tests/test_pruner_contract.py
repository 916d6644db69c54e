"""Check what every registered pruner owes to every family: a method is a line in the registry, a family a fixture."""

import dataclasses
import functools

import pytest
import tiny
import torch
from families import FAMILIES
from pruner_examples import LastAttention, Merging

from rcblib.codebook.codebook import Codebook
from rcblib.mllm import adapter_for
from rcblib.pruners import PRUNERS
from rcblib.pruners.context import OF_SAMPLES
from rcblib.pruners.registry import Method
from rcblib.records import ParameterError

METHODS = PRUNERS | {
    "merging": Method("merging", Merging, "merged"),
    "inside, gathered": Method("inside", LastAttention, "inside", settings={"form": "gathered"}),
    "inside, masked": Method("inside", LastAttention, "inside", settings={"form": "masked"}),
}
WORDS = [
    "What does this image show ?",
    "Is there a cat on the left and a red bird on the right ?",
    "How many ?",
]
COUNTS = (1, 2, 0)
"""Images of three prompts of unequal lengths; the last is text only."""
N_NEW = 3
SETTINGS = {"max_new_tokens": N_NEW, "do_sample": False, "num_beams": 1}

pytestmark = pytest.mark.filterwarnings("ignore:rule", "ignore:.*nothing was pruned")


@functools.cache
def adapter_of(family, dtype=torch.float32):
    model, processor = FAMILIES[family].build()
    processor.tokenizer.padding_side = "left"
    return adapter_for(model.to(dtype), processor)


@functools.cache
def pictures_of(family):
    sizes = FAMILIES[family].sizes
    return [tiny.random_images(1, sizes[i % len(sizes)], seed=i)[0] for i in range(sum(COUNTS))]


def fitting(method, family, ratio=0.4):
    """Return a pruner, or skip where the method needs what the family has not (checked by itself)."""
    adapter, settings = adapter_of(family), {}
    if method.needs - {"question"} - adapter.offers:
        pytest.skip(f"{family} offers not what {method.name} needs")  # samples tell what an oracle needs
    if "retain_ratio" in method.parameters:
        settings["retain_ratio"] = ratio
    if "codebook" in method.parameters:
        tokens = adapter.encode(tiny.random_images(1, seed=7))[0].views[0].tokens
        settings["codebook"] = Codebook(tokens[::3].clone(), (), adapter.family)
    return method.make(settings, family=adapter.family)


def inputs_of(adapter, family, rows=(0, 1, 2)):
    """Return what the processor makes of some of the prompts, and the numbers of their images."""
    starts = [sum(COUNTS[:i]) for i in range(len(COUNTS))]
    numbers = [n for row in rows for n in range(starts[row], starts[row] + COUNTS[row])]
    images = [pictures_of(family)[n] for n in numbers]
    prompts = [adapter.prompt(WORDS[row], COUNTS[row]) for row in rows]
    inputs = adapter.processor(text=prompts, images=images or None, return_tensors="pt", padding=True)
    dtype = adapter.model.dtype
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}, numbers


def generate(adapter, inputs, pruner=None, numbers=None, **settings):
    if pruner is None:
        return adapter.model.generate(**inputs, **SETTINGS | settings), None
    with pruner(adapter.model, adapter.processor, image_indices=numbers) as pruned:
        return adapter.model.generate(**inputs, **SETTINGS | settings), pruned


def state_of(model):
    """Return what a context might leave behind."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    attention = model.config._attn_implementation, model.get_decoder().config._attn_implementation
    return sorted(vars(model)), hooks, attention, model.generation_config.to_dict()


every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
@every_method
def test_counts_are_what_the_llm_is_fed(method, family):
    """Kept positions ascend, views add up, and the rows that enter the LLM's layers are those counted."""
    adapter, pruner = adapter_of(family), fitting(method, family)
    inputs, numbers = inputs_of(adapter, family)
    seen = []
    layers = adapter.language_model.layers
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0].shape[1]))
        for layer in layers
    ]
    asked = []
    handles.append(
        adapter.language_model.register_forward_pre_hook(
            lambda _m, _a, named: asked.append(named["attention_mask"]), with_kwargs=True
        )
    )
    try:
        output, pruned = generate(adapter, inputs, pruner, numbers, max_new_tokens=1)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(output[:, :-1], inputs["input_ids"])
    images = adapter.encode_pixels(inputs)
    assert len(pruned.kept) == len(images) == len(pruned.n_tokens) == len(pruned.n_retained)
    for image, kept, by_view in zip(images, pruned.kept, pruned.kept_by_view, strict=True):
        assert kept.dtype == torch.int64 and kept.device.type == "cpu"
        assert (kept.diff() > 0).all() and 0 <= int(kept[0]) <= int(kept[-1]) < image.n_tokens
        assert len(by_view) == len(image.views) and sum(map(len, by_view)) == len(kept)
    assert pruned.n_tokens == [adapter.n_placeholders(image) for image in images]
    is_text = inputs["attention_mask"].bool() & (inputs["input_ids"] != adapter.image_token_id)
    fed = asked[0].sum(-1) - is_text.sum(-1)
    n_newlines = [image.n_rows - image.n_tokens for image in images]
    entering = [len(kept) + n for kept, n in zip(pruned.kept, n_newlines, strict=True)]
    assert fed.tolist() == [entering[0], entering[1] + entering[2], 0]
    if method.kind is LastAttention:
        after = [round(n * 0.4) for n in entering]
        n_layers = len(layers)
        means = [(a + (n_layers - 1) * b) / n_layers for a, b in zip(entering, after, strict=True)]
        assert pruned.n_retained == pytest.approx(means)
        if pruner.form == "gathered":
            assert seen[0] > seen[1]
    else:
        assert pruned.n_retained == entering


@every_family
@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_retaining_all_is_plain_generation(method, family, dtype):
    adapter, pruner = adapter_of(family, dtype), fitting(method, family, 1.0)
    inputs, numbers = inputs_of(adapter, family)
    expected = generate(adapter, inputs)[0]
    output, pruned = generate(adapter, inputs, pruner, numbers)
    if (
        method.kind is not LastAttention or dtype == torch.float32
    ):  # whose masks make another kernel round otherwise
        assert torch.equal(output, expected)
    assert output.shape == expected.shape
    assert pruned.n_retained == pruned.n_tokens


@every_family
@every_method
def test_a_result_is_independent_of_batch_and_neighbours(method, family):
    adapter, pruner = adapter_of(family), fitting(method, family)
    inputs, numbers = inputs_of(adapter, family)
    together, pruned = generate(adapter, inputs, pruner, numbers)
    n_before = 0
    for row, count in enumerate(COUNTS):
        own, own_numbers = inputs_of(adapter, family, (row,))
        alone, by_itself = generate(adapter, own, pruner, own_numbers)
        assert torch.equal(alone[0, -N_NEW:], together[row, -N_NEW:])
        for a, b in zip(by_itself.kept, pruned.kept[n_before : n_before + count], strict=True):
            assert torch.equal(a, b)
        n_before += count
    assert torch.equal(together[2, -N_NEW:], generate(adapter, inputs)[0][2, -N_NEW:])  # text only


@every_family
@every_method
def test_the_model_is_left_clean_also_after_an_error(method, family):
    adapter, pruner = adapter_of(family), fitting(method, family)
    inputs, numbers = inputs_of(adapter, family)
    expected, logits = generate(adapter, inputs)[0], adapter.model(**inputs).logits
    before = state_of(adapter.model)
    for position_ids in ("kept", "renumbered"):
        generate(adapter, inputs, dataclasses.replace(pruner, position_ids=position_ids), numbers)
        assert state_of(adapter.model) == before
        assert torch.equal(adapter.model(**inputs).logits, logits)

    def fail(*_arguments):
        raise RuntimeError("inside the LLM")

    handle = adapter.language_model.layers[-1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="inside the LLM"):
        generate(adapter, inputs, pruner, numbers)
    handle.remove()
    assert state_of(adapter.model) == before
    assert torch.equal(generate(adapter, inputs)[0], expected)


@every_method
def test_features_handed_in_are_pruned_as_pixels_are(method):
    adapter, pruner = adapter_of("llava_next"), fitting(method, "llava_next")
    inputs, numbers = inputs_of(adapter, "llava_next")
    expected, from_pixels = generate(adapter, inputs, pruner, numbers)
    images = adapter.encode_pixels(inputs, pruner.signals)
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pruner(adapter.model, adapter.processor) as pruned:
        for _ in range(2):
            pruned.hand_in(images, numbers)
            assert torch.equal(adapter.model.generate(**ids, **SETTINGS), expected)
    assert [own.tolist() for own in pruned.kept] == [own.tolist() for own in from_pixels.kept] * 2
    assert pruned.n_retained == from_pixels.n_retained * 2


@every_method
def test_videos_are_read(method):
    family = "llava_onevision"
    adapter, everything, pruner = adapter_of(family), fitting(method, family, 1.0), fitting(method, family)
    frames = [tiny.random_images(3, (30, 22), seed=1), tiny.random_images(3, (30, 22), seed=5)]
    prompts = [adapter.prompt(words, 0, 1) for words in WORDS[:2]]
    inputs = dict(adapter.processor(text=prompts, videos=frames, return_tensors="pt", padding=True))
    output, pruned = generate(adapter, inputs, everything)
    assert torch.equal(output, generate(adapter, inputs)[0])
    assert pruned.n_retained == pruned.n_tokens
    output, pruned = generate(adapter, inputs, pruner)
    assert [len(views) for views in pruned.kept_by_view] == [3, 3]
    if method.name != "all":
        assert all(few < many for few, many in zip(pruned.n_retained, pruned.n_tokens, strict=True))
    alone = dict(adapter.processor(text=prompts[1:], videos=frames[1:], return_tensors="pt"))
    assert torch.equal(generate(adapter, alone, pruner, [1])[0][0, -N_NEW:], output[1, -N_NEW:])


@every_family
@every_method
def test_what_does_not_serve_a_family_says_so_in_one_line(method, family):
    adapter = adapter_of(family)
    missing = method.needs - {"question"} - OF_SAMPLES - adapter.offers
    if not missing:
        assert fitting(method, family).check(adapter) is None
        return
    with pytest.raises(ParameterError, match="does not serve this one") as error:
        method.make({"retain_ratio": 0.5})(adapter.model).__enter__()
    assert "\n" not in str(error.value)
