"""Check that adapters read the model's own visual tokens and feed chosen ones exactly."""

import json

import pytest
import tiny
import torch

from benchmarks.checkpoints import CHECKPOINTS, empty_model
from rcblib.mllm import adapter_for, load_model
from rcblib.mllm.loading import _dtype
from rcblib.mllm.prompt import VisualRows
from rcblib.records import ONE_WORD_QUESTION, ParameterError, UnsupportedModelError
from rcblib.tensors.geometry import rank_by_cls

QUESTION = "What does this image show ?"


@pytest.fixture(scope="module")
def adapter():
    return adapter_for(*tiny.tiny_llava())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_tiny_llava(tmp_path_factory.mktemp("tiny-llava"))


def processed(adapter, prompts, images):
    return adapter.processor(text=prompts, images=images, return_tensors="pt", padding=True)


def full_logits(adapter, prompt, images):
    """Return the next-token logits of the model itself, fed pixels."""
    with torch.no_grad():
        return adapter.model(**processed(adapter, [prompt], images)).logits[:, -1]


# Loading


def test_a_saved_folder_loads_ready_to_use(folder):
    model, processor = load_model(folder)
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert processor.tokenizer.padding_side == "left"
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"
    saved, saved_processor = tiny.tiny_llava()
    image = tiny.random_images(1)
    loaded_adapter, saved_adapter = adapter_for(model, processor), adapter_for(saved, saved_processor)
    assert torch.equal(loaded_adapter.encode(image)[0].tokens, saved_adapter.encode(image)[0].tokens)
    assert loaded_adapter.prompt(QUESTION) == saved_adapter.prompt(QUESTION)


