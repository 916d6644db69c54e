"""Put the photographs model together: pretrained parts from their wheels, trained connector and adapters from here."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pooch
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from rcblib.runs.files import read_json
from rcblib.runs.provenance import project_path
from worlds.photographs.parts import FILES, language_model, llm_tokenizer, part, vision_encoder

IMAGE_SIZE = 168
"""Pixels along a side of what the encoder gets: 12 x 12 = 144 tokens."""

PATCH_SIZE = 14

IMAGE_TOKEN = "<image>"

PINPOINTS = ((168, 336), (336, 168), (336, 336))
"""Heights and widths that the LLaVA-NeXT-type model tiles images to."""

WORLD = "photographs"

# SmolLM2's own template, with messages whose content is a list as transformers passes it: images first, then text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] if content['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_processor(tiles: bool = False) -> ProcessorMixin:
    """Build the processor: ImageNet's mean and deviation, the shorter side resized, the centre cropped."""
    tokenizer = llm_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.image_token = IMAGE_TOKEN
    images = {
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    shared = {
        "tokenizer": tokenizer,
        "chat_template": CHAT_TEMPLATE,
        "image_token": IMAGE_TOKEN,
        "patch_size": PATCH_SIZE,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if tiles:
        tiled = LlavaNextImageProcessorPil(image_grid_pinpoints=[list(size) for size in PINPOINTS], **images)
        return LlavaNextProcessor(image_processor=tiled, **shared)
    return LlavaProcessor(image_processor=CLIPImageProcessorPil(**images), **shared)


def build_model(trained: Path | None, tiles: bool = False) -> PreTrainedModel:
    """Build the model from its parts, what was trained merged in.

    Parameters
    ----------
    trained : path or None
        Folder with ``connector.safetensors`` and ``adapter/`` (PEFT); ``None`` leaves an untrained connector and the
        LLM as it was.
    tiles : bool
        Whether it is of LLaVA-NeXT's type.
    """
    llm, tower = language_model(), vision_encoder(IMAGE_SIZE)
    if trained is not None:
        # In double precision, so that the last bit is the same on every machine.
        llm = PeftModel.from_pretrained(llm.double(), trained / "adapter").merge_and_unload().float()
    image_id = llm.config.vocab_size
    llm.resize_token_embeddings(image_id + 1, mean_resizing=False)
    with torch.no_grad():
        llm.get_input_embeddings().weight[image_id] = 0
    settings: dict[str, Any] = {
        "vision_config": tower.config,
        "text_config": llm.config,
        "image_token_index": image_id,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
        "image_seq_length": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        "tie_word_embeddings": True,
    }
    if tiles:
        config = LlavaNextConfig(image_grid_pinpoints=[list(size) for size in PINPOINTS], **settings)
        model = LlavaNextForConditionalGeneration(config)
        with torch.no_grad():  # no newline was ever trained: the LLM's own
            model.model.image_newline.copy_(llm.get_input_embeddings().weight[_newline_id()])
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**settings))
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.tie_weights()
    if trained is not None:
        model.model.multi_modal_projector.load_state_dict(
            {k: v.float() for k, v in load_file(trained / "connector.safetensors").items()}
        )
    model.config.rcb_world = WORLD
    model.config.replacement_token_id = 0  # <|endoftext|>; what the tokenizer pads with ends answers
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        setattr(model.generation_config, name, getattr(llm.config, name))
    return model.eval()


def _newline_id() -> int:
    """Return the id of the LLM's line break."""
    return llm_tokenizer()("\n", add_special_tokens=False).input_ids[0]


def assembled(name: str) -> Path:
    """Return the folder of a complete checkpoint, assembled in the user's cache where it is not there yet.

    Parameters
    ----------
    name : str
        A folder of ``data/models`` with an ``assembly.json``, and with ``connector.safetensors`` and ``adapter/``
        unless that names, as ``trained``, the folder beside it that holds them.

    Raises
    ------
    UnsupportedModelError
        Where a wheel is missing.
    """
    own = project_path(f"data/models/{name}")
    for package in FILES:
        part(package)
    settings, trained = read_json(own / "assembly.json"), trained_folder(own)
    folder = Path(pooch.os_cache("rcblib")) / "models" / f"{name}-{_digest(own, settings)}"
    if not (folder / "config.json").is_file():
        print(f"{name}: assembled once, in {folder}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        build_processor(settings["tiles"]).save_pretrained(scratch)
        build_model(trained, settings["tiles"]).save_pretrained(scratch)
        try:
            scratch.replace(folder)
        except OSError:  # another process was faster
            shutil.rmtree(scratch)
    return folder


def trained_folder(folder: Path) -> Path:
    """Return the folder that holds what was trained of a model of ``data/models``: its own, or one that it names."""
    return folder.parent / read_json(folder / "assembly.json").get("trained", folder.name)


def trained_files(folder: Path) -> list[Path]:
    """List the files of what was trained of a model of ``data/models``: connector and adapters."""
    return sorted(trained_folder(folder).rglob("*.safetensors"))


def _digest(folder: Path, settings: dict[str, Any]) -> str:
    """Hash all that a checkpoint is made of: trained files, parts, this code, the library that writes it."""
    digest = hashlib.sha256(json.dumps([settings, FILES, version("transformers")], sort_keys=True).encode())
    for path in (*trained_files(folder), Path(__file__), Path(__file__).with_name("parts.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def llava_photographs() -> Path:
    """Return the LLaVA-type model of real parts, trained on all tokens always."""
    return assembled("llava-photographs")


def llava_photographs_dropped() -> Path:
    """Return the LLaVA-type model of real parts, trained on inputs with tokens dropped too."""
    return assembled("llava-photographs-dropped")


def llava_photographs_seed_1() -> Path:
    """Return the model of `llava_photographs` trained once more, with another seed from the connector on."""
    return assembled("llava-photographs-seed-1")


def llava_photographs_dropped_seed_1() -> Path:
    """Return the model of `llava_photographs_dropped` trained once more, with another seed from the connector on."""
    return assembled("llava-photographs-dropped-seed-1")


def llava_next_photographs() -> Path:
    """Return the LLaVA-NeXT-type model of the same parts and trained weights, which never saw tiles."""
    return assembled("llava-next-photographs")
