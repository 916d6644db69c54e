"""Check dropping inside the LLM: both forms against each other, and against layers called by hand."""

import pytest
import tiny
import tiny_qwen
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rcblib.mllm.layer_state import Spans
from rcblib.mllm.layers import dropping
from rcblib.mllm.reduced import Reduced
from rcblib.records import ParameterError, UnsupportedModelError

TEXT = tiny.TINY_TEXT | {"num_hidden_layers": 4}
N_COLUMNS, N_NEW = 20, 5
LENGTHS = (20, 13, 16)
SPANS = Spans(3, N_COLUMNS, ((0, torch.arange(2, 9)), (0, torch.arange(11, 16)), (1, torch.arange(8, 17))))
"""Two images, one, and a prompt of text only."""


def build(name, dtype=torch.float32, attention="sdpa"):
    """Return a model of four layers and its decoder."""
    if name == "qwen2_5_vl":
        text = tiny_qwen.TINY_TEXT | {"vocab_size": 80, "num_hidden_layers": 4}
        model = tiny_qwen.build(tiny_qwen.TINY_VISION, text, tiny_qwen.TINY_IDS)[0]
        decoder = model.model.language_model
    else:
        kind, config = {
            "llama": (LlamaForCausalLM, LlamaConfig),
            "qwen2": (Qwen2ForCausalLM, Qwen2Config),
        }[name]
        model = tiny.endless(kind(config(**TEXT)), tiny.TINY_IDS)
        decoder = model.model
    model.set_attn_implementation(attention)
    return model.to(dtype).eval(), decoder


def inputs(n_axes=1, rows=(0, 1, 2)):
    ids = torch.randint(8, 60, (3, N_COLUMNS), generator=torch.Generator().manual_seed(0))
    mask = torch.stack([torch.arange(N_COLUMNS) >= N_COLUMNS - length for length in LENGTHS]).long()
    given = {"input_ids": ids[list(rows)], "attention_mask": mask[list(rows)]}
    if n_axes == 3:  # positions that differ between the axes, as an image's do
        places = (mask.cumsum(-1) - 1).clamp(min=0)[list(rows)]
        given["position_ids"] = torch.stack([places, places + places % 3, places + places % 2])
    return given


def largest(n):
    """Keep of each image the rows that the last token attends to most, as FastV does."""

    def choose(state):
        last = state.attention.mean(0)[-1]
        return [Reduced(last[span].topk(min(n, len(span))).indices.sort().values) for span in state.spans]

    return choose


def every_third(state):
    """Keep every third row, with a mean of it and the dropped one behind it in its place, as methods that merge do."""
    reduced = []
    for span in state.spans:
        kept = torch.arange(0, len(span), 3)
        behind = (kept + 1).clamp(max=len(span) - 1)
        reduced.append(
            Reduced(kept, (state.hidden_states[span[kept]] + state.hidden_states[span[behind]]) / 2)
        )
    return reduced


METHODS = {
    "attention": (largest(3), (2,), 1),
    "twice": (lambda state: largest(5 if state.layer == 1 else 2)(state), (1, 3), 2),
    "twice, ahead": (lambda state: largest(5 if state.layer == 1 else 2)(state), (1, 3), 1, "next"),
    "merging": (every_third, (1, 2), 0),
    "nothing": (lambda state: [Reduced(torch.arange(len(span))) for span in state.spans], (1,), 0),
    "everything": (lambda state: [Reduced(torch.empty(0, dtype=torch.long)) for _ in state.spans], (2,), 0),
}


