"""Check that adapters read the model's own visual tokens and feed chosen ones exactly."""

import json
import sys
from importlib.metadata import distribution

import pytest
import tiny
import torch
from families import FAMILIES

from benchmarks.checkpoints import CHECKPOINTS, empty_model
from rcblib.__main__ import main
from rcblib.evaluate.lmms.plugin import ModelArguments
from rcblib.evaluate.lmms.runs import _own_files
from rcblib.mllm import adapter_for, load_model
from rcblib.mllm.fingerprint import model_fingerprint, model_name
from rcblib.mllm.loading import (
    MODEL_GROUP,
    _dtype,
    embedded_models,
    model_folder,
    model_names,
    model_source,
)
from rcblib.records import ONE_WORD_QUESTION, ParameterError, UnsupportedModelError

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


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """Install a package that offers models by name; return the folder whose files say what was put together."""
    package, made = tmp_path / "package", tmp_path / "made"
    description = package / "tiny_offer-1.0.dist-info"
    description.mkdir(parents=True)
    made.mkdir()
    (description / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-offer\nVersion: 1.0\n")
    (description / "entry_points.txt").write_text(
        f"[{MODEL_GROUP}]\ntiny-offer = tiny_offer:build\nno-parts = tiny_offer:refuse\nno-code = not_there:build\n"
    )
    (package / "tiny_offer.py").write_text(f"""
from pathlib import Path
import tiny
from rcblib.records import UnsupportedModelError

def build():
    return tiny.save_tiny_llava(Path({str(made)!r}) / "assembled-1f2e")

def refuse():
    raise UnsupportedModelError("model 'no-parts': its wheel is not installed: make install")
""")
    monkeypatch.syspath_prepend(package)
    yield made
    sys.modules.pop("tiny_offer", None)


def test_names_are_offered_by_packages(offered, capsys):
    """Listing names puts nothing together; a name is then as good as the folder."""
    own = distribution("rcblib").entry_points.select(group=MODEL_GROUP).names
    assert own >= {"llava-photographs", "llava-photographs-dropped"}
    assert set(model_names()) == {"tiny-offer", "no-parts", "no-code", *own} | embedded_models().keys()
    with pytest.raises(UnsupportedModelError, match=r"'any-llava'; accepted: a model's name \(.*tiny-offer"):
        load_model("any-llava")
    for command in ("models", "info"):
        assert main([command]) == 0
        assert "tiny-offer" in capsys.readouterr().out
    assert not any(offered.iterdir())
    folder = offered / "assembled-1f2e"
    assert model_source("tiny-offer") == str(folder)
    assert model_folder("tiny-offer") == model_folder(folder) == folder
    assert model_folder("llava-hf/llava-1.5-7b-hf") is None
    (by_name, _), (by_folder, _) = load_model("tiny-offer"), load_model(folder)
    assert (model_name(by_name), model_name(by_folder)) == ("tiny-offer", "assembled-1f2e")
    assert model_fingerprint(by_name) == model_fingerprint(by_folder)
    assert empty_model("tiny-offer").config.to_dict() == empty_model(str(folder)).config.to_dict()
    assert _own_files(ModelArguments.read({"pretrained": "tiny-offer"})) == [folder]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no-parts", "model 'no-parts': its wheel is not installed: make install"),
        ("no-code", "model: 'no-code' cannot be loaded: No module named 'not_there'"),
    ],
)
def test_what_cannot_be_put_together_says_so_in_its_one_line(offered, name, line, capsys):
    for act in (load_model, model_source, model_folder, empty_model):
        with pytest.raises(UnsupportedModelError) as error:
            act(name)
        assert str(error.value) == line
    arguments = ["probe", "--model", name, "--images", "auto", "--n-images", "1", "--folder", str(offered)]
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines() == [f"rcblib probe: {line}"]


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


def test_the_config_may_name_another_replacement():
    model, _ = tiny.tiny_llava()
    model.config.replacement_token_id = 7
    assert torch.equal(adapter_for(model).replacement_embedding(), model.get_input_embeddings().weight[7])
    for wrong in (64, -1, "7", True):
        model.config.replacement_token_id = wrong
        with pytest.raises(UnsupportedModelError, match="replacement_token_id: got .*0 to 63") as error:
            adapter_for(model).replacement_embedding()
        assert "\n" not in str(error.value)


def test_a_named_replacement_is_saved_with_the_model(tmp_path):
    model, processor = tiny.tiny_llava()
    model.config.replacement_token_id = 7
    loaded, _ = load_model(tiny.save(tmp_path, model, processor))
    assert adapter_for(loaded).replacement_token_id == 7
    assert model_fingerprint(loaded) == model_fingerprint(model) != model_fingerprint(tiny.tiny_llava()[0])


@pytest.mark.parametrize("tower", ["dinov2_with_registers", "dinov2"])
def test_encoders_are_refused_by_name(tower):
    """One whose registers would enter the LLM, and one whose [CLS] would."""
    model, processor = FAMILIES["llava with DINOv2"].build()
    model.config.vision_config.model_type = tower
    model.config.vision_feature_select_strategy = "full" if tower == "dinov2" else "default"
    supported = "clip_vision_model with 'default', dinov2 with 'default', siglip_vision_model with 'full'"
    with pytest.raises(UnsupportedModelError, match=f"got {tower} with .*supported: {supported}$") as error:
        adapter_for(model, processor)
    assert "\n" not in str(error.value)


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


# Text-to-image attention


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
