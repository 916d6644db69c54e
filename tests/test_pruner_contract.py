"""Check what every registered pruner owes to every family: a method is a line in the registry, a family a fixture."""

import dataclasses
import functools

import pytest
import tiny
import torch
from families import FAMILIES
from pruner_examples import scorer_for
from tiny_clip import text_tower

from rcblib.codebook.codebook import Codebook
from rcblib.mllm import adapter_for
from rcblib.pruners import PRUNERS
from rcblib.pruners.context import OF_SAMPLES
from rcblib.pruners.fastv import FastV
from rcblib.pruners.registry import Method
from rcblib.records import ParameterError

METHODS = PRUNERS | {"fastv, masked": Method("fastv", FastV, "FastV, masked", settings={"form": "masked"})}
SMALL = {"fastv": {"layer": 1}, "sparsevlm": {"layers": (1,)}, "pyramiddrop": {"layers": (1,)}}
"""Settings for LLMs of two layers."""
WITHOUT_WHOLE = {"prumerge_plus"}
"""Methods whose budget is the picture's own, so that none retains everything."""
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
    """Return a pruner, or skip where it does not serve the family (checked by itself) or only samples can tell."""
    adapter, settings = adapter_of(family), dict(SMALL.get(method.name, {}))
    if method.needs & OF_SAMPLES:
        pytest.skip("samples tell what an oracle needs")
    if ratio == 1.0 and method.name in WITHOUT_WHOLE:
        pytest.skip(f"{method.name} has no budget that retains everything")
    if "retain_ratio" in method.parameters:
        settings["retain_ratio"] = ratio
    if method.name == "pooled" and ratio == 1.0:
        settings["side"] = 1
    if "text_tower" in method.parameters:
        settings["text_tower"] = text_tower().name
    if "codebook" in method.parameters:
        tokens = adapter.encode(tiny.random_images(1, seed=7))[0].views[0].tokens
        clusters = {"clusters": [i % 4 for i in range(len(tokens[::3]))]}
        settings["codebook"] = Codebook(tokens[::3].clone(), (), adapter.family, metadata=clusters)
    if "scorer" in method.parameters:
        settings["scorer"] = scorer_for(adapter)
    pruner = method.make(settings, family=adapter.family)
    if not serves(method, adapter):
        pytest.skip(f"{method.name} does not serve {family}")
    return pruner


def serves(method, adapter):
    """Tell whether a method serves a model: it has all signals and, where asked for, CLIP's vision encoder."""
    has_clip = adapter.model.config.vision_config.model_type == "clip_vision_model"
    return method.needs - {"question"} <= adapter.offers and (
        has_clip or "text_tower" not in method.parameters
    )


class Inputs(dict):
    """What the processor makes of some of the prompts."""

    def __init__(self, adapter, family, rows, resize=None):
        images = [[pictures_of(family)[n] for n in numbers_of((row,))] for row in rows]
        if resize is not None:
            images = [resize(own) for own in images]
        prompts = [adapter.prompt(WORDS[row], COUNTS[row]) for row in rows]
        images = [picture for own in images for picture in own] or None
        made = adapter.processor(text=prompts, images=images, return_tensors="pt", padding=True)
        dtype = adapter.model.dtype
        super().__init__({k: v.to(dtype) if v.is_floating_point() else v for k, v in made.items()})
        self.again = lambda resize: Inputs(adapter, family, rows, resize)


def numbers_of(rows):
    starts = [sum(COUNTS[:i]) for i in range(len(COUNTS))]
    return [n for row in rows for n in range(starts[row], starts[row] + COUNTS[row])]


def inputs_of(adapter, family, rows=(0, 1, 2), pruner=None):
    """Return inputs, of smaller pictures where a pruner resizes them, and the numbers of their images."""
    resize = None
    if pruner is not None and pruner.resizes:
        resize = functools.partial(pruner.resize, adapter=adapter)
    return Inputs(adapter, family, rows, resize), numbers_of(rows)