def answers(model, decoder, given, form=None, method="attention", spans=SPANS, n_renumbered=0, **settings):
    """Return what is generated, and the logits of every step."""
    settings = {"max_new_tokens": N_NEW, "do_sample": False} | settings
    settings |= {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    if form is None:
        output = model.generate(**given, **settings)
        return output.sequences, torch.stack(output.logits), None
    choose, layers, n_rows, *which = METHODS[method]
    which = which[0] if which else "before"
    rows = {"n_attention_rows": n_rows, "attention_of": which, "n_renumbered": n_renumbered}
    with dropping(decoder, spans, choose, layers, form=form, **rows) as counts:
        output = model.generate(**given, **settings)
    return output.sequences, torch.stack(output.logits), counts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen2_5_vl"])
def test_both_forms_give_the_same_answers(name, attention, method):
    """In float64 logits, which `generate` hands out as float32, are equal: what is left in float32 is rounding.

    Eager attention takes its softmax in float32 whatever the dtype, so only sdpa can show that.
    """
    given = inputs(3 if name == "qwen2_5_vl" else 1)
    exact = [(torch.float64, 0.0)] if attention == "sdpa" else []
    for dtype, tolerance in [*exact, (torch.float32, 1e-4)]:
        model, decoder = build(name, dtype, attention)
        masked = answers(model, decoder, given, "masked", method)
        gathered = answers(model, decoder, given, "gathered", method)
        torch.testing.assert_close(gathered[1], masked[1], rtol=0, atol=tolerance)
        assert torch.equal(gathered[0], masked[0])
        assert gathered[2].by_layer == masked[2].by_layer
        plain = answers(model, decoder, given)
        if method == "nothing":
            torch.testing.assert_close(gathered[1], plain[1], rtol=0, atol=tolerance)
        else:
            assert (gathered[1][0, :2] - plain[1][0, :2]).abs().amax(-1).min() > 1e-3
        torch.testing.assert_close(gathered[1][:, 2], plain[1][:, 2], rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", ["gathered", "masked"])
@pytest.mark.parametrize("name", ["llama", "qwen2_5_vl"])
def test_a_batch_answers_as_its_prompts_alone(name, form):
    n_axes = 3 if name == "qwen2_5_vl" else 1
    model, decoder = build(name, torch.float64)
    together = answers(model, decoder, inputs(n_axes), form, "twice")
    for row, images in ((0, SPANS.images[:2]), (1, SPANS.images[2:])):
        spans = Spans(1, N_COLUMNS, tuple((0, columns) for _, columns in images))
        alone = answers(model, decoder, inputs(n_axes, [row]), form, "twice", spans)
        torch.testing.assert_close(alone[1][:, 0], together[1][:, row], rtol=0, atol=1e-9)


def test_rows_are_counted_layer_by_layer():
    model, decoder = build("llama")
    counts = answers(model, decoder, inputs(), "gathered", "twice")[2]
    assert counts.by_layer == [[7, 5, 5, 2], [5, 5, 5, 2], [9, 5, 5, 2]]
    assert counts.means == [4.75, 4.25, 5.25]


def by_hand(model, decoder, ids, spans, is_renumbered):
    """Run two layers on everything, take rows of the prompt out, run the others on what is left; return logits."""
    n = ids.shape[1]
    hidden = decoder.embed_tokens(ids)
    rotation = decoder.rotary_emb(hidden, position_ids=torch.arange(n)[None])
    causal = torch.full((1, 1, n, n), -1e300, dtype=torch.float64).triu(1)
    weights = []
    handle = decoder.layers[1].self_attn.register_forward_hook(
        lambda _m, _a, output: weights.append(output[1])
    )
    for layer in decoder.layers[:2]:
        hidden = layer(hidden, attention_mask=causal, position_embeddings=rotation)
    handle.remove()
    last = weights[0][0].mean(0)[N_COLUMNS - 1]
    left = torch.ones(n, dtype=torch.bool)
    for _, columns in spans.images:
        left[columns] = False
        left[columns[last[columns].topk(3).indices]] = True
    n_left = int(left.sum())
    hidden, rotation = hidden[:, left], tuple(part[:, left] for part in rotation)
    if is_renumbered:
        rotation = decoder.rotary_emb(hidden, position_ids=torch.arange(n_left)[None])
    for layer in decoder.layers[2:]:
        hidden = layer(hidden, attention_mask=causal[:, :, :n_left, :n_left], position_embeddings=rotation)
    return model.lm_head(decoder.norm(hidden))[0, -1].double()


@pytest.mark.parametrize("n_renumbered", [0, 1], ids=["kept", "renumbered"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_layers_called_by_hand_give_the_same_logits(name, n_renumbered):
    """Also of tokens behind the prompt, which go on where it ended, or where what is left of it ends."""
    model, decoder = build(name, torch.float64)
    given = {key: value[:, :] for key, value in inputs(rows=[0]).items()}
    spans = Spans(1, N_COLUMNS, SPANS.images[:2])
    for form in ("gathered", "masked"):
        ids, logits, _ = answers(model, decoder, given, form, "attention", spans, n_renumbered)
        model.set_attn_implementation("eager")
        for n_new in range(3):
            with torch.no_grad():
                expected = by_hand(model, decoder, ids[:, : N_COLUMNS + n_new], spans, bool(n_renumbered))
            torch.testing.assert_close(logits[n_new, 0].double(), expected, rtol=0, atol=1e-5)
        model.set_attn_implementation("sdpa")
    if n_renumbered:
        kept = answers(model, decoder, given, "gathered", "attention", spans)[1]
        assert (kept[0] - logits[0]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen2_5_vl"])
def test_renumbered_rows_of_a_batch_are_those_of_single_prompts(name):
    model, decoder = build(name, torch.float64)
    n_axes = 3 if name == "qwen2_5_vl" else 1
    given = inputs()
    if n_axes == 3:  # prompts that are numbered the same on all axes
        given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
    found = {}
    for form in ("gathered", "masked"):
        found[form] = answers(model, decoder, given, form, "twice, ahead", SPANS, n_axes)[1]
    torch.testing.assert_close(found["gathered"], found["masked"], rtol=0, atol=1e-9)
    own = {key: value[..., 1:2, :] for key, value in given.items()}
    spans = Spans(1, N_COLUMNS, tuple((0, columns) for _, columns in SPANS.images[2:]))
    alone = answers(model, decoder, own, "gathered", "twice, ahead", spans, n_axes)[1]
    torch.testing.assert_close(alone[:, 0], found["gathered"][:, 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("which", "layer"), [("before", 1), ("next", 2)])
def test_attention_is_that_of_the_layer_before_or_next(attention, which, layer):
    model, decoder = build("qwen2", attention=attention)
    seen = []

    def choose(state):
        seen.append(state.attention)
        return METHODS["nothing"][0](state)

    given = inputs(rows=[1])
    spans = Spans(1, N_COLUMNS, ((0, SPANS.images[2][1]),))
    with dropping(decoder, spans, choose, (2,), n_attention_rows=2, attention_of=which), torch.no_grad():
        model(**given)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**given, output_attentions=True).attentions[layer][0, :, -2:, -13:]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["gathered", "masked"])
@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3}, {"use_cache": False}, {"do_sample": True, "num_return_sequences": 2}],
    ids=str,
)
def test_generation_settings_work(form, settings):
    model, decoder = build("llama", torch.float64)
    if settings.get("do_sample"):
        settings = settings | {"temperature": 1e-6}
    expected = answers(model, decoder, inputs(), "masked")[0]
    output = answers(model, decoder, inputs(), form, **settings)[0]
    if "num_beams" in settings:
        expected = answers(model, decoder, inputs(), "masked", **settings)[0]
    n_each = len(output) // 3
    assert torch.equal(output[::n_each], expected)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_rows_are_chosen_once_for_a_prompt_s_beams(settings):
    """A method that draws gives every beam the same rows, so that beams may change places."""
    model, decoder = build("llama", torch.float64)
    found = []
    for form in ("masked", "gathered"):
        calls, generator = [], torch.Generator().manual_seed(0)

        def draw(state, calls=calls, generator=generator):
            calls.append(state.layer)
            drawn = [torch.randperm(len(span), generator=generator)[:2].sort().values for span in state.spans]
            rows = [
                state.hidden_states[span[kept]] * 2 for span, kept in zip(state.spans, drawn, strict=True)
            ]
            return [Reduced(kept, own) for kept, own in zip(drawn, rows, strict=True)]

        with dropping(decoder, SPANS, draw, (1, 3), form=form):
            found.append(
                model.generate(**inputs(), max_new_tokens=N_NEW, do_sample=False, pad_token_id=0, **settings)
            )
        assert calls == [1, 1, 3, 3]
    assert torch.equal(*found)


def wrong(change):
    """Return a method that keeps the first two rows of every image, but for a change."""
    return lambda state: change([Reduced(torch.arange(2)) for _ in state.spans])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda good: good[:-1], "choose: got '0 of them'; accepted: a sequence of 1 Reduced, from wrong"),
        (lambda good: [*good, good[0]], "choose: got '2 of them'"),
        (lambda good: None, "choose: got 'NoneType'"),
        (lambda good: [own.positions for own in good], "choose: got 'list'"),
        (
            lambda good: [Reduced(torch.tensor([0, 9]))],
            r"positions: got \[0, 9\]; accepted: ascending .* 9 tokens",
        ),
        (lambda good: [Reduced(torch.tensor([3, 1]))], r"positions: got \[3, 1\]"),
        (lambda good: [Reduced(torch.tensor([1, 1]))], r"positions: got \[1, 1\]"),
        (lambda good: [Reduced(torch.arange(2), torch.zeros(2, 3))], r"rows: got \(2, 3\)"),
    ],
)
def test_what_is_chosen_is_checked(change, message):
    model, decoder = build("llama")
    spans = Spans(1, N_COLUMNS, ((0, SPANS.images[2][1]),))
    with pytest.raises(ParameterError, match=message), dropping(decoder, spans, wrong(change), (1,)):
        model(**inputs(rows=[1]))


