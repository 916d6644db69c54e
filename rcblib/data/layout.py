"""Find what a folder in COCO's format holds: annotation files by split, the split that a name means, images."""

from __future__ import annotations

import mmap
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath

from rcblib.records import ParameterError

KARPATHY_FILE = "dataset_coco.json"

KARPATHY_SPLITS = ("train", "restval", "val", "test")

_KEYS = (b"images", b"annotations", b"categories")

_ROLES = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Words in the names of splits, and the role that they say."""

Files = Mapping[str, Mapping[str, Path]]
"""Annotation files of a folder: split to kind (``"instances"``, ``"captions"``) to path."""


def annotation_files(folder: Path) -> tuple[Files, Path | None]:
    """Find the annotation files of a folder, and the Karpathy file where there is one.

    Parameters
    ----------
    folder : pathlib.Path
        ``instances_<split>.json`` and ``captions_<split>.json`` lie in it or in ``annotations/``, or else in folders of
        it, as archives may be unpacked, unless two of these have the same split. Without any such, and without the
        Karpathy file, every other JSON file there that has lists of images and annotations is a split named as the
        file; without these too, every folder in it with one such file is a split named as the folder.

    Returns
    -------
    tuple
        ``(files, karpathy)``; empty and ``None`` where the folder is not in COCO's format.
    """
    places = (folder / "annotations", folder)
    files = _named_files(places)
    inside = [] if files else sorted(place for place in folder.iterdir() if place.is_dir())
    for found in [_named_files([place / "annotations", place]) for place in inside]:
        if found.keys() & files.keys():  # several datasets beside each other
            files = {}
            break
        files |= found
    candidates = (place / KARPATHY_FILE for place in places)
    karpathy = next((path for path in candidates if path.is_file()), None)
    if not files and karpathy is None:
        others = [found for place in places for found in _other_files(place)]
        files = {path.stem: {kind: path} for kind, path in reversed(others)}
        if not files:
            others = {place.name: _other_files(place) for place in inside}
            files = {name: dict(found) for name, found in others.items() if len(found) == 1}
    return files, karpathy


def dataset_of(annotations: Path) -> tuple[Path, str]:
    """Return the folder of the dataset that an annotation file belongs to, and its split."""
    beside = annotations.parent
    split = annotations.stem.removeprefix("instances_").removeprefix("captions_")
    return beside.parent if beside.name == "annotations" else beside, split


def resolve_split(files: Files, karpathy: Path | None, split: str | None) -> tuple[str, bool]:
    """Say which split of a folder a name means.

    A split's own name comes first, then one of Karpathy's. A bare ``train``, ``validation`` (or ``val``, ``valid``) or
    ``test`` is else the only split of this role, whatever follows in its name: ``validation`` is ``val2017``. Where
    there is none for ``test`` (COCO's own is not annotated) the only validation split stands in, and a folder with a
    single split answers to ``validation`` and ``test``; a warning says so.

    Returns
    -------
    tuple
        ``(split, is_karpathy)``.

    Raises
    ------
    ParameterError
        If no split or several are meant, or no name is given where there is more than one.
    """
    of_karpathy = KARPATHY_SPLITS if karpathy else ()
    names = [*files, *(name for name in of_karpathy if name not in files)]
    role = _ROLES.get(str(split).lower())
    if split in names:
        meant = [split]
    elif split is None:
        meant = names
    else:
        meant = [name for name in names if name.lower() in _ROLES and _role(name) == role]
        meant = meant or [name for name in names if role and _role(name) == role]
        if not meant and role in ("validation", "test"):
            meant = [name for name in names if _role(name) == "validation"] if role == "test" else []
            meant = meant or names
            if len(meant) == 1:
                message = f"split: the folder has no {split!r}; its {meant[0]!r} is taken"
                warnings.warn(message, stacklevel=4)
    if len(meant) != 1:
        known = [*sorted(files), *(f"{name} (Karpathy)" for name in of_karpathy)]
        raise ParameterError("split", split, ", ".join(known) or "none: the folder holds no annotations")
    return meant[0], meant[0] not in files


def find_image(folder: Path, annotations: Path, split: str, name: str) -> Path | None:
    """Return where an image of a split lies, or ``None``.

    Parameters
    ----------
    folder : pathlib.Path
        The dataset's.
    annotations : pathlib.Path
        The file that names it.
    split : str
        Annotated split.
    name : str
        File name as annotated; folders before it, also of another machine, may be left out on the disk.
    """
    bare = split.rstrip("0123456789_-")
    beside = annotations.parent
    tops = dict.fromkeys([folder, beside, beside.parent if beside.name == "annotations" else beside])
    unpacked = [f"images/{split}", split, "images", "", f"images/{bare}", bare, "data", f"{split}/{split}"]
    inner = dict.fromkeys(unpacked)
    for given in dict.fromkeys([name, PureWindowsPath(name).name]):
        for top in tops:
            for place in inner:
                if given and os.path.isfile(path := top / place / given):  # no error where a name is too long
                    return path
    return None


def _role(split: str) -> str | None:
    """Return the role that the name of a split says, such as ``"validation"`` for ``"val2017"``."""
    words = re.findall(r"[a-z]+", split.lower())
    return next((_ROLES[word] for word in words if word in _ROLES), None)


def _named_files(places: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """List the annotation files that are named as COCO's, by split and kind; those of earlier places come first."""
    files: dict[str, dict[str, Path]] = {}
    for place in places:
        for kind in ("instances", "captions"):
            for path in sorted(place.glob(f"{kind}_*.json")):
                files.setdefault(path.stem.removeprefix(f"{kind}_"), {}).setdefault(kind, path)
    return files


def _other_files(place: Path) -> list[tuple[str, Path]]:
    """List the JSON files of a folder that have lists of images and annotations, with their kinds."""
    found = []
    for path in sorted(place.glob("*.json")):
        if not path.is_file() or not path.stat().st_size:
            continue
        with open(path, "rb") as file:
            # Some are a gigabyte: the keys are looked for without reading it into memory.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                has = {key: re.search(rb'"%s"\s*:\s*\[' % key, data) for key in _KEYS}
        if has[b"images"] and has[b"annotations"]:
            found.append(("instances" if has[b"categories"] else "captions", path))
    return found
