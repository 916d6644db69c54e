"""Check that a model is found inside what people wrap it in, and is probed and pruned as itself."""

import copy

import pytest
import tiny
import torch
from messages import refused
from transformers import AutoModel, pipeline

from rcblib.mllm import adapter_for
from rcblib.mllm.fingerprint import model_fingerprint
from rcblib.mllm.wrapping import unwrapped
from rcblib.probe.run import probe
from rcblib.pruners import RandomPruner
from rcblib.records import UnsupportedModelError

SETTINGS = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def pair():
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def inputs(pair):
    text = "USER: <image>\nWhat does this image show ? ASSISTANT:"
    return dict(pair[1](text=text, images=tiny.random_images(1), return_tensors="pt"))


def with_lora(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(copy.deepcopy(model), config).eval()


def without_task(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False)
    return peft.PeftModel(copy.deepcopy(model), config).eval()


WRAPPINGS = {
    "peft": with_lora,
    "peft without a task": without_task,
    "data parallel": torch.nn.DataParallel,
    "compiled": lambda model: torch.compile(copy.deepcopy(model), backend="eager"),
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_wrapped_model_is_the_model_inside(pair, inputs, name):
    """What PEFT has changed stays at work; its own calls are pruned as the model's are."""
    model, processor = pair
    outer = WRAPPINGS[name](model)
    inner, pruner = unwrapped(outer), RandomPruner(0.25)
    assert type(inner) is type(model) and adapter_for(outer).model is inner
    generate = getattr(outer, "generate", inner.generate)
    plain = generate(**inputs, **SETTINGS)
    with pruner(inner), torch.no_grad():
        expected, logits = inner.generate(**inputs, **SETTINGS), inner(**inputs).logits
    with pruner(outer) as pruned, torch.no_grad():
        ours = getattr(outer, "generate", inner.generate)(**inputs, **SETTINGS)
        torch.testing.assert_close(outer(**inputs).logits, logits, rtol=0, atol=1e-5)
    assert len(pruned.kept) == 2
    assert torch.equal(ours, expected) and not torch.equal(ours, plain)
    assert torch.equal(getattr(outer, "generate", inner.generate)(**inputs, **SETTINGS), plain)
    settings = {"positions": [0, 14], "attention": False}
    photo = tiny.random_images(1)[0]
    tables = [probe(each, processor, photo, **settings) for each in (outer, inner, model)]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2]) == ("peft" not in name)


def test_a_model_that_is_compiled_in_place_is_pruned(pair, inputs):
    model, pruner = pair[0], RandomPruner(0.25)
    with pruner(model), torch.no_grad():
        logits = model(**inputs).logits
    other = copy.deepcopy(model)
    other.compile(backend="eager")
    before = vars(other)["_compiled_call_impl"]
    with pruner(other), torch.no_grad():
        torch.testing.assert_close(other(**inputs).logits, logits, rtol=0, atol=1e-5)
    assert vars(other)["_compiled_call_impl"] is before


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_what_is_at_work_of_peft_tells_models_apart(pair):
    """Stored results are found by the fingerprint; adapters that are off, on or others answer otherwise."""
    outer = with_lora(pair[0])
    outer.add_adapter("other", outer.peft_config["default"])
    inner = unwrapped(outer)
    found = [model_fingerprint(inner)]
    outer.set_adapter("other")
    found.append(model_fingerprint(inner))
    with outer.disable_adapter():
        found.append(model_fingerprint(inner))
    outer.set_adapter("default")
    assert len(set(found)) == 3 and model_fingerprint(inner) == found[0]


def test_a_pipeline_holds_a_model(pair):
    held = pipeline("image-text-to-text", model=pair[0], processor=pair[1])
    assert unwrapped(held) is pair[0] and adapter_for(held).model is pair[0]


def test_parts_of_a_model_are_refused_in_one_line(pair):
    model, processor = pair
    photo = tiny.random_images(1)[0]
    uses = (
        adapter_for,
        lambda own: probe(own, processor, photo),
        lambda own: RandomPruner(0.5)(own).__enter__(),
    )
    for part in (AutoModel.from_config(model.config), model.model):
        for use in uses:
            with refused("^model: got LlavaModel, which says no words; supp", UnsupportedModelError):
                use(part)
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    for part in (model.model.language_model, model.model.vision_tower, "llava", None, traced):
        with refused("^model_type: got .*; supported: llava", UnsupportedModelError):
            adapter_for(part)


def test_what_is_no_processor_is_refused_in_one_line(pair):
    model, processor = pair
    for part in (processor.tokenizer, processor.image_processor, "llava", model):
        with refused(f"^processor: got '{type(part).__name__}'; accepted: the model's processor"):
            probe(model, part, tiny.random_images(1)[0])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_learned_rows_in_prompts_are_refused_in_one_line(pair):
    peft = pytest.importorskip("peft")
    sizes = {"num_virtual_tokens": 3, "num_layers": 2, "token_dim": 32, "num_attention_heads": 4}
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", **sizes)
    learned = peft.get_peft_model(copy.deepcopy(pair[0]), config)
    with refused("^model: got .PEFT's PROMPT_TUNING, which puts rows into prompts.; accepted: an adapter"):
        RandomPruner(0.5)(learned).__enter__()
