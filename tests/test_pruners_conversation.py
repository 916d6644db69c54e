"""Check conversations that go on from a pruned prompt's cache against the same conversations read whole."""

import copy
import dataclasses
import functools
import pickle

import pytest
import tiny
import torch
from families import FAMILIES, IN_CHUNKS
from messages import refused
from pruner_examples import LastAttention
from transformers import DynamicCache, StaticCache

from rcblib.mllm import adapter_for
from rcblib.pruners import Pruner

SETTINGS = {
    "do_sample": False,
    "max_new_tokens": 4,
    "return_dict_in_generate": True,
    "output_logits": True,
}
QUESTIONS = ("What does this image show ?", "How many ?")
SHORTENED = (
    "^past_key_values: got .the cache of prompts that a pruner's context shortened.; accepted: this cache in"
)
ALL = {
    "kept": ("llava", "llava_next", "llava_onevision", "qwen2_5_vl"),
    "renumbered": ("llava", "llava_next", "qwen2_5_vl"),
}


@dataclasses.dataclass(frozen=True)
class ByContent(Pruner):
    """Keep tokens by themselves alone, so that the choice is the same wherever an image comes."""

    retain_ratio: float = 0.4

    def score(self, views, context=None):
        return torch.cat([view.tokens for view in views])[:, 0]


@functools.cache
def adapter_of(family):
    return adapter_for(*FAMILIES[family].build())


@functools.cache
def photos(family):
    return [tiny.random_images(1, size, seed=i)[0] for i, size in enumerate(FAMILIES[family].sizes)]


def inputs_of(family, texts, images=()):
    """Return what a processor makes of a turn of each conversation; the first have an image."""
    adapter = adapter_of(family)
    prompts = [adapter.prompt(text, i < len(images)) for i, text in enumerate(texts)]
    return dict(
        adapter.processor(text=prompts, images=list(images) or None, return_tensors="pt", padding=True)
    )


def pixels_of(family, inputs):
    return {name: inputs[name] for name in adapter_of(family).pixel_inputs if name in inputs}


def then(given, sequences, later):
    """Return ids and mask of a turn, of the answer to it, and of the next turn."""
    n_new = sequences.shape[1] - given["input_ids"].shape[1]
    mask = [
        given["attention_mask"],
        torch.ones(len(sequences), n_new, dtype=torch.long),
        later["attention_mask"],
    ]
    return {"input_ids": torch.cat([sequences, later["input_ids"]], 1), "attention_mask": torch.cat(mask, 1)}


def generate(family, given, **settings):
    adapter = adapter_of(family)
    never = {
        "suppress_tokens": [adapter.image_token_id]
    }  # a placeholder in an answer would be one in the next prompt
    return adapter.model.generate(**given, **SETTINGS | never | settings)


