"""Shared beginnings of prompts: the logits of whole passes, from fewer rows."""

import copy
import threading

import pytest
import tiny
import tiny_qwen
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from rcblib.mllm import adapter_for
from rcblib.mllm.prefix import ROWS_AT_ONCE
from rcblib.mllm.products import LastRows
from rcblib.mllm.prompt import Batch
from rcblib.probe.perturbation import global_inputs, region_inputs, single_token_inputs
from rcblib.records import ParameterError

SIZE = (120, 118)  # pixels; five tokens or more a side in every family

QUESTION = "what is this ?"


def exact_adapter(name):
    # Qwen's photos have nine tokens else, and one window.
    built = tiny_qwen.tiny_qwen(28 * 28 * 30) if name == "qwen2_5_vl" else FAMILIES[name].build()
    model, processor = built
    return adapter_for(model.double(), processor)


@pytest.fixture(scope="module", params=["llava", "llava_next", "llava_onevision", "qwen2_5_vl"])
def exact(request):
    if request.param not in FAMILIES:
        raise KeyError(f"{request.param}: {sorted(FAMILIES)}")
    return exact_adapter(request.param)


@pytest.fixture
def rows_read(exact):
    """List of (prompts, rows) of each pass of the LLM."""
    passes = []
    handle = exact.model.register_forward_pre_hook(
        lambda _module, _args, named: passes.append(tuple(named["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    yield passes
    handle.remove()


def batched(values, size):
    """`itertools.batched`, which Python 3.11 does not have."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def plain(adapter, prompt, visual):
    """One whole pass an input."""
    asked = adapter.read_prompt(prompt)
    with torch.no_grad():
        return torch.cat([adapter.next_token_logits([asked.filled(adapter._as_images(v))]) for v in visual])


def perturbed(adapter):
    """All inputs of the three levels of some positions of a view, as probing builds them."""
    image = adapter.encode(tiny.random_images(1, SIZE, seed=3))[0]
    view, replacement = image.views[0], adapter.replacement_embedding()
    height, width = view.grid
    inner = [(row, column) for row in range(1, height - 1) for column in range(1, width - 1)]
    positions = [row * width + column for row, column in inner]  # no window twice
    others = [None] * (len(image.views) - 1)
    return {
        "whole": [adapter.assemble(image)],
        "single": list(single_token_inputs(view.tokens, positions)),
        "region": [r for each in region_inputs(view.tokens, view.grid, positions, replacement) for r in each],
        "global": [
            adapter.assemble(image, [tokens, *others])
            for tokens in global_inputs(view.tokens, view.grid, positions, replacement)
        ],
    }


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_logits_are_those_of_whole_passes(exact, batch_size):
    prompt, prefix = exact.prompt(QUESTION), exact.shared_prefix()
    for level, visual in perturbed(exact).items():
        expected = plain(exact, prompt, visual).float()
        found = exact.first_token_logits(prompt, visual, batch_size=batch_size, prefix=prefix)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, msg=level)
        alone = exact.first_token_logits(prompt, visual, batch_size=batch_size)
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)


def test_what_inputs_begin_with_is_read_once(exact, rows_read):
    prompt, prefix, inputs = exact.prompt(QUESTION), exact.shared_prefix(), perturbed(exact)
    before = len(exact.read_prompt(prompt).expanded([0]).ids)
    start = exact.read_prompt(prompt).spans[0][0]
    exact.first_token_logits(prompt, inputs["whole"], prefix=prefix)
    exact.first_token_logits(prompt, inputs["single"], batch_size=64, prefix=prefix)
    exact.first_token_logits(prompt, inputs["global"], batch_size=2, prefix=prefix)
    n_whole = before + len(inputs["whole"][0])
    assert rows_read[0] == (1, n_whole)
    assert rows_read[1] == (len(inputs["single"]), before + 1 - start)  # the text before the token is known
    whole = inputs["whole"][0].rows
    differs = [start + int((each.rows != whole).any(-1).nonzero()[0]) for each in inputs["global"]]
    expected = [(len(own), n_whole - min(own)) for own in batched(differs, 2)]
    assert rows_read[2:] == expected
    assert expected[-1][1] < expected[0][1]


def half_adapter():
    model, processor = FAMILIES["llava"].build()
    return adapter_for(model.bfloat16(), processor)


def test_half_precision_reads_every_prompt_whole():
    """What was recorded in half precision is found again bit for bit."""
    half = half_adapter()
    prompt, visual = half.prompt(QUESTION), perturbed(half)["global"]
    found = half.first_token_logits(prompt, visual, batch_size=4)
    asked = half.read_prompt(prompt)
    filled = [asked.filled(half._as_images(each)) for each in visual]
    expected = [half.next_token_logits(filled[i : i + 4]).float() for i in range(0, len(filled), 4)]
    assert torch.equal(found, torch.cat(expected).cpu())


def test_beginnings_are_shared_in_half_precision_where_that_is_asked_for():
    """Both ways are as far from what float32 says: they round in another order."""
    half = half_adapter()
    prompt, visual = half.prompt(QUESTION), perturbed(half)["global"]
    exact = adapter_for(copy.deepcopy(half.model).float(), half.processor)
    said = exact.first_token_logits(prompt, visual, prefix=exact.shared_prefix("never"))
    shared, whole = (
        half.first_token_logits(prompt, visual, batch_size=4, prefix=half.shared_prefix(sharing))
        for sharing in ("always", "never")
    )
    assert 0 < (shared - whole).abs().max() < 0.02 * said.abs().max()
    assert (shared - said).abs().mean() < 1.5 * (whole - said).abs().mean()
    with pytest.raises(ParameterError, match="sharing: got 'often'; accepted: auto, always, never"):
        half.shared_prefix("often")


def test_what_is_never_shared_is_read_whole(exact, rows_read):
    prompt, inputs = exact.prompt(QUESTION), perturbed(exact)["single"][:4]
    n_whole = len(exact.read_prompt(prompt).expanded([1]).ids)
    exact.first_token_logits(prompt, inputs, batch_size=3, prefix=exact.shared_prefix("never"))
    assert rows_read == [(3, n_whole), (1, n_whole)]


def test_only_the_last_row_passes_what_follows_the_last_attention(exact):
    prompt, inputs = exact.prompt(QUESTION), perturbed(exact)["global"][:3]
    asked = exact.read_prompt(prompt)
    filled = [asked.filled(exact._as_images(each)) for each in inputs]
    whole, layers, rows = exact.next_token_logits(filled), exact.language_model.layers, []
    handles = [
        layer.mlp.register_forward_hook(lambda _module, _given, made: rows.append(made.shape[1]))
        for layer in layers
    ]
    with LastRows(layers):
        found = exact.next_token_logits(filled)
        others = []
        other = threading.Thread(
            target=lambda: others.append(exact.model(**as_arguments(exact, filled)).logits)
        )
        other.start()
        other.join()
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-9)
    n = max(map(len, filled))
    assert rows == [*[n] * (len(layers) - 1), 1, *[n] * len(layers)]
    assert others[0].shape[1] == n


def as_arguments(adapter, filled):
    batch = Batch(filled)
    embeds = batch.padded(each.embeds(adapter.embed).detach() for each in filled)
    mask, places = batch.attention_mask, batch.position_ids
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": places}


def test_products_of_float32_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    layers = [*FAMILIES["llava"].build()[0].model.language_model.layers]
    for shape in ((3, 40, 64), (2, 64), (200, 64)):
        rows, weight = torch.randn(shape, generator=generator), torch.randn(96, 64, generator=generator)
        for bias in (None, torch.randn(96, generator=generator)):
            with torch.no_grad(), LastRows(layers):
                found = torch.nn.functional.linear(rows, weight, bias)
            expected = torch.nn.functional.linear(
                rows.double(), weight.double(), None if bias is None else bias.double()
            )
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows_at_once", [1, 100])
def test_batches_are_as_large_as_pays_where_nobody_says_how_large(rows_at_once, monkeypatch):
    adapter, sizes = exact_adapter("llava"), []
    prompt, visual = adapter.prompt(QUESTION), perturbed(adapter)["single"]
    asked = adapter.read_prompt(prompt)
    n_own = len(asked.ids) - asked.spans[0][0]
    monkeypatch.setitem(ROWS_AT_ONCE, "cpu", rows_at_once)
    handle = adapter.model.register_forward_pre_hook(
        lambda _module, _args, named: sizes.append(len(named["inputs_embeds"])), with_kwargs=True
    )
    adapter.first_token_logits(prompt, visual)
    handle.remove()
    most = max(1, rows_at_once // n_own)
    assert sum(sizes) >= len(visual) and set(sizes) <= {1, most, len(visual) % most}


def test_compiled_passes_say_the_same(monkeypatch):
    """Traced as on a GPU; what the trace is turned into there needs one."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **settings: compiler(model, backend="eager", **settings)
    )
    adapter = exact_adapter("llava")
    prompt, inputs = adapter.prompt(QUESTION), perturbed(adapter)
    prefix = adapter.shared_prefix(compiled=True)
    found = adapter.first_token_logits(prompt, inputs["single"][:4], prefix=prefix)
    expected = plain(adapter, prompt, inputs["single"][:4]).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_rows_at_other_positions_are_not_shared(exact, rows_read):
    """The same rows read elsewhere have other keys."""
    prompt, prefix = exact.prompt(QUESTION), exact.shared_prefix()
    image = exact.encode(tiny.random_images(1, (24, 24), seed=1))[0]
    whole = exact.assemble(image)
    left = exact.gather(image, [torch.arange(0, v.n_tokens, 2) for v in image.views])
    for visual in (whole, left, whole):
        found = exact.first_token_logits(prompt, [visual], prefix=prefix)
        torch.testing.assert_close(found, plain(exact, prompt, [visual]).float(), rtol=0, atol=1e-6)
    assert rows_read[-2][1] < rows_read[0][1]  # the third call knew the first one's rows


@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_batches_are_halved_until_they_fit(message, monkeypatch):
    exact, tried = exact_adapter("llava"), []
    prompt, visual = exact.prompt(QUESTION), perturbed(exact)["single"]
    expected = exact.first_token_logits(prompt, visual)
    forward = exact.model.forward

    def small(*args, **named):
        tried.append(len(named["inputs_embeds"]))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError(message) if "CUDA" in message else RuntimeError(message)
        return forward(*args, **named)

    monkeypatch.setattr(exact.model, "forward", small)
    prefix = exact.shared_prefix()
    assert len(visual) == 16
    found = exact.first_token_logits(prompt, visual, batch_size=16, prefix=prefix)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert tried == [1, 16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    exact.first_token_logits(prompt, visual[:4], batch_size=16, prefix=prefix)
    assert tried[-2:] == [2, 2]  # what does not fit is not tried again
    monkeypatch.setattr(exact.model, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exact.first_token_logits(prompt, visual)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=0, max_size=6), min_size=1, max_size=7),
    st.integers(1, 4),
)
def test_any_rows_in_any_order(inputs, batch_size):
    """Inputs of few different rows begin alike in all ways."""
    exact = LLAVA
    known = torch.randn(3, exact.d_model, generator=torch.Generator().manual_seed(0)).double()
    visual = [known[torch.tensor(rows, dtype=torch.long)] for rows in inputs]
    prompt, prefix = exact.prompt(QUESTION), exact.shared_prefix()
    for _ in range(2):
        found = exact.first_token_logits(prompt, visual, batch_size=batch_size, prefix=prefix)
        torch.testing.assert_close(found, plain(exact, prompt, visual).float(), rtol=0, atol=1e-6)


LLAVA = exact_adapter("llava")
