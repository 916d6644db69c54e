"""Keep beside results which images were left out of them, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rcblib.records import ImageId
from rcblib.runs.files import config_hash, read_json, write_json

_FOLDER = "skipped"


def file_stem(image_id: ImageId) -> str:
    """Name the files of a sample: by its number, or by its name in letters of any file system, told apart by a hash."""
    if isinstance(image_id, str):
        return f"{re.sub('[^A-Za-z0-9._-]+', '_', image_id)[:60]}-{config_hash({'image_id': image_id})}"
    return f"{image_id:012d}"


def record_skipped(folder: Path, skipped: Mapping[ImageId, str], read: Iterable[ImageId] = ()) -> None:
    """Keep in ``skipped/`` of a folder of results which images were left out, a file each: shards may share it.

    Parameters
    ----------
    folder : pathlib.Path
        The folder of results.
    skipped : Mapping
        Image id or file name to the reason.
    read : iterable
        Images that can be read: what an earlier run noted of them no longer holds.
    """
    place = folder / _FOLDER
    if place.is_dir():
        for image_id in read:
            (place / f"{file_stem(image_id)}.json").unlink(missing_ok=True)
    for image_id, reason in skipped.items():
        write_json(place / f"{file_stem(image_id)}.json", {"image_id": image_id, "reason": reason})


def skipped_in(folder: Path) -> dict[ImageId, str]:
    """Return what `record_skipped` has kept in a folder."""
    entries = [read_json(path) for path in sorted((folder / _FOLDER).glob("*.json"))]
    return {entry["image_id"]: entry["reason"] for entry in entries}
