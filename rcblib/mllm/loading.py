"""Load models by name, and find the adapter of their family."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from rcblib.mllm.base import Adapter
from rcblib.mllm.checkpoint import cannot_be_loaded, check_config, check_files, check_loaded, check_processor
from rcblib.mllm.llava import LlavaAdapter
from rcblib.mllm.llava_next import LlavaNextAdapter
from rcblib.mllm.llava_onevision import LlavaOnevisionAdapter
from rcblib.mllm.placement import outside_llm
from rcblib.mllm.qwen2_5_vl import Qwen25VLAdapter
from rcblib.mllm.wrapping import unwrapped
from rcblib.records import ParameterError, UnsupportedModelError
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import FROM_CHECKOUT, project_root

ADAPTERS: dict[str, type[Adapter]] = {
    "llava": LlavaAdapter,
    "llava_next": LlavaNextAdapter,
    "llava_onevision": LlavaOnevisionAdapter,
    "qwen2_5_vl": Qwen25VLAdapter,
}
"""Adapter of each supported ``model_type``."""

MODEL_GROUP = "rcblib.models"
"""Entry points by which a package offers models of its own: name to a function without arguments.

It returns the folder of a complete checkpoint, which it may put together first, or raises `UnsupportedModelError` with
one line that says what is missing and how to get it.
"""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def adapter_for(model: Any, processor: Any = None) -> Adapter:
    """Wrap a model in the adapter of its family.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A loaded model, or one wrapped in something (`rcblib.mllm.wrapping.wrapping`).
    processor : transformers.ProcessorMixin, optional
        Its processor; not needed to prune.

    Returns
    -------
    Adapter
        Of the model itself.

    Raises
    ------
    UnsupportedModelError
        If the family has no adapter, or the model is of a form that its adapter does not cover.
    ParameterError
        If what it is wrapped in makes another model of it, or the processor reads no images.
    """
    model = unwrapped(model)
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    adapter_class = _adapter_class(model_type)
    if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"model: got {type(model).__name__}, which says no words; supported: the model with its head, as "
            "load_model or AutoModelForImageTextToText returns it"
        )
    if processor is not None and not hasattr(processor, "image_processor"):
        accepted = "the model's processor, from load_model or AutoProcessor, of texts and images"
        raise ParameterError("processor", type(processor).__name__, accepted)
    return adapter_class(model, processor)


def load_model(
    name_or_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    device_map: str | Mapping[str, int | str | torch.device] | None = None,
    quantization: str | None = None,
    attn_implementation: str = "sdpa",
) -> tuple[Any, Any]:
    """Load a model and its processor.

    Parameters
    ----------
    name_or_path : str or path-like
        The name of a model: of an embedded one (a folder in ``data/models``) or one that an installed package offers
        (`MODEL_GROUP`); a folder; or a Hugging Face id.
    device : str or torch.device
        ``"auto"`` takes CUDA, else MPS, else the CPU.
    dtype : str or torch.dtype
        ``"float32"``, ``"float16"``, ``"bfloat16"``, or ``"auto"``: float32 on the CPU; on a GPU bfloat16
        where its hardware has it, else float16.
    device_map : str or Mapping, optional
        Spread the model over several devices, as transformers does: ``"auto"``, ``"balanced"``, ``"balanced_low_0"``,
        ``"sequential"``, or a device for each named module; `device` must then be ``"auto"``. Needs accelerate. An
        empty text stands for none, as for `quantization`: a notebook's parameters are texts.
    quantization : str, optional
        ``"4bit"`` stores the LLM's linear layers as 4-bit NF4 numbers (bitsandbytes) and computes in `dtype`. Needs
        bitsandbytes, accelerate and a CUDA device. Vision encoder and connector stay in `dtype`, so that visual
        tokens are those of the full model, and with them similarities to a codebook; so do word embeddings and the
        head that gives the logits.
    attn_implementation : str
        Attention of vision encoder and LLM; attention signals are available under any.

    Returns
    -------
    model : transformers.PreTrainedModel
        In evaluation mode.
    processor : transformers.ProcessorMixin
        It pads on the left, as generation in batches needs, and preprocesses images with PIL and videos with torch
        alone, so that pixels are the same whether torchvision is installed or not.

    Raises
    ------
    UnsupportedModelError
        If nothing of that name is found, it cannot be read, or its family has no adapter.
    ParameterError
        If the device, dtype, device map or quantization is not one of those accepted, or needs what is missing here.

    Notes
    -----
    Weights are read from safetensors only and no code of a checkpoint is run.

    Inputs of a model in parts go where its word embeddings are computed (`rcblib.mllm.placement.module_device`), which
    ``model.device`` need not name; each part's rows are moved where they are needed.
    """
    device_map, quantization = device_map or None, quantization or None
    _check_placement(device, device_map)
    device = _device(device)
    _check_quantization(quantization, device)
    dtype = _dtype(dtype, device)
    source = _locate(name_or_path)
    config = _read_config(source, name_or_path)
    check_files(name_or_path, source)
    try:
        placement = _placement(source, device, device_map, quantization, dtype)
        with _without_tables():
            model, report = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **placement,
            )
        check_loaded(name_or_path, model, report)
        processor = _processor(source, _adapter_class(config["model_type"]).processor_class)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever the readers of other libraries raise on a file that they cannot use
        raise cannot_be_loaded(name_or_path, error) from error
    adapter = adapter_for(model, processor)
    check_processor(name_or_path, processor, config["model_type"], adapter.image_token_id)
    adapter.complete_processor()
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if str(name_or_path) in model_names():
        model.config._name_or_path = str(name_or_path)  # not where it lies on this machine
    if "device_map" not in placement:
        model = model.to(device)
    return model.eval(), processor


@contextmanager
def _without_tables() -> Iterator[None]:
    """Keep the tables of weights that transformers logs to itself: `check_loaded` says in one line what matters."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _processor(source: str, own_class: Any) -> Any:
    """Load a processor whose images are preprocessed with PIL, and whose videos need no torchvision."""
    if own_class is not None:
        return own_class.from_pretrained(source, trust_remote_code=False)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    processor.image_processor = AutoImageProcessor.from_pretrained(
        source, backend="pil", trust_remote_code=False
    )
    return processor