def assert_same(ours, whole):
    assert torch.equal(ours.sequences, whole.sequences)
    for a, b in zip(ours.logits, whole.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def static_cache(family, n=300):
    return StaticCache(adapter_of(family).model.config.get_text_config(), max_cache_len=n)


@pytest.mark.parametrize(("policy", "family"), [(policy, own) for policy in ALL for own in ALL[policy]])
@pytest.mark.parametrize("form", ["grows", "fixed size", pytest.param("chunks", marks=IN_CHUNKS)])
def test_turns_equal_the_conversation_in_one_prompt(family, policy, form):
    """Two conversations of unequal lengths; the second turn shows the first another photo, the third is text."""
    pruner, model = ByContent(position_ids=policy), adapter_of(family).model
    settings = {"prefill_chunk_size": 7} if form == "chunks" else {}
    first = inputs_of(family, QUESTIONS, photos(family)[:2])
    second = inputs_of(family, ("Is there a cat on the left ?", "Describe"), photos(family)[2:])
    third = inputs_of(family, ("left ?", "the red bird ?"))
    with pruner(model) as pruned:
        room = {"past_key_values": static_cache(family)} if form == "fixed size" else {}
        output = generate(family, first, **settings, **room)
        n_full, cache = output.sequences.shape[1], output.past_key_values
        assert cache.get_seq_length() < n_full - 1
        given = then(first, output.sequences, second)
        output = generate(family, given | pixels_of(family, second), past_key_values=cache, **settings)
        assert torch.equal(output.sequences[:, :n_full], given["input_ids"][:, :n_full])
        given = then(given, output.sequences, third)
        output = generate(family, given, past_key_values=output.past_key_values, **settings)
        kept = sum(map(len, pruned.kept))
    order = [photos(family)[i] for i in (0, 2, 1)]
    with pruner(model) as pruned:
        pixels = pixels_of(family, inputs_of(family, ["How"] * 3, order))
        whole = generate(family, given | pixels)
        assert sum(map(len, pruned.kept)) == kept
    assert_same(output, whole)
    assert kept < sum(pruned.n_tokens) / 2


@pytest.fixture(params=["kept", "renumbered"])
def begun(request):
    """Return a pruner, a first turn of two conversations, its output inside a context, and the second turn."""
    family, pruner = "llava", ByContent(position_ids=request.param)
    first = inputs_of(family, QUESTIONS, photos(family)[:2])
    with pruner(adapter_of(family).model):
        output = generate(family, first)
    second = then(first, output.sequences, inputs_of(family, ("Is there a cat ?", "left")))
    return pruner, first, output, second


def whole_of(pruner, first, given):
    with pruner(adapter_of("llava").model):
        return generate("llava", given | pixels_of("llava", first))


def test_a_conversation_goes_on_in_another_context_and_in_two_directions(begun):
    """A copy of the cache, or one that was saved, is a cache of the same prompts."""
    pruner, first, output, second = begun
    model, expected = adapter_of("llava").model, whole_of(pruner, first, second)
    for copied in (copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))):
        with pruner(model):
            cache = copied(output.past_key_values)
            assert_same(generate("llava", second, past_key_values=cache), expected)
    third = then(second, expected.sequences, inputs_of("llava", ("Describe", "How many ?")))
    for given, want in ((third, whole_of(pruner, first, third)),):
        with pruner(model):
            assert_same(generate("llava", given, past_key_values=cache), want)
    cache = output.past_key_values
    cache.batch_select_indices(torch.tensor([1]))
    alone = {name: value[1:] for name, value in second.items()}
    with pruner(model):
        ours = generate("llava", alone, past_key_values=cache)
    assert torch.equal(ours.sequences, expected.sequences[1:])


def test_one_may_give_what_comes_next_alone_or_all_photos_again(begun):
    pruner, first, output, second = begun
    model, expected = adapter_of("llava").model, whole_of(pruner, first, second)
    caches = [copy.deepcopy(output.past_key_values) for _ in range(3)]
    n_cached = output.sequences.shape[1] - 1
    with pruner(model) as pruned:
        new = {"input_ids": second["input_ids"][:, n_cached:], "attention_mask": second["attention_mask"]}
        ours = generate("llava", new, past_key_values=caches[0])
        assert torch.equal(ours.sequences, expected.sequences[:, n_cached:])
        assert_same(
            generate("llava", second | pixels_of("llava", first), past_key_values=caches[1]), expected
        )
        assert pruned.kept == []
        caches[2].crop(-2)  # the last tokens of the answers are read again
        assert caches[2].get_seq_length() == output.past_key_values.get_seq_length() - 2
        assert_same(generate("llava", second, past_key_values=caches[2]), expected)


def test_padding_after_a_shorter_answer_is_left_out(begun):
    pruner, first, output, second = begun
    mask = second["attention_mask"].clone()
    mask[1, first["input_ids"].shape[1] + 2 : output.sequences.shape[1]] = 0  # the second answer ended early
    given = second | {"attention_mask": mask}
    with pruner(adapter_of("llava").model):
        ours = generate("llava", given, past_key_values=output.past_key_values)
    assert_same(ours, whole_of(pruner, first, given))


