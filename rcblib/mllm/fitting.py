"""Decide whether a model's weights fit a GPU as they are."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from rcblib.mllm.loading import model_source
from rcblib.records import ParameterError

MOST_WEIGHTS = 0.85
"""Share of a GPU's memory that weights may take; the rest is for activations, the cache and CUDA itself."""


def fitting_quantization(name_or_path: str | Path, device: str = "auto", device_map: str = "") -> str:
    """Choose how `load_model` is to store a model: as 4-bit numbers where 16 bits each would fill the GPU.

    Parameters
    ----------
    name_or_path, device, device_map
        As for `load_model`. On several devices, and on anything but CUDA, weights stay as they are.

    Returns
    -------
    str
        ``"4bit"`` or ``""``. Nothing is loaded: only the model's config is read.

    Raises
    ------
    UnsupportedModelError
        As `load_model`.
    ParameterError
        If the device is none that torch knows.
    """
    try:
        is_cuda = device == "auto" or torch.device(device).type == "cuda"
    except (RuntimeError, TypeError):
        raise ParameterError("device", device, "'auto', or a device that this machine has") from None
    if device_map or not is_cuda or not torch.cuda.is_available():
        return ""
    config = AutoConfig.from_pretrained(model_source(name_or_path), trust_remote_code=False)
    with torch.device("meta"):
        shape = AutoModelForImageTextToText.from_config(config)
    n_bytes = 2 * sum(weights.numel() for weights in shape.parameters())
    memory = torch.cuda.get_device_properties("cuda" if device == "auto" else device).total_memory
    return "4bit" if n_bytes > MOST_WEIGHTS * memory else ""