def generate(adapter, inputs, pruner=None, numbers=None, **settings):
    if pruner is None:
        return adapter.model.generate(**inputs, **SETTINGS | settings), None
    with pruner(adapter.model, adapter.processor, image_indices=numbers) as pruned:
        if pruner.resizes and isinstance(inputs, Inputs):
            inputs = inputs.again(pruned.resize)
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
    inputs, numbers = inputs_of(adapter, family, pruner=pruner)
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
    if pruner.acts_inside:
        if method.name != "sparsevlm":  # which merges some more
            after = [round(n * 0.4) for n in entering]
            means = [(a + b) / 2 for a, b in zip(entering, after, strict=True)]
            assert pruned.n_retained == pytest.approx(means)
        read = sum(pruned.n_retained[1:]) * 2 - sum(
            entering[1:]
        )  # of the longest prompt, in the second layer
        if pruner.form == "gathered":
            assert seen[1] - int(is_text[1].sum()) == read < entering[1] + entering[2]
    else:
        assert pruned.n_retained == entering


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float32) for family in FAMILIES]
    + [("llava_next", torch.float16), ("llava_onevision", torch.bfloat16), ("qwen2_5_vl", torch.bfloat16)],
    ids=str,
)
@every_method
def test_retaining_all_is_plain_generation(method, family, dtype):
    adapter, pruner = adapter_of(family, dtype), fitting(method, family, 1.0)
    inputs, numbers = inputs_of(adapter, family)
    expected = generate(adapter, inputs)[0]
    output, pruned = generate(adapter, inputs, pruner, numbers)
    if not pruner.acts_inside or dtype == torch.float32:  # whose masks make another kernel round otherwise
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
    inputs, numbers = inputs_of(adapter, "llava_next", pruner=pruner)
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
@pytest.mark.parametrize(
    "settings", [{"scope": "image"}, {"layout": "flatten"}, {"position_ids": "kept"}], ids=str
)
def test_budgets_of_a_whole_image_other_layouts_and_positions_work(method, settings):
    adapter, pruner = adapter_of("llava_next"), fitting(method, "llava_next")
    pruner = dataclasses.replace(pruner, **settings)
    inputs, numbers = inputs_of(adapter, "llava_next", pruner=pruner)
    together, pruned = generate(adapter, inputs, pruner, numbers)
    for image, kept in zip(adapter.encode_pixels(inputs), pruned.kept, strict=True):
        assert (kept.diff() > 0).all() and int(kept[-1]) < image.arranged(pruner.layout).n_tokens
        has_share = pruner.asked_share is not None and not pruner.acts_inside and not pruner.resizes
        if settings == {"scope": "image"} and has_share:
            assert len(kept) == round(image.n_tokens * pruner.asked_share)
    own, own_numbers = inputs_of(adapter, "llava_next", (1,), pruner)
    assert torch.equal(generate(adapter, own, pruner, own_numbers)[0][0, -N_NEW:], together[1, -N_NEW:])


@every_method
def test_videos_are_read(method):
    family = "llava_onevision"
    adapter, pruner = adapter_of(family), fitting(method, family)
    frames = [tiny.random_images(3, (30, 22), seed=1), tiny.random_images(3, (30, 22), seed=5)]
    prompts = [adapter.prompt(words, 0, 1) for words in WORDS[:2]]

    def answer(pruner, rows=(0, 1), numbers=None):
        with pruner(adapter.model, adapter.processor, image_indices=numbers) as pruned:
            videos = [pruned.resize(frames[row]) for row in rows]
            text = [prompts[row] for row in rows]
            inputs = dict(adapter.processor(text=text, videos=videos, return_tensors="pt", padding=True))
            return adapter.model.generate(**inputs, **SETTINGS), pruned

    if pruner.signals:  # frames are pooled, and have none
        with pytest.raises(ParameterError, match="views without it") as error:
            answer(pruner)
        assert "\n" not in str(error.value)
        return
    inputs = dict(adapter.processor(text=prompts, videos=frames, return_tensors="pt", padding=True))
    output, pruned = answer(fitting(method, family, 1.0))
    assert torch.equal(output, generate(adapter, inputs)[0])
    assert pruned.n_retained == pruned.n_tokens
    output, pruned = answer(pruner)
    assert [len(views) for views in pruned.kept_by_view] == [3, 3]
    if method.name != "all":
        assert all(few < many for few, many in zip(pruned.n_retained, pruned.n_tokens, strict=True))
    assert torch.equal(answer(pruner, (1,), [1])[0][0, -N_NEW:], output[1, -N_NEW:])


@every_family
@every_method
def test_what_does_not_serve_a_family_says_so_in_one_line(method, family):
    adapter = adapter_of(family)
    if method.needs & OF_SAMPLES or serves(method, adapter):
        return
    settings = {"retain_ratio": 0.5} if "retain_ratio" in method.parameters else {}
    if "text_tower" in method.parameters:
        settings["text_tower"] = text_tower().name
    with pytest.raises(
        ParameterError, match="does not serve this one|one whose vision encoder is CLIP's"
    ) as error:
        method.make(settings)(adapter.model).__enter__()
    assert "\n" not in str(error.value)
