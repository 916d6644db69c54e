"""Keep a codebook as files, in a folder or on the Hugging Face Hub, and verify them when they are read."""

from __future__ import annotations

import hashlib
import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rcblib.records import ChecksumError, CodebookError, ParameterError
from rcblib.runs.errors import in_one_line
from rcblib.runs.files import atomic_write, read_json, write_json
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import FROM_CHECKOUT, project_root

_FORMAT = 1

DESCRIPTION_FILE, _TENSOR_FILE, _CARD_FILE = "codebook.json", "prototypes.safetensors", "README.md"

_FACTS = ("image_ids", "family", "positions", "metadata")

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""Name of a repository on the Hugging Face Hub: ``owner/name``."""


def codebooks_folder() -> Path | None:
    """Return the project's ``codebooks/``; ``None`` where the library is used without the project."""
    try:
        return project_root() / "codebooks"
    except ParameterError:
        return None


def embedded_codebooks() -> dict[str, Path]:
    """List the codebooks that the project ships.

    Returns
    -------
    dict
        Name to folder, sorted by name; empty where the library is used without the project.
    """
    folder = codebooks_folder()
    found = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION_FILE}")) if folder else []
    return {path.name: path for path in found}


def released_registry() -> dict[str, dict[str, Any]]:
    """Read what is known of the released codebooks: model, address, shape, size and sha256, licence.

    Returns
    -------
    dict
        Name to entry, as in ``codebooks/registry.json``; unknown values are ``None``. Empty where the library is used
        without the project.
    """
    folder = codebooks_folder()
    is_here = folder is not None and (folder / "registry.json").is_file()
    return read_json(folder / "registry.json") if is_here else {}


def find_codebook(name_or_path: str | os.PathLike, revision: str | None = None) -> Path:
    """Find the folder of a codebook; from the Hugging Face Hub it is downloaded.

    Parameters
    ----------
    name_or_path : str or path-like
        Looked up in this order: a folder with ``codebook.json``, an embedded name, a Hub id ``owner/name``.
    revision : str, optional
        Branch, tag or commit on the Hub.

    Returns
    -------
    pathlib.Path
        A folder with ``codebook.json``.

    Raises
    ------
    CodebookError
        Where nothing is found.
    """
    name, path = str(name_or_path), user_path(name_or_path, "codebook")
    if (path / DESCRIPTION_FILE).is_file():
        return path
    embedded = embedded_codebooks()
    if name in embedded:
        return embedded[name]
    reason = ""
    if HUB_ID.fullmatch(name) and not path.exists():
        import huggingface_hub

        try:
            files = [_TENSOR_FILE, DESCRIPTION_FILE, _CARD_FILE]
            folder = huggingface_hub.snapshot_download(name, allow_patterns=files, revision=revision)
        except (OSError, ValueError) as error:
            reason = f", nor reachable on the Hub ({type(error).__name__})"
        else:
            if (Path(folder) / DESCRIPTION_FILE).is_file():
                return Path(folder)
            reason = ", and the Hub repository of this name holds none"
    folder = codebooks_folder()
    is_here = folder is not None and folder.is_dir()
    names = ", ".join(embedded) or "none" if is_here else f"codebooks/: {FROM_CHECKOUT}"
    released = ", ".join(released_registry())
    names += f") and no released one ({released}" if released else ""
    raise CodebookError(
        f"codebook: {name!r} is no folder with {DESCRIPTION_FILE}, no embedded name ({names}){reason}"
    )


def write_codebook(folder: str | os.PathLike, prototypes: torch.Tensor, facts: Mapping[str, Any]) -> Path:
    """Write ``prototypes.safetensors``, ``codebook.json`` and a card into a folder.

    Parameters
    ----------
    folder : path-like
        Made where it is missing; earlier files of these names are replaced.
    prototypes : torch.Tensor
        ``(n_prototypes, d_model)``.
    facts : Mapping
        ``image_ids``, ``family``, ``positions`` and ``metadata``, as `Codebook` holds them.

    Returns
    -------
    pathlib.Path
        The folder. Without the sha256 that ``codebook.json`` states the prototypes do not load.
    """
    import safetensors.torch

    folder = user_path(folder, "folder")
    data = safetensors.torch.save({"prototypes": prototypes.cpu().contiguous()})
    description = {
        "format": _FORMAT,
        "family": facts["family"],
        "shape": list(prototypes.shape),
        "dtype": str(prototypes.dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(data).hexdigest(),
        "image_ids": facts["image_ids"],
        "positions": facts["positions"],
        "metadata": facts["metadata"],
    }
    atomic_write(folder / _TENSOR_FILE, data)
    write_json(folder / DESCRIPTION_FILE, description)
    atomic_write(folder / _CARD_FILE, _card(description))
    return folder


def read_codebook(folder: str | os.PathLike) -> tuple[torch.Tensor, dict[str, Any]]:
    """Read and verify what `write_codebook` wrote.

    Returns
    -------
    tuple
        ``(prototypes, facts)``, the facts as stored.

    Raises
    ------
    CodebookError
        Where a file is missing or damaged, or the tensor is not the one that is described.
    ChecksumError
        Where the prototypes' sha256 is not the one that ``codebook.json`` states.
    """
    import safetensors
    import safetensors.torch

    folder = user_path(folder, "folder")
    try:
        description = read_json(folder / DESCRIPTION_FILE)
        if description["format"] != _FORMAT:
            raise CodebookError(f"{DESCRIPTION_FILE}: format {description['format']!r}; accepted: {_FORMAT}")
        facts = {key: description[key] for key in _FACTS}
        expected, shape, dtype = (description[key] for key in ("sha256", "shape", "dtype"))
    except (ParameterError, KeyError, TypeError) as error:
        line = f"lacks {error}" if isinstance(error, KeyError) else "is no valid description"
        raise CodebookError(f"codebook {folder.name!r}: {DESCRIPTION_FILE} {line}") from None
    try:
        data = (folder / _TENSOR_FILE).read_bytes()
    except OSError as error:
        raise CodebookError(f"codebook {folder.name!r}: {_TENSOR_FILE}: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise ChecksumError(
            f"codebook {folder.name!r}: {_TENSOR_FILE} has sha256 {digest}, "
            f"{DESCRIPTION_FILE} states {expected}"
        )
    try:
        prototypes = safetensors.torch.load(data)["prototypes"]
    except (safetensors.SafetensorError, KeyError) as error:
        raise CodebookError(f"codebook {folder.name!r}: damaged ({in_one_line(error)})") from None
    found = (list(prototypes.shape), str(prototypes.dtype).removeprefix("torch."))
    if found != (shape, dtype):
        raise CodebookError(f"codebook {folder.name!r}: holds {found}, its description says {(shape, dtype)}")
    return prototypes, facts


def _card(description: Mapping[str, Any]) -> str:
    """Write the card of a codebook: what it is, how it was made, its numbers, its licence."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        license=(description["metadata"].get("licence") or "Apache-2.0").lower(),
        tags=["multimodal", "visual-tokens", "token-pruning"],
    )
    template = Path(__file__).with_name("card.md.jinja")
    return f"{ModelCard.from_template(data, template_path=str(template), **_shown(description))}\n"


def _shown(value: Any) -> Any:
    """Escape what a page, or a row of a table, would take for its own."""
    if isinstance(value, str):
        return " ".join(html.escape(value, quote=False).replace("|", "\\|").split())
    if isinstance(value, Mapping):
        return {key: _shown(entry) for key, entry in value.items()}
    return [_shown(entry) for entry in value] if isinstance(value, list | tuple) else value
