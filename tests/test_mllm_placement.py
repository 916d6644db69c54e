"""Check where the parts of a model lie: device maps, 4-bit storage, and inputs that follow the parts."""

import accelerate
import pytest
import tiny
import torch
from families import FAMILIES

from rcblib.mllm import adapter_for, load_model, loading
from rcblib.mllm.loading import four_bit_config
from rcblib.mllm.placement import module_device, outside_llm
from rcblib.records import ParameterError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_tiny_llava(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"qwen2_5_vl"}))
def test_everything_but_the_llm_is_listed(family):
    model, _ = FAMILIES[family].build()
    listed = outside_llm(model)
    assert set(listed) == {"model.vision_tower", "model.multi_modal_projector", "lm_head"}
    assert four_bit_config(model, torch.float16).llm_int8_skip_modules == listed


def test_a_device_map_is_handed_on(folder):
    plain, _ = load_model(folder, device="cpu")
    places = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu"}
    places |= {"model.language_model": "cpu", "lm_head": "cpu"}
    model, processor = load_model(folder, device_map=places)
    assert next(model.model.vision_tower.parameters()).device.type == "meta"
    assert not model.training
    image = tiny.random_images(1)
    expected = adapter_for(plain, processor).encode(image)[0].views[0].tokens
    assert torch.equal(adapter_for(model, processor).encode(image)[0].views[0].tokens, expected)


def test_inputs_follow_parts_that_are_kept_on_disk(tmp_path):
    model, processor = tiny.tiny_llava()
    adapter = adapter_for(model, processor)
    pixels = {"pixel_values": torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))}
    prompt = adapter.prompt("What is red ?")

    def results():
        tokens = torch.stack([image.views[0].tokens for image in adapter.encode_pixels(pixels)])
        attention = adapter.text_to_image_attention(prompt, tokens[0])
        logits = adapter.first_token_logits(prompt, tokens)
        return [tokens, logits, attention["last"], adapter.replacement_embedding()]

    expected = results()
    places = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu"}
    places |= {"model.language_model": "disk", "lm_head": "cpu"}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    for part in (model.model.vision_tower, model.get_input_embeddings()):
        assert next(part.parameters()).device.type == "meta"
        assert module_device(part) == torch.device("cpu")
    for after, before in zip(results(), expected, strict=True):
        assert torch.equal(after, before)


def test_a_module_without_hooks_computes_where_its_weights_are():
    assert module_device(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_map": "everywhere"}, "device_map: got 'everywhere'; accepted: None, 'auto'"),
        ({"device_map": "auto", "device": "cpu"}, "device: got 'cpu'; accepted: 'auto' together with"),
        ({"quantization": "8bit"}, "quantization: got '8bit'; accepted: None or '4bit'"),
    ],
)
def test_wrong_placements_are_told_first(arguments, message):
    with pytest.raises(ParameterError, match=message):
        load_model("no-such-model", **arguments)


def lacking(*packages):
    """Return a stand-in for `find_spec` that finds everything else."""
    return lambda name: None if name in packages else object()


def test_missing_packages_are_named_in_one_line(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lacking("accelerate"))
    with pytest.raises(ParameterError, match="accelerate is not installed"):
        load_model("no-such-model", device_map="auto")
    monkeypatch.setattr(loading, "find_spec", lacking("bitsandbytes"))
    with pytest.raises(
        ParameterError, match=r"bitsandbytes is not installed \(pip install 'rcblib\[gpu\]'\)"
    ):
        load_model("no-such-model", quantization="4bit")


def test_4_bit_needs_a_cuda_device(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lacking())
    with pytest.raises(ParameterError, match="None on cpu; 4-bit needs a CUDA device"):
        load_model("no-such-model", "cpu", quantization="4bit")


def test_weights_go_to_a_gpu_without_a_stop_in_the_machines_memory(folder, monkeypatch):
    gpu = torch.device("cuda", 0)
    given = (str(folder), gpu, None, None, torch.float16)
    pytest.importorskip("accelerate")
    assert loading._placement(*given) == {"device_map": {"": gpu}}
    monkeypatch.setattr(loading, "find_spec", lacking("accelerate"))
    assert loading._placement(*given) == {}
    assert loading._placement(str(folder), torch.device("cpu"), None, None, torch.float32) == {}


def test_4_bit_leaves_visual_tokens_as_they_are(folder, monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # Its numbers are the same on a CPU, only slow.
    monkeypatch.setattr(loading, "_check_quantization", lambda *_: None)
    plain, processor = load_model(folder, "cpu")
    model, _ = load_model(folder, "cpu", quantization="4bit")
    stored = [name for name, part in model.named_modules() if isinstance(part, bitsandbytes.nn.Linear4bit)]
    assert len(stored) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in stored)
    image = tiny.random_images(1)
    tokens = [adapter_for(m, processor).encode(image)[0].views[0].tokens for m in (plain, model)]
    assert torch.equal(*tokens)