def test_a_cache_of_fixed_size_works_masked_and_is_refused_gathered():
    model, decoder = build("llama", torch.float64)
    fixed = {"cache_implementation": "static", "disable_compile": True}
    masked = answers(model, decoder, inputs(), "masked", **fixed)
    torch.testing.assert_close(masked[1], answers(model, decoder, inputs(), "masked")[1], rtol=0, atol=1e-9)
    with pytest.raises(ParameterError, match="past_key_values: got 'StaticLayer'"):
        answers(model, decoder, inputs(), "gathered", **fixed)
    assert not any(layer._forward_pre_hooks for layer in decoder.layers)


def test_the_cache_holds_what_stays():
    model, decoder = build("qwen2")
    with dropping(decoder, SPANS, *METHODS["attention"][:2], n_attention_rows=1), torch.no_grad():
        cache = model(**inputs(), use_cache=True).past_key_values
    # The longest: 20 - 7 - 5 + 3 + 3, or the text-only prompt, all 16 of whose rows stay.
    assert [layer.keys.shape[-2] for layer in cache.layers] == [20, 20, 16, 16]


def test_hooks_leave_after_an_error_too():
    model, decoder = build("llama")

    def fail(state):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), dropping(decoder, SPANS, fail, (1,)):
        model(**inputs())
    assert not any(layer._forward_pre_hooks for layer in decoder.layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "moved"}, "form: got 'moved'"),
        ({"layers": (0,)}, r"layers: got \[0\]; accepted: layers from 1 to 3"),
        ({"layers": (4,)}, r"layers: got \[4\]"),
        ({"layers": ()}, r"layers: got \[\]"),
    ],
)
def test_settings_are_checked(change, message):
    model, decoder = build("llama")
    given = {"layers": (1,), "form": "masked"} | change
    with pytest.raises(ParameterError, match=message), dropping(decoder, SPANS, every_third, **given):
        pass


def test_other_attention_and_prompts_in_parts_are_refused():
    model, decoder = build("llama")
    with pytest.raises(ParameterError, match="prefill_chunk_size"):
        answers(model, decoder, inputs(), "masked", prefill_chunk_size=7)
    decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="flash_attention_2"):
        with dropping(decoder, SPANS, every_third, (1,)):
            pass