def embedded_models() -> dict[str, Path]:
    """List the embedded models: name and folder; none outside the project."""
    try:
        folder = project_root() / "data" / "models"
    except ParameterError:
        return {}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def model_names() -> list[str]:
    """List the models that have a name, embedded or offered by a package; nothing is put together."""
    return sorted(embedded_models().keys() | entry_points(group=MODEL_GROUP).names)


def model_folder(name_or_path: str | Path) -> Path | None:
    """Return the folder of a model on this machine: that of its name, or the one that is given.

    Raises
    ------
    UnsupportedModelError
        If a package offers a model of this name and cannot put it together.
    """
    name, embedded, offered = str(name_or_path), embedded_models(), entry_points(group=MODEL_GROUP)
    if name in embedded:
        return embedded[name]
    if name in offered.names:
        try:
            build = offered[name].load()
        except ImportError as error:
            raise cannot_be_loaded(name, error) from error
        return build()
    path = user_path(name_or_path, "model")
    return path if path.is_dir() else None


def _locate(name_or_path: str | Path) -> str:
    """Return the folder or Hugging Face id that a name stands for."""
    is_named = isinstance(name_or_path, str | Path) and name_or_path != ""
    folder = model_folder(name_or_path) if is_named else None
    if folder is not None:
        return str(folder)
    if isinstance(name_or_path, str) and _HUB_ID.fullmatch(name_or_path):
        return name_or_path
    given = str(name_or_path) if is_named else name_or_path
    named = f"a model's name ({', '.join(model_names()) or 'none here'})"
    if not embedded_models():
        named += f", one of data/models ({FROM_CHECKOUT})"
    raise UnsupportedModelError(
        f"model: got {given!r}; accepted: {named}, a folder, or a Hugging Face id, such as llava-hf/llava-1.5-7b-hf"
    )


