"""Check every adapter against one contract; a new family is one entry of `families.FAMILIES`."""

import ast
import inspect
import itertools
import math
import re

import pytest
import tiny
import torch
from families import FAMILIES, PAGE, REPOSITORY, blocks_of
from messages import one_line

from rcblib.mllm import ADAPTERS, adapter_for, load_model
from rcblib.mllm.encoder import HAS_CLS
from rcblib.mllm.given import GivenPrompts
from rcblib.mllm.prompt import VisualRows
from rcblib.records import NEWLINE, ParameterError, UnsupportedModelError
from rcblib.tensors.geometry import rank_by_cls

QUESTION = "What does this image show ?"

# The examples of the page on adding a family pass the contract as they stand there; other tests know nothing of them.
*EXAMPLES, USE = blocks_of(PAGE)
OWN = dict(ADAPTERS)
REGISTRIES = ADAPTERS, HAS_CLS, FAMILIES
BEFORE = [dict(registry) for registry in REGISTRIES]
for block in EXAMPLES:
    exec(block, {"__name__": "example"})
ADDED = [
    {name: registry.pop(name) for name in [*registry] if name not in before}
    for registry, before in zip(REGISTRIES, BEFORE, strict=True)
]
TESTED = FAMILIES | ADDED[-1]


@pytest.fixture(scope="module", autouse=True)
def examples():
    """Register the page's adapter and encoder while this module is tested."""
    for registry, added in zip(REGISTRIES, ADDED, strict=True):
        registry.update(added)
    yield
    for registry, added in zip(REGISTRIES, ADDED, strict=True):
        for name in added:
            del registry[name]


@pytest.fixture(scope="module", params=TESTED)
def family(request):
    return TESTED[request.param]


@pytest.fixture(scope="module")
def adapter(family):
    return adapter_for(*family.build())


@pytest.fixture(scope="module")
def exact(family):
    """The model in double precision, so that what is equal is equal to many digits."""
    model, processor = family.build()
    return adapter_for(model.double(), processor)


@pytest.fixture(scope="module")
def images(family):
    return [tiny.random_images(1, size, seed=i)[0] for i, size in enumerate(family.sizes)]


@pytest.fixture(scope="module")
def batch(adapter, images):
    """A prompt with one image, one with two, one with none, padded on the left."""
    prompts = [adapter.prompt(QUESTION, n) for n in (1, 2, 0)]
    return processed(adapter, prompts, images)


def processed(adapter, prompts, images, **others):
    return dict(adapter.processor(text=prompts, images=images, return_tensors="pt", padding=True, **others))


def own_features(adapter, inputs):
    """Return the rows of every image from the model itself."""
    known = inspect.signature(adapter.model.get_image_features).parameters
    with torch.no_grad():
        given = {name: value for name, value in inputs.items() if name in known}
        return adapter.model.get_image_features(**given).pooler_output


def tokens_of(image):
    return torch.cat([view.tokens for view in image.views])


def generate(adapter, inputs, **settings):
    settings = {"max_new_tokens": 5, "do_sample": False} | settings
    return adapter.model.generate(**inputs, **settings)


def generate_by_rows(adapter, inputs, **settings):
    """Do what `generate` does, from rows instead of pixels."""
    config = adapter.model.generation_config
    prompts = GivenPrompts(inputs, config.pad_token_id, config.eos_token_id)
    placed = prompts.place(
        adapter.encode_pixels(inputs),
        adapter.n_placeholders,
        adapter.image_token_id,
        adapter.video_token_id,
    )
    batch = prompts.filled([adapter.assemble(each.image) for each in placed])
    arguments = {name: value for name, value in inputs.items() if name not in adapter.pixel_inputs}
    arguments |= prompts.cut(batch, adapter.image_token_id) | {"position_ids": batch.position_ids}
    arguments |= adapter.generation_inputs(batch.visual_rows())
    return prompts.restore(generate(adapter, arguments, **settings), batch.n_columns)


# Encoding


