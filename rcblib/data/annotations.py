"""Read annotation files in COCO's format; ids are joined whatever their type."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from rcblib.data.masks import all_finite, mask_fault
from rcblib.records import ImageId, ParameterError, SceneObject
from rcblib.runs.files import read_json

_PLAIN = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"\s*([+-]?[0-9]+)(?:\.0*)?\s*")

SOUND = "polygons [x1, y1, x2, y2, ...] or run lengths that fit the image, and a listed category"
"""What an annotated object must have; `rcblib.data.masks.mask_fault` says when a mask fits."""

LONGEST_SIDE = 10**6
"""In pixels; no image of COCO's kind is as long, and masks of more do not fit into memory."""


class Images:
    """List the images of an annotation file by id.

    An id is a whole number or text. ``1``, ``1.0`` and ``"1"`` are the same id; where no image has just the id that is
    asked for, neither do leading zeros, blanks around it, a sign or ``".0"``, as tables write it, make a difference.
    Ids that Parquet's 64 bits cannot hold become text, and where one id of a file is text all are, so that they can
    be sorted.

    Parameters
    ----------
    records : sequence of Mapping
        Image records as read.
    parameter, name : str
        What errors call the file.

    Attributes
    ----------
    records : dict
        Id to record, in file order; a record that is there twice counts once, and a warning says so.

    Raises
    ------
    ParameterError
        If an id is missing or no id, or two different images have the same.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], parameter: str, name: str):
        found: dict[ImageId, Mapping[str, Any]] = {}
        repeated = []
        with complete(parameter, name):
            for record in records:
                key = identifier(record["id"], parameter, f"{name}: an image")
                if key in found and _is_other(found[key], record):
                    what = [
                        f"{own.get('file_name')!r} of {own.get('width')} x {own.get('height')}"
                        for own in (found[key], record)
                    ]
                    given = f"{name}: id {key!r} of two images, {' and '.join(what)}"
                    raise ParameterError(parameter, given, "an id of its own for every image")
                repeated += [key] if key in found else []
                found.setdefault(key, record)
        if repeated:
            warnings.warn(
                f"{name}: {len(repeated)} image records are there twice, first {repeated[0]!r}; each counts once",
                stacklevel=4,
            )
        as_text = any(isinstance(key, str) or not -(2**63) <= key < 2**63 for key in found)
        self._own = {key: str(key) if as_text else key for key in found}
        self.records = {self._own[key]: record for key, record in found.items()}
        self._by_number: dict[int, ImageId | None] = {}
        for key, own in self._own.items():
            if (number := _number(key)) is not None:
                self._by_number[number] = None if number in self._by_number else own

    def __len__(self) -> int:
        return len(self.records)

    def find(self, key: ImageId) -> ImageId | None:
        """Return the id of an image as this file has it, or ``None``."""
        return self._own.get(key, self._by_number.get(_number(key)))

    def join(
        self, annotations: Iterable[Mapping[str, Any]], parameter: str, name: str
    ) -> Iterator[tuple[ImageId, Mapping[str, Any]]]:
        """Yield each annotation with the id of its image; those of images that are not listed are counted.

        Raises
        ------
        ParameterError
            If none of the annotations belongs to an image, or one has no id of an image.
        """
        strangers, n_joined = [], 0
        with complete(parameter, name):
            for annotation in annotations:
                given = identifier(annotation["image_id"], parameter, f"{name}: the image of an annotation")
                key = self.find(given)
                if key is None:
                    strangers.append(given)
                else:
                    n_joined += 1
                    yield key, annotation
        if not strangers:
            return
        what = (
            f"{len(strangers)} of {n_joined + len(strangers)} annotations belong to no image of the file, "
            f"first of image {strangers[0]!r}"
        )
        if not n_joined:
            raise ParameterError(parameter, f"{name}: {what}", "annotations of the listed images")
        warnings.warn(f"{name}: {what}; they are left out", stacklevel=4)


@dataclass(frozen=True)
class Instances:
    """Hold the content of an ``instances`` file.

    Attributes
    ----------
    name : str
        The file's.
    images : Images
    objects : dict
        Image id to its annotations, in file order; an annotation that is there twice counts once.
    categories : dict
        Category id to name.
    source : str
        Where the file says that its images come from; empty where it does not.
    """

    name: str
    images: Images
    objects: dict[ImageId, list[Mapping[str, Any]]]
    categories: dict[ImageId, str]
    source: str

    def scene_object(self, image_id: ImageId, annotation: Mapping[str, Any]) -> SceneObject:
        """Describe an object that `fault` finds sound, whichever way its mask is written."""
        record, rle = self.images.records[image_id], annotation["segmentation"]
        size = record["height"], record["width"]
        if isinstance(rle, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(rle, *size))
        elif isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects({"size": list(size), "counts": rle["counts"]}, *size)
        counts = rle["counts"]
        rle = {"size": list(size), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
        if not annotation.get("bbox"):
            rle = coco_mask.encode(coco_mask.decode(rle))  # runs of no pixel would make a box of anything
        return SceneObject(
            category=self._category(annotation),
            box=tuple(float(v) for v in annotation.get("bbox") or coco_mask.toBbox(rle)),
            rle=rle,
            area=float(annotation.get("area") or coco_mask.area(rle)),
            color=_word(annotation.get("color")),
        )

    def _category(self, annotation: Mapping[str, Any]) -> str | None:
        key = _plain_identifier(annotation.get("category_id"))
        return None if key is None else self.categories.get(key)

    def fault(self, image_id: ImageId, annotation: Mapping[str, Any]) -> str | None:
        """Say what is wrong with an annotation, ``None`` where nothing is."""
        record = self.images.records[image_id]
        found = mask_fault(annotation.get("segmentation"), record["height"], record["width"])
        if found is None and self._category(annotation) is None:
            found = "of no category"
        box, area = annotation.get("bbox") or [0] * 4, annotation.get("area") or 0
        width, height = record["width"], record["height"]
        if found is None and not (isinstance(box, list) and len(box) == 4 and all_finite(box)):
            found = "with a bbox that is not four finite numbers"
        if found is None and not all_finite([area]):
            found = "with an area that is no finite number"
        if found is None and (
            min(*box[2:], area) < 0 or not (-box[2] <= box[0] <= width and -box[3] <= box[1] <= height)
        ):
            found = f"with a bbox or area below 0, or outside the image of {width} x {height}"
        return found


def read_instances(path: Path) -> Instances:
    """Read an ``instances`` file.

    Raises
    ------
    ParameterError
        If it is damaged, ids are missing, wrong or of two images or categories, no annotation belongs to an image, or
        an image has no size.
    """
    name, parameter = path.name, "instances"
    data = read_records(path, parameter, ("images", "annotations", "categories"))
    images = Images(data["images"], parameter, name)
    for image_id, record in images.records.items():
        size = {side: _plain_identifier(record.get(side)) for side in ("width", "height")}
        for side, length in size.items():
            if not isinstance(length, int) or not 1 <= length <= LONGEST_SIDE:
                given = f"{name}: image {image_id!r} of {side} {record.get(side)!r}"
                raise ParameterError(parameter, given, f"a size for every image, 1 to {LONGEST_SIDE} pixels")
        images.records[image_id] = {**record, **size}
    categories: dict[ImageId, str] = {}
    with complete(parameter, name):
        for record in data["categories"]:
            key = identifier(record["id"], parameter, f"{name}: a category")
            is_name = isinstance(record["name"], str) and record["name"].strip()
            if not is_name or categories.get(key, record["name"]) != record["name"]:
                given = f"{name}: category {key!r} named {record['name']!r}"
                raise ParameterError(parameter, given, "one name, which is text, for every category")
            categories[key] = record["name"]
    objects: dict[ImageId, list[Mapping[str, Any]]] = {}
    n_repeated = 0
    for image_id, annotation in images.join(data["annotations"], parameter, name):
        own = objects.setdefault(image_id, [])
        if annotation in own:
            n_repeated += 1
        else:
            own.append(annotation)
    if not data["annotations"]:
        warnings.warn(f"{name}: no object is annotated: nothing covers any token", stacklevel=3)
    if n_repeated:
        warnings.warn(f"{name}: {n_repeated} annotations are there twice; each counts once", stacklevel=3)
    info = data.get("info")
    source = info.get("source") if isinstance(info, Mapping) else None
    return Instances(name, images, objects, categories, source if isinstance(source, str) else "")


def identifier(value: Any, parameter: str, what: str) -> ImageId:
    """Return an id as a whole number, or as text that is none.

    Raises
    ------
    ParameterError
        On anything but a whole number or text; `what` says whose id it is.
    """
    key = _plain_identifier(value)
    if key is None:
        raise ParameterError(parameter, f"{what} with id {value!r}", "whole numbers or text")
    return key


def _plain_identifier(value: Any) -> ImageId | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip():
        return int(value) if _PLAIN.fullmatch(value) and len(value) < 1000 else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_other(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tell whether two records of one id are of two images; licences and dates may differ where files were merged."""
    names = ("file_name", "coco_url", "width", "height")
    return any(first.get(name) != second.get(name) for name in names)


def _number(key: ImageId) -> int | None:
    """Return the number that an id is, however it is written."""
    if isinstance(key, int):
        return key
    found = _NUMBER.fullmatch(key) if len(key) < 1000 else None
    return int(found[1]) if found else None


def _word(value: Any) -> str | None:
    """Return a word; tools keep the colours that they draw with under the same name, as ``"#1c3f57"``."""
    return value if isinstance(value, str) and value.isalpha() else None


def read_records(path: str | os.PathLike, parameter: str, keys: Sequence[str]) -> dict[str, Any]:
    """Read a JSON file that has a list of objects under each of the keys."""
    name = Path(path).name
    data = read_json(path)
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ParameterError(parameter, name, f"a JSON file with lists of {', '.join(keys)}")
        if not all(isinstance(record, dict) for record in data[key]):
            raise ParameterError(
                parameter, f"{name}: {key} that are no records", "JSON objects, each with its fields"
            )
    return data


@contextmanager
def complete(parameter: str, name: str) -> Iterator[None]:
    """Turn a missing field of a record into an error that names the file."""
    try:
        yield
    except KeyError as error:
        given = f"{name} with a record without {error}"
        raise ParameterError(parameter, given, "records with all fields") from None
