"""Say in one line what is wrong with a checkpoint: with its config, its files, and what they held."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import find_adapter_config_file

from rcblib.mllm.placement import weights_by_name
from rcblib.records import ParameterError, UnsupportedModelError
from rcblib.runs.errors import in_one_line
from rcblib.runs.files import read_json

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"

_PARTS = {
    "image processor": ("processor_config.json", "preprocessor_config.json"),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.json"),
}
"""Files of which a folder has at least one."""

_POINTER = b"version https://git-lfs.github.com/spec/"

_CONVERTED = {
    ("llama", 4096, False): "llava-1.5-7b-hf",
    ("llama", 5120, False): "llava-1.5-13b-hf",
    ("llama", 4096, True): "llava-v1.6-vicuna-7b-hf",
    ("llama", 5120, True): "llava-v1.6-vicuna-13b-hf",
    ("llama", 7168, True): "llava-v1.6-34b-hf",
    ("llama3", 4096, True): "llama3-llava-next-8b-hf",
    ("mistral", 4096, True): "llava-v1.6-mistral-7b-hf",
    ("qwen", 896, True): "llava-onevision-qwen2-0.5b-ov-hf",
    ("qwen", 3584, True): "llava-onevision-qwen2-7b-ov-hf",
    ("qwen", 8192, True): "llava-onevision-qwen2-72b-ov-hf",
}
"""Converted checkpoint of what the authors of LLaVA published: LLM, its width, and whether images have tiles."""

_N_NAMED = 4


def cannot_be_loaded(name: str | Path, reason: Exception | str) -> UnsupportedModelError:
    """Return the error of a model that cannot be loaded; the error of another library in one line."""
    if isinstance(reason, Exception):
        reason = in_one_line(reason)
    return UnsupportedModelError(f"model: {str(name)!r} cannot be loaded: {reason}")


def check_config(name: str | Path, config: Any) -> None:
    """Raise where a config is none, or that of an original repository of LLaVA.

    Parameters
    ----------
    name : str or path-like
        The model as the user named it.
    config : Mapping
        Content of its ``config.json``.

    Raises
    ------
    UnsupportedModelError
        In one line; of an original checkpoint it names the converted one.
    """
    if not isinstance(config, Mapping):
        raise cannot_be_loaded(name, "config.json holds no settings by name")
    kind, kinds = config.get("model_type"), config.get("architectures") or [""]
    if not isinstance(kind, str | None) or not isinstance(kinds, list | str):
        raise cannot_be_loaded(name, f"config.json says model_type {kind!r}, architectures {kinds!r}")
    first = kinds if isinstance(kinds, str) else str(kinds[0])
    is_theirs = first.startswith(("Llava", "LlaVA")) and first.endswith("ForCausalLM")
    has_their_settings = "text_config" not in config and any(key.startswith("mm_") for key in config)
    of_llms = ("llava_llama", "llava_mistral", "llava_qwen", "llava_mpt", "llava_phi", "llava_gemma")
    is_their_type = str(kind).startswith(of_llms)
    if is_theirs or has_their_settings or is_their_type:
        raise _original(name, config)


def _original(name: str | Path, config: Mapping[str, Any]) -> UnsupportedModelError:
    kind = f"{config.get('model_type')} {config.get('architectures')}".lower()
    llm = next((own for own in ("mistral", "qwen", "mpt", "phi", "gemma") if own in kind), "llama")
    if llm == "llama" and (config.get("vocab_size") or 0) >= 128000:
        llm = "llama3"
    has_tiles = "anyres" in str(config.get("image_aspect_ratio"))
    converted = _CONVERTED.get((llm, config.get("hidden_size"), has_tiles))
    known = f"for this one llava-hf/{converted}" if converted else "such as llava-hf/llava-1.5-7b-hf"
    return cannot_be_loaded(
        name,
        "its checkpoint has the form of the original LLaVA repositories; "
        f"accepted: one converted to the form of transformers, {known}",
    )


def check_files(name: str | Path, source: str) -> None:
    """Raise where a checkpoint is a PEFT adapter alone, or files of a folder are missing or not whole.

    Parameters
    ----------
    name : str or path-like
        The model as the user named it.
    source : str
        A folder, or a Hugging Face id: of that, files are verified when they are downloaded.

    Raises
    ------
    UnsupportedModelError
        In one line that names the files.
    """
    folder = Path(source)
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        try:
            is_pointer = path.is_file() and _begins_with(path, _POINTER)
        except OSError as error:
            raise cannot_be_loaded(name, f"{path.name}: {error.strerror}") from None
        if is_pointer:
            reason = f"{path.name} is a Git LFS pointer in place of the file; git lfs pull fetches it"
            raise cannot_be_loaded(name, reason)
    adapter = find_adapter_config_file(source)
    if adapter is not None:
        base = _content(name, Path(adapter)).get("base_model_name_or_path")
        raise cannot_be_loaded(
            name,
            f"it holds a PEFT adapter; accepted: its base model ({base}), to which peft adds the adapter, or both "
            "merged (merge_and_unload, save_pretrained)",
        )
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise cannot_be_loaded(name, "config.json is missing in its folder")
    is_quantized = "quantization_config" in (folder / "config.json").read_text("utf-8", "replace")
    for path in _weights(name, folder):
        try:
            with safe_open(path, "pt") as file:
                others = {} if is_quantized else _not_floating(file)
        except (SafetensorError, OSError) as error:
            raise cannot_be_loaded(name, f"{path.name} is damaged or not complete ({error})") from None
        if others:
            first, dtype = next(iter(others.items()))
            what = (
                f"{len(others)} weights of {path.name} are no plain floating numbers, first {first} ({dtype})"
            )
            raise cannot_be_loaded(name, f"{what}, and its config says no quantization that they are of")
    for part, files in _PARTS.items():
        if not any((folder / file).is_file() for file in files):
            raise cannot_be_loaded(name, f"its {part} is missing: {' or '.join(files)}")


def _not_floating(file: Any) -> dict[str, str]:
    """Return names and formats of weights that would be read as numbers that they are not."""
    names = [key for key in file.keys() if key.endswith((".weight", ".bias"))]  # noqa: SIM118 (no mapping)
    formats = {key: file.get_slice(key).get_dtype() for key in names}
    return {key: dtype for key, dtype in formats.items() if dtype not in ("F64", "F32", "F16", "BF16")}


def _weights(name: str | Path, folder: Path) -> list[Path]:
    """List the files that hold weights, all of them there."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        others = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
        beside = f"; there are {_named(others)}" if others else ""
        accepted = f"{_WEIGHTS}, or {_INDEX} with the files that it lists"
        raise cannot_be_loaded(name, f"its weights are missing{beside}; accepted: {accepted}")
    listed = _content(name, folder / _INDEX).get("weight_map")
    if not isinstance(listed, Mapping) or not listed:
        raise cannot_be_loaded(name, f"{_INDEX} lists no files of weights")
    files = sorted({str(file) for file in listed.values()})
    lost = [file for file in files if not (folder / file).is_file()]
    if lost:
        raise cannot_be_loaded(
            name, f"{len(lost)} of its {len(files)} files of weights missing: {_named(lost)}"
        )
    return [folder / file for file in files]