def test_tokens_are_those_of_the_model_and_the_encoder_runs_once(family, adapter, images, batch):
    calls = []
    tower = getattr(adapter.model.model, "vision_tower", None) or adapter.model.model.visual
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    encoded = adapter.encode(images)
    handle.remove()
    assert len(calls) == 1
    expected = own_features(adapter, adapter.processor.image_processor(images, return_tensors="pt"))
    assert [[view.grid for view in image.views] for image in encoded] == list(family.grids)
    for image, own in zip(encoded, expected, strict=True):
        assert torch.equal(adapter.assemble(image).rows, own)
        assert own.shape == (image.n_rows, adapter.d_model)
        kinds = ["image"] + ["tile"] * (len(image.views) - 1)
        assert [view.kind for view in image.views] == kinds
        for view in image.views:
            assert view.tokens.shape == (math.prod(view.grid), adapter.d_model)
            assert not view.tokens.requires_grad
            assert view.signals == {}
        assert not image.is_video
    n_written = int((batch["input_ids"] == adapter.image_token_id).sum())
    assert n_written == sum(map(adapter.n_placeholders, encoded))


def test_images_encoded_together_are_those_encoded_alone(adapter, images):
    for image, picture in zip(adapter.encode(images, adapter.offers), images, strict=True):
        (alone,) = adapter.encode([picture], adapter.offers)
        (as_prompt,) = adapter.encode([picture], one_prompt=True)
        assert [view.region for view in image.views] == [view.region for view in alone.views]
        for other in (alone, as_prompt):
            torch.testing.assert_close(tokens_of(image), tokens_of(other), rtol=0, atol=1e-5)
        for views in (image.views, image.arranged("flatten").views):
            others = alone.views if views is image.views else alone.arranged("flatten").views
            for view, other in zip(views, others, strict=True):
                assert view.grid == other.grid
                torch.testing.assert_close(dict(view.signals), dict(other.signals), rtol=0, atol=1e-4)