def model_source(name_or_path: str | Path) -> str:
    """Return the folder or Hugging Face id of a model that `load_model` would take.

    Raises
    ------
    UnsupportedModelError
        If nothing of that name is found, its config cannot be read, or its family has no adapter.
    """
    source = _locate(name_or_path)
    _read_config(source, name_or_path)
    return source


def _read_config(source: str, name_or_path: str | Path) -> dict[str, Any]:
    """Read a model's config, of a family that has an adapter."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        check_files(name_or_path, source)  # which may know why
        raise cannot_be_loaded(name_or_path, error) from error
    if not config and Path(source).is_dir():
        check_files(name_or_path, source)
    check_config(name_or_path, config)
    _adapter_class(config.get("model_type"))
    return config


def _adapter_class(model_type: str | None) -> type[Adapter]:
    if model_type not in ADAPTERS:
        raise UnsupportedModelError(f"model_type: got {model_type!r}; supported: {', '.join(ADAPTERS)}")
    return ADAPTERS[model_type]


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError):
        raise ParameterError("device", device, "'auto', or a device that this machine has") from None
    return chosen


def _check_placement(device: str | torch.device, device_map: Any) -> None:
    """Raise where a device map is no such thing, is given beside a device, or lacks what it needs."""
    if device_map is None:
        return
    if not isinstance(device_map, Mapping) and device_map not in _PLACEMENTS:
        accepted = f"None, {', '.join(map(repr, _PLACEMENTS))}, or a mapping from modules to devices"
        raise ParameterError("device_map", device_map, accepted)
    if device != "auto":
        raise ParameterError("device", device, "'auto' together with a device_map")
    if find_spec("accelerate") is None:
        raise ParameterError("device_map", device_map, "None where accelerate is not installed")


def _check_quantization(quantization: str | None, device: torch.device) -> None:
    """Raise where a quantization is not known, or lacks a package or the hardware."""
    if quantization is None:
        return
    if quantization != "4bit":
        raise ParameterError("quantization", quantization, "None or '4bit'")
    missing = [name for name in ("accelerate", "bitsandbytes") if find_spec(name) is None]
    if missing:
        raise ParameterError(
            "quantization",
            quantization,
            f"None where {' and '.join(missing)} is not installed (pip install 'rcblib[gpu]')",
        )
    if device.type != "cuda":
        raise ParameterError(
            "quantization", quantization, f"None on {device.type}; 4-bit needs a CUDA device"
        )


def _placement(
    source: str, device: torch.device, device_map: Any, quantization: str | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the arguments that place a model while it is read; none where it is read first and moved then."""
    arguments = {} if device_map is None else {"device_map": device_map}
    if not arguments and device.type == "cuda" and find_spec("accelerate") is not None:
        arguments["device_map"] = {"": device}  # weights need not fit into the machine's own memory
    if quantization is None:
        return arguments
    with torch.device("meta"):
        shape = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(source, trust_remote_code=False)
        )
    arguments.setdefault("device_map", {"": device})
    return arguments | {"quantization_config": four_bit_config(shape, dtype)}


def four_bit_config(model: Any, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how the linear layers of a model's LLM are stored as 4-bit numbers.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model, or its shape on the meta device.
    dtype : torch.dtype
        What products are computed in.

    Notes
    -----
    Source: NF4 with quantized block constants, as QLoRA stores frozen weights. In transformers the setting
    ``llm_int8_skip_modules`` names what stays as it is for 4-bit numbers too; giving it replaces the default, which
    spares only the head and would quantize vision encoder and connector.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=outside_llm(model),
    )


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if dtype in _DTYPES.values():
        return dtype
    if dtype not in _DTYPES:
        raise ParameterError("dtype", dtype, f"'auto', {', '.join(map(repr, _DTYPES))}")
    return _DTYPES[dtype]
