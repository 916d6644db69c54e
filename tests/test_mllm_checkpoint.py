"""Check that a checkpoint loads whole or not at all, and that one line names what is wrong with it."""

import json
import shutil
import warnings

import pytest
import tiny
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file

from rcblib.mllm import adapter_for, load_model
from rcblib.mllm.loading import model_source
from rcblib.records import ParameterError, UnsupportedModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDINGS = "embed_tokens.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
THEIRS = {"architectures": ["LlavaLlamaForCausalLM"], "mm_projector_type": "mlp2x_gelu", "hidden_size": 4096}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.save_tiny_llava(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(whole, tmp_path_factory):
    """Return a checkpoint in six files of weights."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("shards") / "model")
    (folder / WEIGHTS).unlink()
    tiny.tiny_llava()[0].save_pretrained(folder, max_shard_size="50KB")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def shards(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "shards")


def refused(folder):
    with pytest.raises(UnsupportedModelError) as error, warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def change_weights(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def change_config(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_as_it_was_saved_and_not_without_a_weight(family, tmp_path):
    """A head that shares the word embeddings is stored once, and not missed."""
    model, processor = FAMILIES[family].build()
    tiny.save(tmp_path, model, processor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded, _ = load_model(tmp_path)
    weights = model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())
    lost = "lm_head.weight" if "lm_head.weight" in load_file(tmp_path / WEIGHTS) else EMBEDDINGS
    change_weights(tmp_path, lambda held: {name: held[name] for name in held if not name.endswith(lost)})
    assert lost in refused(tmp_path)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("multi_modal_projector", "(4): model.multi_modal_projector.linear_1.bias, "),
        ("embed_tokens", "(1): model.language_model.embed_tokens.weight"),
        ("lm_head", "(1): lm_head.weight"),
        ("layers.1.input_layernorm", "(1): model.language_model.layers.1.input_layernorm.weight"),
        ("class_embedding", "(1): model.vision_tower.embeddings.class_embedding"),
    ],
)
def test_missing_weights_are_named(folder, part, named, caplog):
    change_weights(folder, lambda held: {name: held[name] for name in held if part not in name})
    assert f"it lacks weights {named}" in refused(folder)
    assert not caplog.records


@pytest.mark.parametrize(
    ("rename", "named"),
    [
        (lambda name: f"module.{name}", "it holds others: module.language_model"),
        (lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"), "q_proj.base_layer.weight"),
        (lambda name: name.replace("multi_modal_projector.linear_1", "model.mm_projector.0"), "llava-hf/"),
    ],
)
def test_weights_under_other_names_are_named_too(folder, rename, named):
    change_weights(folder, lambda held: {rename(name): weight for name, weight in held.items()})
    assert named in refused(folder)


def test_weights_of_another_shape_are_named(folder):
    change_weights(folder, lambda held: held | {"multi_modal_projector.linear_1.weight": torch.zeros(40, 33)})
    assert "(1): model.multi_modal_projector.linear_1.weight 40x33 instead of 40x32" in refused(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(folder, value):
    name = "multi_modal_projector.linear_1.bias"

    def broken(held):
        held[name][3] = value
        return held

    change_weights(folder, broken)
    assert refused(folder).endswith(f"weights that are NaN or infinite (1): model.{name}")
    change_weights(folder, lambda held: held | {name: torch.full_like(held[name], 65504).half()})
    load_model(folder, dtype="float16")  # the largest numbers of a format are numbers


@pytest.mark.parametrize(
    ("n_layers", "named"), [(1, "model without the weights in it (9)"), (3, "weights (9)")]
)
def test_a_config_of_another_depth_is_refused(folder, n_layers, named):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_config(folder, text_config=text | {"num_hidden_layers": n_layers})
    line = refused(folder)
    assert named in line and f"language_model.layers.{min(n_layers, 2)}" in line


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_not_read_as_numbers(folder, dtype):
    change_weights(folder, lambda own: {key: value.to(dtype) for key, value in own.items()})
    assert "79 weights of model.safetensors are no plain floating numbers, first " in refused(folder)


def test_weights_of_a_family_are_not_read_as_those_of_another(tmp_path):
    tiny.save(tmp_path, *tiny.tiny_next())
    change_config(tmp_path, model_type="llava", architectures=["LlavaForConditionalGeneration"])
    assert "image_newline" in refused(tmp_path)


def test_a_head_for_another_purpose_is_told_and_left(folder):
    change_weights(folder, lambda held: held | {"v_head.weight": torch.zeros(40)})
    with pytest.warns(UserWarning, match=r"does not ask for \(1\): v_head\.weight$"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        (WEIGHTS, POINTER, "model.safetensors is a Git LFS pointer"),
        ("tokenizer.json", POINTER, "tokenizer.json is a Git LFS pointer"),
        ("config.json", POINTER, "config.json is a Git LFS pointer"),
        (WEIGHTS, "", "model.safetensors is damaged or not complete"),
        (WEIGHTS, "{}", "model.safetensors is damaged or not complete"),
        (WEIGHTS, None, "its weights are missing; accepted: model.safetensors, or"),
        ("config.json", None, "config.json is missing"),
        ("config.json", "[]", "config.json holds no settings"),
        ("config.json", "{}", "model_type: got None; supported: llava"),
        ("tokenizer.json", None, "its tokenizer is missing"),
        ("processor_config.json", None, "its image processor is missing"),
    ],
)
def test_files_that_are_missing_or_not_whole_are_named(folder, name, content, named):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    assert named in refused(folder)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_download_that_broke_off_is_refused(folder, share):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(share * len(data))])
    assert "model.safetensors is damaged or not complete" in refused(folder)


@pytest.mark.parametrize(
    "settings", [{"text_config": "llama"}, {"text_config": {"model_type": "unheard_of"}}]
)
def test_a_config_that_describes_no_model_gives_one_short_line(folder, settings):
    change_config(folder, **settings)
    assert len(refused(folder)) < 250 + len(str(folder))


def test_an_empty_folder_is_refused(tmp_path):
    assert "config.json is missing" in refused(tmp_path)


def test_shards_load(shards, whole):
    weights = load_model(whole)[0].state_dict()
    assert all(torch.equal(own, weights[name]) for name, own in load_model(shards)[0].state_dict().items())


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        (
            "model-00002-of-00006.safetensors",
            None,
            "1 of its 6 files of weights missing: model-00002-of-00006",
        ),
        (
            "model-00005-of-00006.safetensors",
            POINTER,
            "model-00005-of-00006.safetensors is a Git LFS pointer",
        ),
        ("model-00003-of-00006.safetensors", "", "model-00003-of-00006.safetensors is damaged"),
        (INDEX, None, "its weights are missing; there are model-00001-of-00006.safetensors, "),
        (INDEX, "{", "model.safetensors.index.json"),
        (INDEX, "[]", "model.safetensors.index.json lists no files"),
    ],
)
def test_shards_that_are_missing_or_not_whole_are_named(shards, name, content, named):
    if content is None:
        (shards / name).unlink()
    else:
        (shards / name).write_text(content)
    assert named in refused(shards)


@pytest.mark.parametrize(
    ("file", "settings", "named"),
    [
        (
            "processor_config.json",
            {"processor_class": "LlavaNextProcessor"},
            "its processor is a LlavaNextProcessor",
        ),
        ("config.json", {"image_token_index": 7}, "writes images as '<image>', number 4; its model reads 7"),
        ("config.json", {"model_type": ["llava"]}, "config.json says model_type ['llava']"),
        ("config.json", {"architectures": {"a": 1}}, "architectures {'a': 1}"),
    ],
)
def test_parts_that_do_not_belong_together_are_told(folder, file, settings, named):
    description = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(description | settings))
    assert named in refused(folder)


@pytest.mark.parametrize(
    "settings",
    [{"do_center_crop": False}, {"crop_size": {"height": 20, "width": 20}}],
    ids=["whole", "small"],
)
def test_pictures_that_the_encoder_does_not_take_are_one_line(folder, settings):
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"image_processor": content["image_processor"] | settings}))
    adapter = adapter_for(*load_model(folder))
    with pytest.raises(
        ParameterError, match="^pixel_values: got 'pictures of .* px'; accepted: 24 x 24 px, as the"
    ):
        adapter.encode(tiny.random_images(1, (60, 40)))


def test_an_image_processor_that_fails_is_refused(folder):
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | {"image_processor": content["image_processor"] | {"image_mean": None}})
    )
    assert "its image processor fails (`image_mean` and `image_std` must both be specified" in refused(folder)


def test_a_chat_template_that_fails_is_one_line(folder):
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ParameterError, match="^processor: got .a chat template that fails ") as error:
        adapter_for(*load_model(folder)).prompt("What is it ?")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("beside", ["nothing", "a config", "a whole model"])
def test_a_peft_adapter_is_refused_with_its_base_model(folder, beside):
    if beside != "a whole model":
        (folder / WEIGHTS).unlink()
    if beside == "nothing":
        (folder / "config.json").unlink()
    adapter = {"base_model_name_or_path": "some/base", "peft_type": "LORA", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    assert "it holds a PEFT adapter; accepted: its base model (some/base)" in refused(folder)


@pytest.mark.parametrize(
    ("settings", "converted"),
    [
        ({"model_type": "llava"}, "llava-1.5-7b-hf"),
        ({"model_type": "llava_llama", "hidden_size": 5120}, "llava-1.5-13b-hf"),
        ({"model_type": "llava_llama", "image_aspect_ratio": "anyres"}, "llava-v1.6-vicuna-7b-hf"),
        (
            {"model_type": "llava_llama", "image_aspect_ratio": "anyres", "vocab_size": 128256},
            "llama3-llava-next-8b-hf",
        ),
        (
            {
                "model_type": "llava_mistral",
                "architectures": ["LlavaMistralForCausalLM"],
                "image_aspect_ratio": "anyres",
            },
            "llava-v1.6-mistral-7b-hf",
        ),
        (
            {"model_type": "llava_qwen", "hidden_size": 3584, "image_aspect_ratio": "anyres_max_9"},
            "llava-onevision-qwen2-7b-ov-hf",
        ),
        ({"model_type": "llava_mpt", "architectures": ["LlavaMptForCausalLM"]}, "llava-1.5-7b-hf"),
    ],
)
def test_an_original_checkpoint_is_refused_by_its_config_alone(settings, converted, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(THEIRS | settings))
    with pytest.raises(UnsupportedModelError, match=rf"form of the original LLaVA.* llava-hf/{converted}$"):
        model_source(tmp_path)


@pytest.mark.parametrize("name", ["", None, 3, "llava-1.5-7b", "owner/name/further", "/no/such/folder"])
def test_what_names_no_model_is_refused(name):
    assert f"model: got {name!r}; accepted: a model's name (" in refused(name)