def test_hooks_leave_the_encoder(adapter, images, monkeypatch):
    before = hook_counts(adapter.model)
    adapter.encode(images[:1], adapter.offers)
    monkeypatch.setattr(adapter.model, "get_image_features", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapter.encode(images[:1], adapter.offers)
    assert hook_counts(adapter.model) == before


def hook_counts(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


# Signals of the encoder


def test_signals_come_exactly_where_they_are_asked_for(family, adapter, images):
    assert adapter.offers == family.offers
    assert adapter.has_cls == ("cls_similarity" in family.offers)
    plain = adapter.encode(images)
    single = [(name,) for name in ("cls_similarity", "cls_attention", "received_attention", "keys")]
    for needs in (*single, ["hidden_states", "keys"], adapter.offers, ["nothing of this name"]):
        for image, own in zip(adapter.encode(images, needs), plain, strict=True):
            for view, whole, before in zip(
                image.views, image.arranged("flatten").views, own.views, strict=True
            ):
                assert view.signals.keys() == whole.signals.keys() == set(needs) & adapter.offers
                assert torch.equal(view.tokens, before.tokens)
                for signal in view.signals.values():
                    assert len(signal) == view.n_tokens
                    assert (signal.dtype, signal.device.type) == (torch.float32, "cpu")


def children_of(module, kind):
    return [part for part in module.children() if isinstance(part, kind)]


def attention_of(layer):
    """Return the one child of a layer that has queries and keys."""
    (found,) = [part for part in layer.children() if hasattr(part, "q_proj")]
    return found


@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_signals_are_those_computed_literally(family, layer):
    """Query by query and key by key from the projections of the layer that makes the selected state, and eager maps."""
    model, processor = family.build()
    if not family.offers:
        pytest.skip("the adapter reads no signals")
    model.config.vision_feature_layer = model.model.config.vision_feature_layer = layer
    adapter = adapter_for(model, processor)
    side = model.config.vision_config.image_size
    images = tiny.random_images(1, (2 * side, 2 * side))  # no padding where there are tiles
    (image,) = adapter.encode(images, adapter.offers)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    n_cls, vision = int(adapter.has_cls), model.config.vision_config
    n_heads, n_layers = vision.num_attention_heads, vision.num_hidden_layers
    before = layer - 1 if layer > 0 else n_layers + layer  # states that the layer is given, and the layer
    tower = model.model.vision_tower
    modules = next(part for part in tower.modules() if isinstance(part, torch.nn.ModuleList))
    assert len(modules) == n_layers
    module, made, read = modules[before], [], []
    norm, attend = children_of(module, torch.nn.LayerNorm)[0], attention_of(module)
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: made.append(output)),
        model.model.multi_modal_projector.register_forward_pre_hook(lambda _m, given: read.append(given[0])),
    ]
    own_features(adapter, processor.image_processor(images, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        states = tower(pixels.flatten(0, -4), output_hidden_states=True).hidden_states
        hidden = norm(states[before])
        query, key = attend.q_proj(hidden), attend.k_proj(hidden)
        last = attention_of(modules[-1])
        hidden_last = children_of(modules[-1], torch.nn.LayerNorm)[0](states[n_layers - 1])
        last_query, last_key = last.q_proj(hidden_last), last.k_proj(hidden_last)
        tower.set_attn_implementation("eager")
        maps = tower(pixels.flatten(0, -4), output_attentions=True).attentions[before].mean(1)
    assert len(image.views) == len(hidden)
    # What the connector reads are the patches of the state as the layer makes it, with no norm behind.
    made = made[0][0] if isinstance(made[0], tuple) else made[0]
    assert torch.equal(read[0], made[:, n_cls:])
    torch.testing.assert_close(made, states[layer], rtol=0, atol=1e-5)
    d_head = vision.hidden_size // n_heads
    for g, view in enumerate(image.views):
        attention = torch.zeros(len(hidden[g]), len(hidden[g]))  # from row to column, mean over heads
        mean_key = torch.zeros(view.n_tokens, d_head)
        for head in range(n_heads):
            own = slice(head * d_head, (head + 1) * d_head)
            mean_key += key[g, n_cls:, own] / n_heads
            for row, q in enumerate(query[g, :, own]):
                weights = torch.stack([q @ k for k in key[g, :, own]]).div(d_head**0.5).exp()
                attention[row] += weights / weights.sum() / n_heads
        torch.testing.assert_close(attention, maps[g], rtol=0, atol=1e-6)
        state = states[layer][g]
        expected = {
            "received_attention": attention[n_cls:, n_cls:].mean(0),
            "keys": mean_key,
            "hidden_states": state[n_cls:],
            "last_keys": last_key[g, n_cls:],
        }
        if adapter.has_cls:
            expected["cls_attention"] = attention[0, 1:]
            weights = (
                torch.stack([last_query[g, 0] @ k for k in last_key[g]]).div(vision.hidden_size**0.5).exp()
            )
            expected["last_cls_attention"] = (weights / weights.sum())[1:]
            expected["cls_similarity"] = torch.cosine_similarity(state[1:], state[:1], dim=-1)
            order = view.signals["cls_similarity"].argsort(descending=True, stable=True)
            assert torch.equal(order, rank_by_cls(state))
        assert view.signals.keys() == expected.keys()
        for name, values in expected.items():
            atol = 1e-5 if name.endswith("keys") else 1e-6
            torch.testing.assert_close(view.signals[name], values, rtol=0, atol=atol)
            assert values.std() > 1e-4
        assert (view.signals["received_attention"].sum() < 0.999) == adapter.has_cls


def test_signals_follow_the_tokens_that_are_read(family, adapter, images):
    """Of tiles cut at padding, and of resampled ones: each token has the values of one token of its tile."""
    for image in adapter.encode(images, adapter.offers):
        for view, whole in zip(image.views, image.arranged("flatten").views, strict=True):
            if "hidden_states" not in family.offers:
                continue
            states = whole.signals["hidden_states"]
            found = [
                (states == row).all(-1).nonzero().item() for row in view.signals["hidden_states"].unbind()
            ]
            assert len(set(found)) == len(found) and found == sorted(found)
            for name, signal in view.signals.items():
                assert torch.equal(signal, whole.signals[name][found])


# Rows


def inputs_of_every_kind(adapter, images):
    """Return photos in both layouts, and a video where videos are read."""
    encoded = adapter.encode(images)
    video = [] if adapter.video_token_id is None else [adapter.encode_video(images[:1] * 2)]
    return [*encoded, *(image.arranged("flatten") for image in encoded), *video]


def test_some_rows_are_gathered_where_they_are(adapter, images):
    for image in inputs_of_every_kind(adapter, images):
        kept = [torch.arange(i % 2, view.n_tokens, 3) for i, view in enumerate(image.views)]
        whole, some = adapter.assemble(image), adapter.gather(image, kept)
        assert (some.numbers.diff() > 0).all()
        assert torch.equal(some.rows, whole.rows[some.numbers])
        assert torch.equal(some.offsets, whole.offsets[:, some.numbers])
        assert whole.numbers.tolist() == list(range(image.n_rows))
        assert whole.offsets.shape == (adapter.n_position_axes, image.n_rows)
        for rows in (whole, some):
            assert (rows.n_positions, rows.n_all) == (whole.n_positions, image.n_rows)
        n_newlines = 0 if image.packing is None else int((image.packing.order == NEWLINE).sum())
        assert len(some) == sum(map(len, kept)) + n_newlines == len(some.numbers)
        at = adapter.token_rows(image)
        assert torch.equal(whole.rows[at], tokens_of(image))
        counts = [view.n_tokens for view in image.views]
        begins = itertools.accumulate([0, *counts])
        wanted = torch.cat([own + begin for own, begin in zip(kept, begins, strict=False)])
        assert set(at[wanted].tolist()) <= set(some.numbers.tolist())
        new = [torch.full((len(own), adapter.d_model), float(-1 - i)) for i, own in enumerate(kept)]
        merged = adapter.gather(image, kept, new)
        assert torch.equal(merged.numbers, some.numbers)
        changed = merged.rows[(merged.rows != some.rows).any(-1)]
        assert sorted(changed[:, 0].tolist()) == sorted(torch.cat(new)[:, 0].tolist())


def test_tokens_of_one_view_can_be_replaced(adapter, images):
    for image in inputs_of_every_kind(adapter, images):
        other, whole = torch.zeros_like(image.views[-1].tokens), adapter.assemble(image)
        n_others = len(image.views) - 1
        replaced = adapter.assemble(image, [None] * n_others + [other])
        changed = (replaced.rows != whole.rows).any(-1).nonzero().flatten()
        assert torch.equal(changed.sort().values, adapter.token_rows(image)[-len(other) :].sort().values)
        assert torch.equal(replaced.offsets, whole.offsets)
        assert image.views[-1].tokens.any()
        with pytest.raises(ParameterError, match=r"views: got \(1, \d+\); accepted: the view's") as error:
            adapter.assemble(image, [None] * n_others + [other[:1]])
        assert one_line(error)
        with pytest.raises(ParameterError, match=f"views: got '0 views'; accepted: {n_others + 1}, as"):
            adapter.assemble(image, [])


def test_an_image_moves_to_a_device_with_all_its_parts(adapter, images):
    for image in adapter.encode(images):
        moved = image.to("meta")
        parts = [*moved.views, *(moved.whole or ())]
        assert {part.tokens.device.type for part in parts} == {"meta"}
        if moved.packing is not None:
            assert moved.packing.newline.device.type == "meta"
            assert moved.packing.order.device.type == "cpu"


def test_the_replacement_is_a_copy_of_a_words_embedding(adapter):
    embedding = adapter.model.get_input_embeddings().weight
    replacement = adapter.replacement_embedding()
    assert torch.equal(replacement, embedding[adapter.replacement_token_id])
    assert not replacement.requires_grad
    replacement.zero_()
    assert embedding[adapter.replacement_token_id].abs().sum() > 0


# Prompts and positions


def test_the_template_has_a_placeholder_for_each_image(adapter):
    for n_images in range(3):
        prompt = adapter.read_prompt(adapter.prompt(QUESTION, n_images))
        assert len(prompt.spans) == n_images
        assert all(prompt.ids[start] == adapter.image_token_id for start, _ in prompt.spans)
    first, written = adapter.processor.tokenizer.bos_token, adapter.prompt(QUESTION)
    if first is not None:
        begun = first + written.removeprefix(first)  # ChatML begins with it itself
        assert adapter.prompt_ids(begun) == adapter.prompt_ids(written)
        assert adapter.prompt_ids(written).count(adapter.processor.tokenizer.bos_token_id) == begun.count(
            first
        )


def test_positions_are_those_that_the_llm_gets_from_generate(adapter, images, batch):
    """In a batch padded on the left, of prompts with one image, two and none."""
    seen = []
    handle = adapter.language_model.register_forward_pre_hook(
        lambda _module, _arguments, named: seen.append(named["position_ids"]), with_kwargs=True
    )
    generate(adapter, batch, max_new_tokens=1)
    handle.remove()
    n_axes = adapter.n_position_axes
    given = seen[0][-n_axes:] if seen[0].ndim == 3 else seen[0][None]
    encoded = iter(adapter.encode(images))
    for i, n_images in enumerate((1, 2, 0)):
        prompt = adapter.read_prompt(adapter.prompt(QUESTION, n_images))
        found = prompt.filled([adapter.assemble(next(encoded)) for _ in range(n_images)]).positions
        there = batch["attention_mask"][i].bool()
        assert torch.equal(found.expand(n_axes, -1), given[:, i][:, there])


# First token


@pytest.mark.parametrize("n_images", [1, 3])
def test_all_rows_give_the_logits_of_pixels_also_behind_a_begun_answer(exact, images, n_images):
    images = images[:n_images]
    others = [tiny.random_images(1, images[0].size, seed=50)[0], *images[1:]]
    prompt = exact.prompt(QUESTION, n_images)
    inputs = processed(exact, [prompt], images)
    output = generate(exact, inputs, max_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    answer = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    rows = [exact.assemble(image) for image in exact.encode(images)]
    other = [exact.assemble(image) for image in exact.encode(others)]
    prefixes = [answer[:n] for n in range(3)]
    found = exact.first_token_logits(prompt, [rows] * 3 + [other], answer_prefix=[*prefixes, []])
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    torch.testing.assert_close(found[:3], torch.cat(output.logits).float(), rtol=0, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.01
    assert (found[0] - found[3]).abs().max() > 0.01  # answers depend on the image
    if n_images > 1:
        swapped = exact.first_token_logits(prompt, [rows[::-1]])
        assert (found[:1] - swapped).abs().max() > 0.01


def mixed_inputs(adapter, images):
    """Whole images, single tokens, none, and pieces of several lengths."""
    encoded = adapter.encode(images)
    tokens = tokens_of(encoded[0])
    pieces = [tokens[:1], tokens[1:2], tokens[2:5], tokens[:0], tokens[:5].flip(0)]
    return [*map(adapter.assemble, encoded), *pieces, tokens]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_logits_do_not_depend_on_the_batch(adapter, exact, images, batch_size):
    """Batches of unequal length agree to 1e-5 in float32, and a float64 rerun shows that this is rounding."""
    prompt, visual = adapter.prompt(QUESTION), mixed_inputs(adapter, images)
    alone = adapter.first_token_logits(prompt, visual, batch_size=1)
    together = adapter.first_token_logits(prompt, visual, batch_size=batch_size)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    distinct = {tuple(row.argsort().tolist()) for row in alone}
    whole = visual[0]  # without newlines, on one axis, an image is its tokens one after the other
    is_bare = len(whole) == len(visual[-1]) and adapter.n_position_axes == 1
    assert len(distinct) == len(visual) - is_bare
    asked = exact.read_prompt(prompt)
    prompts = [asked.filled(exact._as_images(entry)) for entry in mixed_inputs(exact, images)]
    with torch.no_grad():
        padded = exact.next_token_logits(prompts)
        for i, one in enumerate(prompts):
            torch.testing.assert_close(padded[i], exact.next_token_logits([one])[0], rtol=0, atol=1e-11)


def test_bare_rows_are_read_one_after_the_other(exact, images):
    """The LLM itself, given the embeddings and no positions, numbers them so."""
    tokens = tokens_of(exact.encode(images[:1])[0])[2:5]
    prompt = exact.prompt(QUESTION)
    embeds = exact.read_prompt(prompt).filled([VisualRows.in_order(tokens)]).embeds(exact.embed)
    with torch.no_grad():
        hidden = exact.language_model(inputs_embeds=embeds[None]).last_hidden_state[0, -1]
        expected = exact.model.lm_head(hidden)
    found = exact.first_token_logits(prompt, [tokens])[0]
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)


def test_equal_lengths_share_batches_without_padding(adapter):
    masks = []
    handle = adapter.model.register_forward_pre_hook(
        lambda _module, _args, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    visual = torch.randn(6, 9, adapter.d_model)
    order = [0, 3, 1, 4, 2, 5]
    mixed = [visual[i, : 9 if i < 3 else 4] for i in order]
    found = adapter.first_token_logits(adapter.prompt(QUESTION), mixed, batch_size=3)
    handle.remove()
    assert [mask.shape[0] for mask in masks] == [1, 3, 3]  # once what all begin with, then what follows
    assert all(mask.all() for mask in masks)
    long = adapter.first_token_logits(adapter.prompt(QUESTION), visual[:3])  # a tensor will do
    torch.testing.assert_close(found[[0, 2, 4]], long, rtol=0, atol=1e-5)
    assert adapter.first_token_logits(adapter.prompt(QUESTION), []).shape == (0, adapter.n_vocab)


# Text-to-image attention


@pytest.mark.parametrize("n_images", [1, 2])
def test_text_to_image_attention_is_that_of_eager_maps(family, adapter, images, n_images):
    images, prompt = images[:n_images], adapter.prompt(QUESTION, n_images)
    rows = [adapter.assemble(image) for image in adapter.encode(images)]
    found = adapter.text_to_image_attention(prompt, rows)
    reference = adapter_for(*family.build())
    reference.model.set_attn_implementation("eager")
    inputs = processed(reference, [prompt], images)
    with torch.no_grad():
        maps = reference.model(**inputs, output_attentions=True).attentions
    is_image = inputs["input_ids"][0] == adapter.image_token_id
    after = int(is_image.nonzero()[-1]) + 1
    expected = torch.stack([one[0].mean(0)[after:][:, is_image] for one in maps])
    assert expected.shape[1] > 5
    torch.testing.assert_close(found["last"], expected[:, -1], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["question"], expected.mean(1), rtol=0, atol=1e-6)


def test_attention_leaves_the_model_as_it_was(adapter, images, monkeypatch):
    rows = adapter.assemble(adapter.encode(images[:1])[0])
    before, own = hook_counts(adapter.model), adapter.language_model.config._attn_implementation
    adapter.text_to_image_attention(adapter.prompt(QUESTION), rows)
    assert hook_counts(adapter.model) == before
    assert adapter.language_model.config._attn_implementation == own == "sdpa"
    monkeypatch.setattr(adapter, "next_token_logits", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapter.text_to_image_attention(adapter.prompt(QUESTION), rows)
    assert hook_counts(adapter.model) == before
    assert adapter.language_model.config._attn_implementation == own


# Generating


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_all_rows_give_what_pixels_give(adapter, images, batch, settings):
    """Token by token, for one image, two and none in a batch; and nothing is left behind."""
    expected = generate(adapter, batch, **settings)
    assert torch.equal(generate_by_rows(adapter, batch, **settings), expected)
    assert torch.equal(generate(adapter, batch, **settings), expected)


def test_answers_depend_on_every_image(adapter, images, batch):
    """What is compared elsewhere would not be equal by chance."""
    read = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    expected = generate(adapter, batch, **read).logits[0]
    for i in range(3):
        others = [*images]
        others[i] = tiny.random_images(1, images[i].size, seed=60)[0]
        inputs = processed(adapter, [adapter.prompt(QUESTION, n) for n in (1, 2, 0)], others)
        changes = (generate(adapter, inputs, **read).logits[0] - expected).abs().amax(-1)
        assert (changes > 0.01).tolist() == [i == 0, i > 0, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(family, images, dtype):
    model, processor = family.build()
    adapter = adapter_for(model.to(dtype), processor)
    inputs = processed(adapter, [adapter.prompt(QUESTION, n) for n in (1, 2, 0)], images)
    assert torch.equal(generate_by_rows(adapter, inputs), generate(adapter, inputs))
    pixels = processor.image_processor(images, return_tensors="pt")
    for image, own in zip(adapter.encode(images, adapter.offers), own_features(adapter, pixels), strict=True):
        assert image.views[0].tokens.dtype == adapter.replacement_embedding().dtype == dtype
        assert torch.equal(adapter.assemble(image).rows, own)
        for view in image.views:
            assert all(signal.isfinite().all() for signal in view.signals.values())
            assert all(signal.dtype == torch.float32 for signal in view.signals.values())
    rows = adapter.assemble(adapter.encode(images[:1])[0])
    attention = adapter.text_to_image_attention(adapter.prompt(QUESTION), rows)
    assert attention["last"].dtype == torch.float32
    logits = adapter.first_token_logits(adapter.prompt(QUESTION), [rows])
    assert logits.dtype == torch.float32 and logits.isfinite().all()


# Videos


def test_a_video_is_read_as_the_model_reads_it_or_refused(adapter, exact, images):
    frames = tiny.random_images(3, (60, 40))
    if adapter.video_token_id is None:
        with pytest.raises(UnsupportedModelError, match=f"'{adapter.family}', takes images only") as error:
            adapter.encode_video(frames)
        assert one_line(error)
        with pytest.raises(ParameterError, match="n_videos: got 1; accepted: 0.*images only"):
            adapter.prompt(QUESTION, n_videos=1)
        return
    video = exact.encode_video(frames, exact.offers)
    assert video.is_video
    assert [view.kind for view in video.views] == ["frame"] * 3
    assert all(view.signals == {} for view in video.views)
    inputs = exact.processor.video_processor([frames], return_tensors="pt")
    with torch.no_grad():
        rows = exact.model.get_video_features(**inputs).pooler_output[0]
    assert torch.equal(exact.assemble(video).rows, rows)
    prompt = exact.prompt(QUESTION, n_images=1, n_videos=1)
    asked = exact.read_prompt(prompt)
    ids = [int(asked.ids[start]) for start, _ in asked.spans]
    assert ids == [exact.image_token_id, exact.video_token_id]
    visual = [exact.assemble(image) for image in (*exact.encode(images[:1]), video)]
    inputs = processed(exact, [prompt], images[:1], videos=[frames])
    with torch.no_grad():
        expected = exact.model(**inputs).logits[:, -1].float()
    found = exact.first_token_logits(prompt, [visual])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(generate_by_rows(exact, inputs), generate(exact, inputs))
    image, placed = exact.encode_pixels(inputs)
    assert (image.is_video, placed.is_video) == (False, True)


def test_inputs_of_every_kind_are_preprocessed_and_encoded_alike(adapter, images):
    pictures = [images[0], images[0].transpose(0)]
    expected = {"image": adapter.encode(pictures), "images": adapter.encode(pictures, one_prompt=True)}
    if adapter.video_token_id is not None:
        expected["video"] = [adapter.encode_video(pictures)]
    for kind, encoded in expected.items():
        for found in (
            adapter.encode_input(pictures, kind),
            adapter.encode_pixels(adapter.preprocess(pictures, kind)),
        ):
            for ours, theirs in zip(found, encoded, strict=True):
                assert torch.equal(adapter.assemble(ours).rows, adapter.assemble(theirs).rows)


# Loading


def test_a_saved_folder_loads_ready_to_use(adapter, images, batch, tmp_path):
    loaded = adapter_for(*load_model(tiny.save(tmp_path, adapter.model, adapter.processor), device="cpu"))
    assert type(loaded) is type(adapter)
    assert loaded.processor.tokenizer.padding_side == "left"
    assert type(loaded.processor.image_processor).__name__.endswith("Pil")
    assert not loaded.model.training
    prompts = [loaded.prompt(QUESTION, n) for n in (1, 2, 0)]
    inputs = processed(loaded, prompts, images)
    for name, value in batch.items():
        assert torch.equal(inputs[name], value)
    for ours, theirs in zip(loaded.encode(images), adapter.encode(images), strict=True):
        assert torch.equal(loaded.assemble(ours).rows, adapter.assemble(theirs).rows)
    if adapter.video_token_id is not None:
        ours, theirs = (each.encode_video(images[:1]) for each in (loaded, adapter))
        assert torch.equal(loaded.assemble(ours).rows, adapter.assemble(theirs).rows)


# Wrong inputs


def test_wrong_inputs_end_in_one_line(adapter, images):
    prompt, rows = adapter.prompt(QUESTION), torch.randn(3, adapter.d_model)
    for act, message in (
        (lambda: adapter.encode([]), "images: got []; accepted: one or more PIL images"),
        (lambda: adapter.encode(["photo.png"]), "images: got ['str']"),
        (lambda: adapter.preprocess(images, "film"), "kind: got 'film'; accepted: image, images, video"),
        (lambda: adapter.encode_pixels(dict.fromkeys(adapter.pixel_inputs)), "None"),
        (
            lambda: adapter.first_token_logits(prompt, [rows[:, 1:]]),
            f"visual: got (3, {adapter.d_model - 1})",
        ),
        (lambda: adapter.first_token_logits(prompt, [rows[0]]), f"visual: got ({adapter.d_model},)"),
        (lambda: adapter.first_token_logits(prompt, [[rows, rows]]), "1, one for each placeholder"),
        (lambda: adapter.first_token_logits(prompt, [rows], batch_size=0), "batch_size: got 0"),
        (lambda: adapter.first_token_logits(prompt, [rows], answer_prefix=[[], []]), "answer_prefix: got 2"),
        (lambda: adapter.text_to_image_attention("What is this ?", []), "text after them"),
        (lambda: adapter_for(adapter.model).prompt(QUESTION), "processor: got None"),
        (lambda: adapter_for(adapter.model).encode(images), "processor: got None"),
    ):
        with pytest.raises(ParameterError) as error:
            act()
        assert message in one_line(error)
    placeholder = adapter.processor.tokenizer.decode([adapter.image_token_id])
    with pytest.raises(ParameterError, match="text after them"):
        adapter.text_to_image_attention(f"What is this {placeholder}", rows)


def test_a_processor_without_a_template_is_refused(family):
    model, processor = family.build()
    processor.chat_template = None
    with pytest.raises(ParameterError, match="chat template") as error:
        adapter_for(model, processor).prompt(QUESTION)
    assert one_line(error)


# The page on adding a family


def code_lines(source):
    """Count the lines without docstrings, comments and blank lines."""
    tree, documented = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for i, line in lines if i not in documented and line.strip() and line.strip()[0] != "#")


def test_the_page_counts_lines_as_they_are():
    stated = re.findall(r"^\| `(rcblib/\S+)` \| (\d+) \| (\d+) \|", PAGE, flags=re.MULTILINE)
    adapters = {ADAPTERS[name].__module__.replace(".", "/") + ".py" for name in OWN}
    assert adapters <= {path for path, _, _ in stated}
    for path, n_lines, n_code in stated:
        source = (REPOSITORY / path).read_text(encoding="utf-8")
        assert (path, int(n_lines), int(n_code)) == (path, len(source.splitlines()), code_lines(source))
    for block in EXAMPLES[:2]:
        assert f" {len(block.splitlines())} lines:" in " ".join(PAGE.split())
    assert [sorted(added) for added in ADDED] == [["vipllava"], ["vit"], ["llava with ViT", "vip_llava"]]
    assert all(name in PAGE for name in ("VipLlavaAdapter", "tests/families.py"))


def test_the_page_names_what_an_adapter_can_override():
    named = re.findall(r"^\| `(\w+)(?:\(.*?\))?` \| ", PAGE, flags=re.MULTILINE)
    assert len(named) > 10
    assert all(hasattr(ADAPTERS["llava"], name) for name in named)


def test_the_use_on_the_page_runs(monkeypatch):
    model, processor = FAMILIES["qwen2_5_vl"].build()
    monkeypatch.setattr("rcblib.load_model", lambda _name: (model, processor))
    prompt = adapter_for(model, processor).prompt(QUESTION)
    images = tiny.random_images(1, (90, 90))
    names = {"inputs": processor(text=[prompt], images=images, return_tensors="pt")}
    exec(USE, names)
    assert names["pruned"].n_retained == [2]