@pytest.mark.parametrize("make", [DynamicCache, lambda: static_cache("llava")], ids=["grows", "fixed size"])
def test_an_empty_cache_may_be_given_and_used_again(make):
    pruner, model, cache = ByContent(), adapter_of("llava").model, make()
    first = inputs_of("llava", QUESTIONS, photos("llava")[:2])
    never = {"suppress_tokens": [4], "do_sample": False, "max_new_tokens": 4}
    with pruner(model):
        expected = generate("llava", first)
        sequences = model.generate(**first, past_key_values=cache, **never)  # ids alone come back
        assert torch.equal(sequences, expected.sequences)
        second = then(first, sequences, inputs_of("llava", ("Is there a cat ?", "left")))
        ours = generate("llava", second, past_key_values=cache)
    assert_same(ours, whole_of(pruner, first, second))
    cache.reset()
    plain = model.generate(**first, past_key_values=cache, **never)  # empty, it is anybody's
    assert torch.equal(plain, generate("llava", first).sequences)


@pytest.mark.parametrize("policy", ["kept", "renumbered"])
def test_a_photo_may_come_after_a_turn_of_text(policy):
    pruner, model = ByContent(position_ids=policy), adapter_of("llava").model
    first = inputs_of("llava", QUESTIONS)
    later = inputs_of("llava", ("Is there a cat ?", "left"), photos("llava")[:2])
    with pruner(model):
        output = generate("llava", first)
        second = then(first, output.sequences, later)
        ours = generate("llava", second | pixels_of("llava", later), past_key_values=output.past_key_values)
    assert_same(ours, whole_of(pruner, later, second))
    text = then(first, output.sequences, inputs_of("llava", QUESTIONS))
    with pytest.warns(UserWarning, match="1 calls came without images"), pruner(model):
        cache = generate("llava", first).past_key_values
    assert_same(generate("llava", text, past_key_values=cache), generate("llava", text))  # nothing was cut


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("policy", ["kept", "renumbered"])
def test_the_forward_prunes_too_and_goes_on_step_by_step(family, policy):
    pruner, model = ByContent(position_ids=policy), adapter_of(family).model
    first = inputs_of(family, QUESTIONS, photos(family)[:2])
    with pruner(model), torch.no_grad():
        expected = generate(family, first)
        output, mask, answer = model(**first), first["attention_mask"], []
        n_left = output.logits.shape[1]
        for step in range(4):
            torch.testing.assert_close(output.logits[:, -1], expected.logits[step], rtol=0, atol=2e-5)
            answer.append(expected.sequences[:, first["input_ids"].shape[1] + step])
            mask = torch.cat([mask, mask[:, -1:]], 1)
            output = model(
                input_ids=answer[-1][:, None], attention_mask=mask, past_key_values=output.past_key_values
            )
        labels = first["input_ids"].masked_fill(first["input_ids"] == adapter_of(family).image_token_id, -100)
        loss = model(**first, labels=labels).loss
        assert model(**first, logits_to_keep=2).logits.shape[1] == 2
        with refused("^forward: got 'logits_to_keep that are columns of the whole prompt'; accepted: "):
            model(**first, logits_to_keep=torch.tensor([3, 20]))
    assert n_left < first["input_ids"].shape[1] and output.logits.shape[:2] == (2, 1)
    assert output.past_key_values.get_seq_length() == n_left + 4
    assert torch.isfinite(loss)
    with refused(SHORTENED):
        model(input_ids=answer[-1][:, None], past_key_values=output.past_key_values)