def _content(name: str | Path, path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except ParameterError as error:
        raise cannot_be_loaded(name, error) from None
    return content if isinstance(content, Mapping) else {}


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def check_loaded(name: str | Path, model: Any, report: Mapping[str, Collection[Any]]) -> None:
    """Raise where weights were missing in a checkpoint, of another shape, of another model, NaN or infinite.

    Parameters
    ----------
    name : str or path-like
        The model as the user named it.
    model : transformers.PreTrainedModel
        As it was loaded.
    report : Mapping
        What `from_pretrained` says with ``output_loading_info``: ``missing_keys`` (without weights that are tied to
        others), ``mismatched_keys`` and ``unexpected_keys``.

    Raises
    ------
    UnsupportedModelError
        In one line with names of weights.

    Warns
    -----
    UserWarning
        Where the checkpoint holds weights besides those of the model.
    """
    missing, others = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if any("mm_projector" in key for key in others):
        raise _original(name, {})
    if missing:
        beside = f"; it holds others: {_named(others)}" if others else ""
        raise cannot_be_loaded(name, f"it lacks weights ({len(missing)}): {_named(missing)}{beside}")
    wrong = [
        f"{key} {'x'.join(map(str, found))} instead of {'x'.join(map(str, wanted))}"
        for key, found, wanted in sorted(report["mismatched_keys"])
    ]
    if wrong:
        raise cannot_be_loaded(
            name, f"its config asks for weights of other shapes ({len(wrong)}): {_named(wrong)}"
        )
    foreign = [key for key in others if _is_foreign(key)]
    if foreign:
        raise cannot_be_loaded(
            name,
            f"its config is that of a model without the weights in it ({len(foreign)}): {_named(foreign)}",
        )
    if others:
        warnings.warn(
            f"model: {str(name)!r} holds weights that its config does not ask for ({len(others)}): {_named(others)}",
            stacklevel=3,
        )
    _check_finite(name, model)


def _check_finite(name: str | Path, model: Any) -> None:
    """Raise where weights are NaN or infinite; those of less than 16 bits are not looked at."""
    weights = ((key, weight.detach()) for key, weight in weights_by_name(model))
    numbers = (
        (key, own) for key, own in weights if own.is_floating_point() and own.itemsize > 1 and own.numel()
    )
    # The least and the largest value are NaN where any is; a sum could overflow, and more takes seconds at 7B.
    broken = [key for key, own in numbers if not all(map(math.isfinite, map(float, own.aminmax())))]
    if broken:
        raise cannot_be_loaded(name, f"weights that are NaN or infinite ({len(broken)}): {_named(broken)}")


def check_processor(name: str | Path, processor: Any, model_type: str, image_token_id: int) -> None:
    """Raise where a processor is that of another family, fails, or writes images as another word than the model reads.

    Parameters
    ----------
    name : str or path-like
        The model as the user named it.
    processor : transformers.ProcessorMixin
        What was read from the model's folder.
    model_type : str
        That of the model's config.
    image_token_id : int
        The model's placeholder of images.

    Raises
    ------
    UnsupportedModelError
        In one line.
    """
    wanted, kind = PROCESSOR_MAPPING_NAMES.get(model_type), type(processor)
    if wanted is not None and wanted not in {base.__name__ for base in kind.__mro__}:
        raise cannot_be_loaded(name, f"its processor is a {kind.__name__}; accepted: a {wanted}")
    token = processor.image_token
    token_id = processor.tokenizer.convert_tokens_to_ids(token)
    if token_id != image_token_id:
        raise cannot_be_loaded(
            name,
            f"its processor writes images as {token!r}, number {token_id}; its model reads {image_token_id}",
        )
    try:
        processor.image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")
    except Exception as error:  # processors raise many kinds on settings that do not go together
        raise cannot_be_loaded(name, f"its image processor fails ({in_one_line(error)})") from None


def _is_foreign(key: str) -> bool:
    """Tell whether a weight that a model has no place for takes part in its answers in the model it is from.

    Separators of LLaVA-NeXT in a LLaVA-1.5; further layers of the LLM; an adapter. A head for another purpose does not.
    """
    return re.search(r"image_newline|language_model\..*\.\d+\.|lora_", key) is not None


def _named(names: Sequence[str]) -> str:
    further = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return ", ".join(names[:_N_NAMED]) + further
