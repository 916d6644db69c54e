"""Identify a model by what it holds, wherever it was loaded from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcblib.mllm.placement import weights_by_name


def model_fingerprint(model: Any) -> str:
    """Identify a model by its settings, dtype and a few values of every weight, wherever it was loaded from.

    Of a model with adapters of PEFT, also by which are at work.

    Returns
    -------
    str
        12 hexadecimal digits. Models that differ only in values that were not looked at get the same one.
    """
    digest = hashlib.sha256(
        json.dumps(settings_of(model.config.to_dict()), sort_keys=True, default=str).encode()
    )
    for name, weight in weights_by_name(model):
        flat = weight.detach().flatten()
        few = flat[:: max(1, len(flat) // 8)]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(few.float().cpu().numpy().tobytes())
    for name, part in model.named_modules():
        if isinstance(getattr(type(part), "disable_adapters", None), property):  # a layer of PEFT's
            at_work = [] if part.disable_adapters else part.active_adapters
            scaling = {adapter: getattr(part, "scaling", {}).get(adapter) for adapter in at_work}
            digest.update(f"{name} {scaling} {part.merged_adapters}".encode())
    return digest.hexdigest()[:12]


def settings_of(config: Any) -> Any:
    """Return a model's settings without its name, its place, the versions that wrote it and how it is run."""
    if not isinstance(config, Mapping):
        return config
    skipped = ("transformers_version", "dtype", "torch_dtype")
    named = {str(key): value for key, value in config.items()}
    return {
        key: settings_of(value)
        for key, value in named.items()
        if key not in skipped and not key.startswith("_")
    }


def processor_settings(processor: Any) -> dict[str, Any]:
    """Return the settings of what a processor makes of images and videos, as `settings_of` reduces them, by part."""
    return {
        name: json.loads(json.dumps(settings_of(getattr(processor, name).to_dict()), default=str))
        for name in ("image_processor", "video_processor")
        if getattr(processor, name, None) is not None
    }


def model_name(model: Any) -> str:
    """Return the Hugging Face id of a model, or the name of its folder without its path."""
    name = str(getattr(model.config, "_name_or_path", ""))
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name
