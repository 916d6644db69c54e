"""Download, verify and read the codebooks that the authors of the paper released."""

from __future__ import annotations

import dataclasses
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rcblib.codebook.criterion import PRESETS
from rcblib.codebook.files import released_registry
from rcblib.records import ChecksumError, CodebookError
from rcblib.runs.errors import in_one_line
from rcblib.runs.files import file_sha256, read_json
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import FROM_CHECKOUT

MOST_BYTES = 50_000_000
"""Where a released file's size is not known; the largest codebook in float32 has a third of that."""


def read_released(
    name_or_path: str | os.PathLike, cache_folder: str | os.PathLike | None = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Read a released codebook, downloading and verifying it where it is named.

    Parameters
    ----------
    name_or_path, cache_folder
        As in `Codebook.from_released`, which also says what is raised and warned of.

    Returns
    -------
    tuple
        ``(prototypes, facts)``: the tensor as stored, and ``image_ids``, ``family`` and ``metadata``.
    """
    registry = released_registry()
    name = str(name_or_path)
    if name in registry:
        given = cache_folder or os.environ.get("RCB_CACHE") or "~/.cache/rcblib"
        folder = user_path(given, "cache_folder") / name
        path = _fetch(registry[name]["file"], folder)
        ids_path = _fetch(registry[name]["image_ids"], folder)
    else:
        path = user_path(name_or_path, "codebook")
        if not path.is_file():
            released = ", ".join(registry) or f"codebooks/registry.json: {FROM_CHECKOUT}"
            raise CodebookError(f"codebook: {name!r} is no file and no released name ({released})")
        beside = (path.with_suffix(".json"), path.with_name(f"{path.stem}.image_ids.json"))
        ids_path = next((candidate for candidate in beside if candidate.is_file()), None)
    prototypes = load_released_tensor(path)
    digest = file_sha256(path)
    if name not in registry:
        name = _registered_name(registry, path.name, digest, prototypes.shape)
    entry = registry.get(name, {})
    verified = digest == entry.get("file", {}).get("sha256")
    if not verified:
        # The line that is shown is the one that called `Codebook.from_released`.
        warnings.warn(f"{path.name}: no sha256 is registered to verify it by; it has {digest}", stacklevel=3)
    if entry and list(prototypes.shape) != entry["shape"]:
        raise CodebookError(f"{path.name}: holds {tuple(prototypes.shape)}, registered is {entry['shape']}")
    metadata = {
        "name": name,
        **{key: entry.get(key) for key in ("model", "n_images", "pruning", "licence", "source", "note")},
        "file": path.name,
        "sha256": digest,
        "sha256_verified": verified,
    }
    if name in PRESETS:
        metadata["criterion"] = dataclasses.asdict(PRESETS[name])
    if entry.get("cluster_sizes"):
        sizes = entry["cluster_sizes"]
        metadata["clusters"] = [number for number, size in enumerate(sizes) for _ in range(size)]
    image_ids = () if ids_path is None else _read_image_ids(ids_path)
    return prototypes, {"image_ids": image_ids, "family": entry.get("family", ""), "metadata": metadata}


def load_released_tensor(path: str | os.PathLike) -> torch.Tensor:
    """Load a released ``.pt`` file that holds one tensor, without running code that it might hold.

    Parameters
    ----------
    path : path-like
        A codebook or a pad embedding.

    Returns
    -------
    torch.Tensor
        As stored, on the CPU and without gradient.

    Raises
    ------
    CodebookError
        Where the file is damaged or holds anything but a tensor.
    """
    path = user_path(path)
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle at all ends anywhere in its reader
        is_told = isinstance(error, OSError | EOFError | RuntimeError | ValueError | zipfile.BadZipFile)
        # torch's own words advise to unpickle the file all the same.
        reason = in_one_line(error) if is_told else "damaged, or an object, which is never unpickled"
        raise CodebookError(f"{path.name}: no readable tensor file ({reason})") from None
    if not isinstance(tensor, torch.Tensor):
        raise CodebookError(f"{path.name}: holds {type(tensor).__name__}; accepted: one tensor")
    return tensor.detach()


class _Bounded:
    """Write to a file no more than so many bytes."""

    def __init__(self, file: BinaryIO, most: int):
        self._file, self._left, self._most = file, most, most

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"more than the {self._most} bytes that are accepted")
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _registered_name(registry: Mapping[str, Any], file_name: str, digest: str, shape: torch.Size) -> str:
    """Recognise a released file by its sha256, else by its shape where none is known; ``""`` if none fits."""
    for name, entry in registry.items():
        if entry["file"]["sha256"] == digest:
            return name
    for name, entry in registry.items():
        if entry["shape"] == list(shape):
            expected = entry["file"]["sha256"]
            if expected is not None:
                raise ChecksumError(
                    f"{file_name}: of the shape of {name} but with sha256 {digest}, registered is {expected}"
                )
            return name
    return ""


def _read_image_ids(path: Path) -> tuple[int, ...]:
    """Read a released list of image ids, which are COCO's numbers as text."""
    try:
        return tuple(int(image_id) for image_id in read_json(path))
    except (ValueError, TypeError) as error:
        raise CodebookError(f"{path.name}: no list of image ids ({in_one_line(error)})") from None


def _fetch(entry: Mapping[str, Any], folder: Path) -> Path:
    """Return the verified local copy of a registered file, downloading it where there is none."""
    import pooch

    address, digest, most = entry["address"], entry["sha256"], entry["size"] or MOST_BYTES

    def download(url: str, path: str, fetcher: pooch.Pooch) -> None:
        with open(path, "wb") as file:
            pooch.HTTPDownloader(timeout=60)(url, _Bounded(file, most), fetcher)

    try:
        path = pooch.retrieve(
            address,
            known_hash=digest and f"sha256:{digest}",
            fname=address.rsplit("/", 1)[-1],
            path=folder,
            downloader=download,
        )
    except OSError as error:  # those of the connection among them
        raise CodebookError(
            f"{address}: download failed ({in_one_line(error)}); fetch it by hand and pass its path"
        ) from None
    except ValueError as error:
        raise ChecksumError(f"{address}: {error}") from None
    return Path(path)