def test_a_padding_token_is_made_up_where_the_tokenizer_has_none(tmp_path):
    tiny.save_tiny_llava(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    _, processor = load_model(tmp_path)
    assert processor.tokenizer.pad_token == "</s>"


def test_embedded_names_are_folders_of_the_project(tmp_path, monkeypatch):
    tiny.save_tiny_llava(tmp_path / "data" / "models" / "some-llava")
    monkeypatch.setenv("RCB_ROOT", str(tmp_path))
    model, _ = load_model("some-llava", dtype="float16")
    assert model.dtype == torch.float16
    with pytest.raises(UnsupportedModelError, match=r"'any-llava'.*some-llava") as error:
        load_model("any-llava")
    assert "\n" not in str(error.value)


def test_folders_load_outside_the_project(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RCB_ROOT", str(tmp_path / "nowhere"))
    assert load_model(str(folder))[0].config.model_type == "llava"


def test_an_unsupported_family_is_named_before_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    with pytest.raises(UnsupportedModelError, match=r"'unheard_of'; supported: llava"):
        load_model(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"Linear.*supported: llava"):
        adapter_for(torch.nn.Linear(1, 1))


def test_pickled_weights_are_not_read(tmp_path):
    tiny.save_tiny_llava(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        load_model(tmp_path)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_folder_gives_one_line(tmp_path, broken):
    tiny.save_tiny_llava(tmp_path)
    (tmp_path / broken).write_text("{")
    with pytest.raises(UnsupportedModelError, match="cannot be loaded") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments", [{"dtype": "half"}, {"dtype": torch.int8}, {"device": "abacus"}, {"device": "cuda:99"}]
)
def test_device_and_dtype_are_checked_first(arguments):
    with pytest.raises(ParameterError, match=f"{next(iter(arguments))}: got"):
        load_model("no-such-model", **arguments)


def test_automatic_dtype_follows_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert _dtype("auto", torch.device("cpu")) == torch.float32
    assert _dtype("auto", torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert _dtype("auto", torch.device("cuda")) == torch.bfloat16


# Encoding


def test_tokens_are_those_of_the_model_and_the_encoder_runs_once(adapter):
    images = tiny.random_images(3)
    calls = []
    handle = adapter.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    encoded = adapter.encode(images)
    handle.remove()
    assert len(calls) == 1
    pixels = adapter.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    expected = adapter.model.get_image_features(pixels).pooler_output
    assert len(encoded) == 3
    for image, tokens in zip(encoded, expected, strict=True):
        assert torch.equal(image.tokens, tokens)
        assert image.views[0].grid == (6, 6)
        assert image.views[0].kind == "image"
        assert image.views[0].n_tokens == adapter.n_placeholders(image) == 36
        assert not image.tokens.requires_grad


def test_similarity_to_cls_is_that_of_the_second_to_last_state(adapter):
    images = tiny.random_images(2)
    pixels = adapter.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    tower = adapter.model.model.vision_tower
    hidden = tower(pixels, output_hidden_states=True).hidden_states[2]  # 3 layers: states 0 to 3
    for i, image in enumerate(adapter.encode(images, ["cls_similarity"])):
        similarity = image.views[0].signals["cls_similarity"]
        expected = torch.cosine_similarity(hidden[i, 1:], hidden[i, :1], dim=-1)
        torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-6)
        assert torch.equal(similarity.argsort(descending=True, stable=True), rank_by_cls(hidden[i]))
        assert image.views[0].signals.keys() == {"cls_similarity"}


@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_attention_from_cls_is_that_of_eager_maps_and_leaves_tokens_alone(layer):
    model, processor = tiny.tiny_llava()
    model.config.vision_feature_layer = model.model.config.vision_feature_layer = layer
    adapter = adapter_for(model, processor)
    images = tiny.random_images(2)
    plain, attended = adapter.encode(images), adapter.encode(images, adapter.offers)
    pixels = adapter.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    tower = adapter.model.model.vision_tower
    tower.set_attn_implementation("eager")
    maps = tower(pixels, output_attentions=True).attentions[layer - 1 if layer > 0 else layer]
    for i in range(2):
        assert torch.equal(attended[i].tokens, plain[i].tokens)
        expected = maps[i].mean(0)[0, 1:]
        found = attended[i].views[0].signals["cls_attention"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert expected.std() > 1e-3


@pytest.mark.parametrize("layer", [-2, 1])
@pytest.mark.parametrize("family", ["llava", "next", "onevision"])
def test_signals_of_the_encoder_are_those_computed_literally(family, layer):
    """Query by query and key by key from the projections of the layer that makes the selected state."""
    build = {"llava": tiny.tiny_llava, "next": tiny.tiny_next, "onevision": tiny.tiny_onevision}[family]
    model, processor = build()
    model.config.vision_feature_layer = model.model.config.vision_feature_layer = layer
    adapter = adapter_for(model, processor)
    images = tiny.random_images(1, (44, 44) if family == "onevision" else (48, 48))
    (plain,), (image,) = adapter.encode(images), adapter.encode(images, adapter.offers)
    assert torch.equal(adapter.assemble(image).rows, adapter.assemble(plain).rows)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    n_cls, vision = int(adapter.has_cls), model.config.vision_config
    n_heads, n_layers = vision.num_attention_heads, vision.num_hidden_layers
    before = layer - 1 if layer > 0 else n_layers + layer  # states that the layer is given, and the layer
    tower = model.model.vision_tower
    module = [part for part in tower.modules() if hasattr(part, "self_attn")][before]
    with torch.no_grad():
        states = tower(pixels.flatten(0, -4), output_hidden_states=True).hidden_states
        hidden = module.layer_norm1(states[before])
        query, key = (project(hidden) for project in (module.self_attn.q_proj, module.self_attn.k_proj))
    assert len(image.views) == len(hidden)
    for g, view in enumerate(image.views):
        assert view.signals.keys() == adapter.offers
        received, mean_key = torch.zeros(view.n_tokens), torch.zeros(view.n_tokens, 32 // n_heads)
        for head in range(n_heads):
            own = slice(head * 32 // n_heads, (head + 1) * 32 // n_heads)
            mean_key += key[g, n_cls:, own] / n_heads
            for q in query[g, n_cls:, own]:
                weights = torch.stack([q @ k for k in key[g, :, own]]).div((32 / n_heads) ** 0.5).exp()
                received += (weights / weights.sum())[n_cls:] / n_heads / view.n_tokens
        torch.testing.assert_close(view.signals["received_attention"], received, rtol=0, atol=1e-6)
        torch.testing.assert_close(view.signals["keys"], mean_key, rtol=0, atol=1e-5)
        expected = states[layer][g, n_cls:]
        torch.testing.assert_close(view.signals["hidden_states"], expected, rtol=0, atol=1e-6)
        assert received.std() > 1e-4
        assert 0.3 < received.sum() <= 1 + 1e-6
        assert (received.sum() < 0.999) == adapter.has_cls


def test_signals_follow_the_tokens_that_are_read():
    """Of tiles cut at padding, and of resampled ones: each token has the values of a token of its tile."""
    for build, size in ((tiny.tiny_next, (40, 31)), (tiny.tiny_onevision, (66, 66))):
        adapter = adapter_for(*build())
        (image,) = adapter.encode(tiny.random_images(1, size), adapter.offers)
        for view, whole in zip(image.views, image.arranged("flatten").views, strict=True):
            found = [
                (whole.signals["hidden_states"] == row).all(-1).nonzero().item()
                for row in view.signals["hidden_states"]
            ]
            assert found == sorted(found)
            for name, signal in view.signals.items():
                assert torch.equal(signal, whole.signals[name][found])


def test_pooled_frames_have_no_signals():
    adapter = adapter_for(*tiny.tiny_onevision())
    assert adapter.offers == {"received_attention", "keys", "hidden_states"}
    assert all(
        view.signals == {} for view in adapter.encode_video(tiny.random_images(2), adapter.offers).views
    )


def test_signals_come_only_where_they_are_asked_for(adapter):
    for needs in ((), ("keys",), ("cls_attention", "hidden_states"), ["nothing of this name"]):
        (view,) = adapter.encode(tiny.random_images(1), needs)[0].views
        assert view.signals.keys() == set(needs) & adapter.offers


@pytest.mark.parametrize("images", [[], ["photo.png"]])
def test_only_images_are_encoded(adapter, images):
    with pytest.raises(ParameterError, match="images: got"):
        adapter.encode(images)


def test_encoders_without_cls_have_no_cls_signals():
    adapter = adapter_for(tiny.tiny_llava_without_cls(), tiny.tiny_llava()[1])
    (view,) = adapter.encode(tiny.random_images(1), ["cls_similarity", "cls_attention", "keys"])[0].views
    assert not adapter.has_cls
    assert view.signals.keys() == {"keys"}
    assert view.n_tokens == 36


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vision_feature_select_strategy", "full"),
        ("vision_feature_layer", [-2, -1]),
        ("vision_feature_layer", -9),
        ("vision_feature_layer", -4),
        ("vision_feature_layer", 0),
    ],
)
def test_forms_of_llava_that_are_not_covered_are_refused(setting, value):
    model, processor = tiny.tiny_llava()
    setattr(model.config, setting, value)
    with pytest.raises(UnsupportedModelError, match=setting):
        adapter_for(model, processor)


def test_sizes_and_replacement(adapter):
    assert (adapter.family, adapter.d_model, adapter.n_vocab, adapter.image_token_id) == ("llava", 40, 64, 4)
    embedding = adapter.model.get_input_embeddings().weight
    replacement = adapter.replacement_embedding()
    assert torch.equal(replacement, embedding[0])
    replacement.zero_()
    assert embedding[0].abs().sum() > 0


# First-token logits


def test_the_prompt_follows_the_template(adapter):
    assert adapter.prompt(QUESTION) == "USER: <image>\nWhat does this image show ? ASSISTANT:"
    assert adapter.prompt(QUESTION, n_images=2).count("<image>\n") == 2
    assert "<image>" not in adapter.prompt(QUESTION, n_images=0)
    with pytest.raises(ParameterError, match="processor"):
        adapter_for(adapter.model).prompt(QUESTION)
    model, processor = tiny.tiny_llava()
    processor.chat_template = None
    with pytest.raises(ParameterError, match="chat template"):
        adapter_for(model, processor).prompt(QUESTION)


@pytest.mark.parametrize("n_images", [1, 2])
def test_all_tokens_give_the_logits_of_pixels(adapter, n_images):
    images = tiny.random_images(n_images)
    prompt = adapter.prompt(QUESTION, n_images)
    tokens = [image.tokens for image in adapter.encode(images)]
    logits = adapter.first_token_logits(prompt, tokens if n_images == 1 else [tokens])
    expected = full_logits(adapter, prompt, images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    other = full_logits(adapter, prompt, tiny.random_images(n_images, seed=1))
    assert (logits - other).abs().max() > 0.1


def test_a_template_that_begins_the_text_itself_is_not_begun_twice(adapter):
    image = tiny.random_images(1)
    tokens = [adapter.encode(image)[0].tokens]
    prompt = adapter.prompt(QUESTION)
    assert torch.equal(
        adapter.first_token_logits("<s>" + prompt, tokens), adapter.first_token_logits(prompt, tokens)
    )


def test_an_answer_prefix_is_read_as_the_start_of_the_answer(adapter):
    image = tiny.random_images(1)
    tokens = adapter.encode(image)[0].tokens
    prompt = adapter.prompt(QUESTION)
    article = adapter.processor.tokenizer("A an", add_special_tokens=False)["input_ids"]
    logits = adapter.first_token_logits(prompt, [tokens] * 3, answer_prefix=[[], article[:1], article])
    for i, text in enumerate(["", " A", " A an"]):
        torch.testing.assert_close(
            logits[i : i + 1], full_logits(adapter, prompt + text, image), rtol=0, atol=1e-5
        )
    assert (logits[0] - logits[1]).abs().max() > 0.1


def mixed_inputs(adapter):
    tokens = adapter.encode(tiny.random_images(1))[0].tokens
    lengths = [36, 1, 9, 1, 17, 36, 9, 2, 1]
    return [tokens[i : i + n] if n < 36 else tokens.roll(i, 0) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("batch_size", [2, 4, 16])
def test_logits_do_not_depend_on_the_batch(adapter, batch_size):
    """Batches of unequal length agree to 1e-5 in float32, and a float64 rerun shows that this is rounding."""
    visual, prompt = mixed_inputs(adapter), adapter.prompt(QUESTION)
    alone = adapter.first_token_logits(prompt, visual, batch_size=1)
    together = adapter.first_token_logits(prompt, visual, batch_size=batch_size)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert len({tuple(row.argsort().tolist()) for row in alone}) == len(visual)

    exact = adapter_for(tiny.tiny_llava()[0].double(), adapter.processor)
    asked = exact.read_prompt(prompt)
    prompts = [asked.filled([VisualRows.in_order(entry)]) for entry in visual]
    with torch.no_grad():
        padded = exact.next_token_logits(prompts)
        for i, one in enumerate(prompts):
            torch.testing.assert_close(padded[i], exact.next_token_logits([one])[0], rtol=0, atol=1e-12)


def test_equal_lengths_share_batches_without_padding(adapter):
    visual = mixed_inputs(adapter)
    masks = []
    handle = adapter.model.register_forward_pre_hook(
        lambda _module, _args, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    adapter.first_token_logits(adapter.prompt(QUESTION), [entry[:9] for entry in visual if len(entry) >= 9])
    handle.remove()
    assert [mask.shape[0] for mask in masks] == [5]
    assert masks[0].all()


def test_inputs_may_be_one_tensor(adapter):
    visual, prompt = torch.randn(4, 9, 40), adapter.prompt(QUESTION)
    assert torch.equal(
        adapter.first_token_logits(prompt, visual), adapter.first_token_logits(prompt, list(visual))
    )
    assert adapter.first_token_logits(prompt, []).shape == (0, 64)


@pytest.mark.parametrize(
    ("visual", "options", "message"),
    [
        ([torch.randn(3, 39)], {}, r"visual: got \(3, 39\)"),
        ([torch.randn(40)], {}, r"visual: got \(40,\)"),
        ([[torch.randn(1, 40)] * 2], {}, "tokens of 2 images.*1, one for each placeholder"),
        ([torch.randn(1, 40)], {"batch_size": 0}, "batch_size: got 0"),
        ([torch.randn(1, 40)], {"answer_prefix": [[], []]}, "answer_prefix: got 2"),
    ],
)
def test_wrong_inputs_are_named(adapter, visual, options, message):
    with pytest.raises(ParameterError, match=message):
        adapter.first_token_logits(adapter.prompt(QUESTION), visual, **options)


# Text-to-image attention


@pytest.mark.parametrize("n_images", [1, 2])
def test_text_to_image_attention_is_that_of_eager_maps(adapter, n_images):
    images = tiny.random_images(n_images)
    prompt = adapter.prompt(QUESTION, n_images)
    signals = adapter.text_to_image_attention(prompt, [image.tokens for image in adapter.encode(images)])
    inputs = processed(adapter, [prompt], images)
    reference = tiny.tiny_llava()[0]
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        maps = reference(**inputs, output_attentions=True).attentions
    places = (inputs["input_ids"][0] == 4).nonzero().flatten()
    for layer, attention in enumerate(maps):
        rows = attention[0].mean(0)  # (n_prompt, n_prompt)
        torch.testing.assert_close(signals["last"][layer], rows[-1, places], rtol=0, atol=1e-6)
        question = rows[places[-1] + 1 :, places]
        assert len(question) > 5
        torch.testing.assert_close(signals["question"][layer], question.mean(0), rtol=0, atol=1e-6)
    assert signals["last"].shape == signals["question"].shape == (2, 36 * n_images)


def test_attention_leaves_the_model_as_it_was(adapter, monkeypatch):
    tokens = adapter.encode(tiny.random_images(1), adapter.offers)[0].tokens
    before = hook_counts(adapter.model)
    adapter.text_to_image_attention(adapter.prompt(QUESTION), tokens)
    assert hook_counts(adapter.model) == before
    assert adapter.model.model.language_model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(adapter, "next_token_logits", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapter.text_to_image_attention(adapter.prompt(QUESTION), tokens)
    assert hook_counts(adapter.model) == before
    assert adapter.model.model.language_model.config._attn_implementation == "sdpa"


def hook_counts(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


@pytest.mark.parametrize("prompt", ["What is this ?", "What is this <image>"])
def test_attention_needs_text_after_an_image(adapter, prompt):
    visual = [torch.randn(3, 40)] * prompt.count("<image>")
    with pytest.raises(ParameterError, match="text after them"):
        adapter.text_to_image_attention(prompt, visual)


# LLaVA-1.5's real settings


def test_the_full_size_config_gives_576_tokens_of_width_4096():
    model = empty_model(CHECKPOINTS[0])
    pixels = torch.empty(2, 3, 336, 336, device="meta")
    adapter = adapter_for(model)
    images = adapter.encode_pixels({"pixel_values": pixels})
    assert [image.tokens.shape for image in images] == [(576, 4096)] * 2
    assert images[0].views[0].grid == (24, 24)
    assert (adapter.d_model, adapter.n_vocab) == (4096, 32064)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(7.06e9, rel=0.01)


def test_real_settings_at_reduced_width_give_first_token_logits():
    adapter = adapter_for(*tiny.reduced_llava_15())
    image = tiny.random_images(1, (500, 375))
    (view,) = adapter.encode(image, adapter.offers)[0].views
    assert (view.n_tokens, view.grid) == (576, (24, 24))
    assert adapter.replacement_token_id == 0
    assert adapter.processor.tokenizer.pad_token_id == 32001
    prompt = adapter.prompt(ONE_WORD_QUESTION)
    assert prompt.startswith("USER: <image>\nWhat does this image show?")
    logits = adapter.first_token_logits(prompt, [view.tokens, view.tokens[:9], view.tokens[40:41]])
    assert logits.shape == (3, 32064)
    torch.testing.assert_close(logits[:1], full_logits(adapter, prompt, image), rtol=0, atol=1e-4)