def test_a_cache_that_does_not_fit_is_refused_in_one_line(begun):
    pruner, first, output, second = begun
    model, cache = adapter_of("llava").model, output.past_key_values
    with refused(SHORTENED):  # the conversation has been left
        generate("llava", second, past_key_values=cache)
    foreign = model.generate(**first, **SETTINGS).past_key_values
    beams = ByContent(position_ids=pruner.position_ids)
    with beams(model):
        of_beams = generate("llava", first, num_beams=2, output_logits=False).past_key_values
    others = second["input_ids"].clone()
    others[0, -40] += 1
    n = second["input_ids"].shape[1]
    wrong = {
        "past_key_values: got '.* columns from elsewhere'; accepted: an empty cache": (second, foreign),
        "past_key_values: got 'a cache of beam search": (second, of_beams),
        "past_key_values: got 'tuple'; accepted": (second, ()),
        "past_key_values: got 'room for 20 columns'; accepted: a cache with room for": (
            first, static_cache("llava", 20)
        ),
        "input_ids: got 'others from column": (second | {"input_ids": others}, cache),
        "input_ids: got .*accepted: .2, .* or more": (
            {name: value[:, : n // 2] for name, value in second.items()}, cache
        ),
        "input_ids: got '0 image placeholders'; accepted: 36": (
            second | {"pixel_values": first["pixel_values"][:1]}, cache
        ),
    }  # fmt: skip
    with pruner(model):
        for message, (given, own) in wrong.items():
            with refused(message):
                generate("llava", given, past_key_values=own)
        with refused("use_cache: got False"):
            generate("llava", second, past_key_values=cache, use_cache=False, return_dict_in_generate=False)
        later = generate("llava", second, past_key_values=cache)  # as good as before
    policy = {"kept": "renumbered", "renumbered": "kept"}[pruner.position_ids]
    third = then(second, later.sequences, inputs_of("llava", QUESTIONS))
    with dataclasses.replace(pruner, position_ids=policy)(model):
        with refused(f"position_ids: got '{policy}'; accepted: '{pruner.position_ids}'"):
            generate("llava", third, past_key_values=cache)
    with LastAttention(0.5)(model):
        with refused("past_key_values: got .*LastAttention'; accepted: none"):
            generate("llava", third, past_key_values=cache)
        inside = generate("llava", first).past_key_values
    with pruner(model), refused("past_key_values: got .*LastAttention dropped inside the LLM"):
        generate("llava", second, past_key_values=inside)


def test_a_call_that_failed_leaves_no_cache_behind():
    pruner, model, cache = ByContent(), adapter_of("llava").model, DynamicCache()
    first = inputs_of("llava", QUESTIONS, photos("llava")[:2])

    def fail(*_arguments):
        raise RuntimeError("inside the LLM")

    for layer, seen in ((0, 0), (1, 1)):
        handle = model.model.language_model.layers[layer].register_forward_pre_hook(fail)
        with pruner(model), pytest.raises(RuntimeError, match="inside the LLM"):
            generate("llava", first, past_key_values=cache)
        handle.remove()
        assert bool(cache.get_seq_length()) == bool(seen)
    with pruner(model):
        with refused("past_key_values: got 'a cache that a call left unfinished'"):
            generate("llava", first, past_key_values=cache)
    with refused(SHORTENED):
        generate("llava", first, past_key_values=cache)


@pytest.mark.parametrize("layout", ["packed", "flatten"])
@pytest.mark.parametrize("policy", ["kept", "renumbered"])
def test_a_conversation_about_videos_goes_on(layout, policy):
    """The second turn shows one of two a photo; the whole conversation is given its pixels again."""
    family = "llava_onevision"
    adapter, pruner = adapter_of(family), ByContent(layout=layout, position_ids=policy)
    frames = [tiny.random_images(3, (30, 22), seed=seed) for seed in (1, 5)]
    prompts = [adapter.prompt(text, 0, 1) for text in QUESTIONS]
    first = dict(adapter.processor(text=prompts, videos=frames, return_tensors="pt", padding=True))
    never = {"suppress_tokens": [adapter.image_token_id, adapter.video_token_id]}
    later = inputs_of(family, ("Is there a cat ?", "left"), photos(family)[:1])
    with pruner(adapter.model) as pruned:
        output = generate(family, first, **never)
        given = then(first, output.sequences, later)
        new = given | pixels_of(family, later)
        ours = generate(family, new, past_key_values=output.past_key_values, **never)
        assert [len(own) for own in pruned.kept_by_view] == [3, 3, 5]
        assert_same(ours, generate(family, new | pixels_of(family, first), **never))


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": True, "num_return_sequences": 2}, {"prompt_lookup_num_tokens": 2}],
    ids=str,
)
def test_what_was_sampled_or_looked_up_goes_on(settings):
    pruner, model = ByContent(), adapter_of("llava").model
    n = settings.get("num_return_sequences", 1)
    first = inputs_of("llava", QUESTIONS[:1], photos("llava")[:1])
    with pruner(model):
        output = generate("llava", first, **settings)
        each = {name: value.repeat_interleave(n, 0) for name, value in first.items()}
        given = then(each, output.sequences, inputs_of("llava", ("Is there a cat ?", "left")[:n]))
        ours = generate("llava", given, past_key_values=output.past_key_values)
        assert_same(ours, generate("llava", given | pixels_of("llava", each)))
