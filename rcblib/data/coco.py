"""Read folders in COCO's format, with the Karpathy splits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

from rcblib.data.annotations import (
    SOUND,
    Images,
    Instances,
    complete,
    read_instances,
    read_records,
)
from rcblib.data.base import Dataset, check_limit, existing_folder
from rcblib.data.layout import Files, annotation_files, find_image, resolve_split
from rcblib.data.masks import covers_nothing, is_of_other_box, reaches_beyond
from rcblib.data.photos import check_on_error, read_image, upright_size
from rcblib.records import ImageError, ImageId, ParameterError, Sample

_BOX = "[x, y, width, height]"


@dataclass(frozen=True)
class _Entry:
    """Say where an image of a COCO folder is and which annotation file, by its split, knows it."""

    image_id: ImageId
    file_name: str
    annotated_in: str
    captions: tuple[str, ...]


class CocoDataset(Dataset[Sample]):
    """Read images, captions and masks in COCO's format: COCO itself, or the sample that comes with the project.

    The folder is laid out as COCO's archives unpack: ``annotations/instances_<split>.json`` and
    ``annotations/captions_<split>.json`` (one of them may be absent), images in ``<split>/``, ``images/<split>/``,
    ``images/`` or the folder itself. One annotation file of any other name beside its images, or in a folder of its
    own for every split, is read too. With the Karpathy file ``dataset_coco.json`` beside them the splits ``train``,
    ``restval``, ``val`` and ``test`` are those of image captioning, in the file's order, with the captions it holds.

    Parameters
    ----------
    folder : path
        The folder.
    split : str, optional
        Name in the annotation files, such as ``"val2017"``, a Karpathy split where no annotation file has that name,
        or ``"train"``, ``"validation"`` or ``"test"``, as `rcblib.data.layout.resolve_split` reads them. May be left
        out where there is one annotated split only.
    n : int, optional
        Use the first `n` images in file order, or all if there are fewer.
    with_restval : bool
        Whether the Karpathy split ``train`` includes ``restval``, as most captioning work does; the authors' probing
        images come from ``train`` alone.
    with_objects : bool
        Whether to read instances: hundreds of megabytes of JSON for COCO's training images.
    on_error : str
        ``"stop"``, or ``"skip"`` to leave out, with a warning that counts them, objects whose mask or category is
        damaged and images that are missing.

    Attributes
    ----------
    skipped : dict
        File name to the reason for each image that was left out.

    Raises
    ------
    ImageError
        If the folder or an image of the first `n` is missing; with ``"skip"`` if all are.
    ParameterError
        If an annotation file is missing or damaged, the split is unknown, ids repeat, annotations belong to no image,
        an object has no sound mask or no category (with ``"skip"``: none has), or `n` is below 1.

    Notes
    -----
    Objects are those of `iscrowd` 0 and 1 alike, in file order: a crowd's mask covers patches as any other. Where no
    instances exist `Sample.objects` is ``None``, which is not the same as an image without objects.
    Images are read upright, as their EXIF orientation says, and are the size that the record says, or loading them is
    an error: boxes and masks are of the upright image.
    Source: Lin et al. 2014; Karpathy and Fei-Fei 2015 for the split.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str | None = None,
        n: int | None = None,
        *,
        with_restval: bool = False,
        with_objects: bool = True,
        on_error: str = "stop",
    ):
        self.folder = existing_folder(folder)
        n = check_limit(n)
        check_on_error(on_error)
        files, karpathy = annotation_files(self.folder)
        self.split, by_karpathy = resolve_split(files, karpathy, split)

        listed = _karpathy_entries(karpathy, self.split, with_restval) if by_karpathy else []
        names = sorted({entry.annotated_in for entry in listed}) if by_karpathy else [self.split]
        self._annotations = {
            name: read_instances(files[name]["instances"])
            for name in names
            if with_objects and files.get(name, {}).get("instances")
        }
        if by_karpathy:
            listed = [self._joined(entry) for entry in listed[: None if on_error == "skip" else n]]
        else:
            listed = _listed_entries(files[self.split], self.split, self._annotations.get(self.split))
        if not listed:
            raise ParameterError("split", split, "a split with images")
        self._entries, self._paths = self._find_images(listed, files, n, on_error)
        self._objects = self._sound_objects(on_error)
        sources = {instances.source for instances in self._annotations.values()}
        source = next(iter(sources)) if len(sources) == 1 else ""
        self.source = f"{source or 'coco'}/{self.split}"

    def __len__(self) -> int:
        return len(self._entries)

    def _sample(self, index: int) -> Sample:
        entry, path = self._entries[index], self._paths[index]
        instances = self._annotations.get(entry.annotated_in)
        record = instances.images.records[entry.image_id] if instances else {}
        backdrop = record.get("backdrop")
        if instances:
            width, height = record["width"], record["height"]
            own = self._objects.get((entry.annotated_in, entry.image_id))
            found = (instances.scene_object(entry.image_id, annotation) for annotation in own or ())
            objects = None if own is None else tuple(found)
        else:
            width, height = upright_size(path)
            objects = None
        return Sample(
            image_id=entry.image_id,
            load=partial(read_image, path),
            width=width,
            height=height,
            captions=entry.captions,
            objects=objects,
            source=self.source,
            file_name=entry.file_name,
            backdrop=backdrop if isinstance(backdrop, str) else None,
        )

    def _joined(self, entry: _Entry) -> _Entry:
        """Return an entry with its id as the instances have it; raise where they do not know it."""
        instances = self._annotations.get(entry.annotated_in)
        if instances is None:
            return entry
        image_id = instances.images.find(entry.image_id)
        if image_id is None:
            raise ParameterError("instances", f"no image {entry.image_id}", "the file of these images")
        return replace(entry, image_id=image_id)

    def _sound_objects(self, on_error: str) -> dict[tuple[str, ImageId], list[Mapping[str, Any]]]:
        """Return the annotations of every image, those that are not sound left out or an error."""
        sound, faults, n_objects = {}, [], 0
        odd: dict[str, list[str]] = {}
        for entry in self._entries:
            if (instances := self._annotations.get(entry.annotated_in)) is None:
                continue
            own = sound[entry.annotated_in, entry.image_id] = []
            for annotation in instances.objects.get(entry.image_id, ()):
                n_objects += 1
                what = f"{instances.name}: object {annotation.get('id')} of image {entry.image_id}"
                if fault := instances.fault(entry.image_id, annotation):
                    faults.append(f"{what} {fault}")
                    continue
                own.append(annotation)
                record, mask = instances.images.records[entry.image_id], annotation["segmentation"]
                size = record["height"], record["width"]
                if covers_nothing(mask, *size):
                    found = ["masks cover no pixel"]
                else:
                    box = annotation.get("bbox")
                    found = ["masks reach beyond their image"] * reaches_beyond(mask, *size)
                    found += [f"boxes {_BOX} are not those of their masks"] * bool(
                        box and is_of_other_box(mask, box)
                    )
                for fault in found:
                    odd.setdefault(fault, []).append(what)
        for fault, found in odd.items():
            warnings.warn(
                f"instances: {len(found)} of {n_objects} {fault}, first of {found[0]}", stacklevel=3
            )
        if faults:
            more = f" ({len(faults)} of {n_objects} objects are damaged)"
            if on_error == "stop":
                accepted = f"{SOUND}; on_error='skip' leaves others out"
                raise ParameterError("instances", faults[0] + more, accepted)
            none_left = len(faults) == n_objects
            left = "; none is left: these images count as not annotated" if none_left else ""
            warnings.warn(f"instances: left out {faults[0]}{more}{left}", stacklevel=3)
            sound = {} if none_left else sound
        return sound

    def _find_images(
        self, listed: list[_Entry], files: Files, n: int | None, on_error: str
    ) -> tuple[list[_Entry], list[Path]]:
        """Return the first `n` entries with their paths; images that are missing are left out or an error."""
        entries, paths, missing = [], [], []
        for entry in listed if on_error == "skip" else listed[:n]:
            if len(entries) == n:
                break
            known = files.get(entry.annotated_in, {})
            annotated = known.get("instances") or known.get("captions") or self.folder / "annotations.json"
            if path := find_image(self.folder, annotated, entry.annotated_in, entry.file_name):
                entries.append(entry)
                paths.append(path)
            else:
                missing.append(entry)
        if missing:
            name = missing[0].annotated_in
            what = (
                f"{len(missing)} of {len(entries) + len(missing)} are missing, first {missing[0].file_name!r}"
            )
            if on_error == "stop" or not entries:
                accepted = f"images in {name}/, images/{name}/ or images/ of the folder; or on_error='skip'"
                raise ImageError(f"images: {what}; accepted: {accepted}")
            warnings.warn(f"images: {what}; they are left out", stacklevel=3)
        self.skipped = {entry.file_name: f"{entry.file_name!r} is missing" for entry in missing}
        return entries, paths


def _listed_entries(files: Mapping[str, Path], split: str, annotated: Instances | None) -> list[_Entry]:
    """List the images of one annotated split in file order, with their captions."""
    images = annotated.images if annotated else None
    by_image: dict[ImageId, list[str]] = {}
    if path := files.get("captions"):
        read = read_records(path, "captions", ("images", "annotations"))
        own = Images(read["images"], "captions", path.name)
        if images is None:
            images = own
        else:
            _check_same(own, images, path.name)
        with complete("captions", path.name):
            for image_id, annotation in images.join(read["annotations"], "captions", path.name):
                by_image.setdefault(image_id, []).append(_one_line(annotation["caption"], "captions", path))
    path = files.get("instances") or files["captions"]
    if images is None:
        images = Images(read_records(path, "instances", ("images",))["images"], "instances", path.name)
    return [
        _Entry(image_id, _file_name(record, path), split, tuple(by_image.get(image_id, ())))
        for image_id, record in images.records.items()
    ]


def _check_same(own: Images, images: Images, name: str) -> None:
    """Raise where ids of the captions' file are of other images in that of the instances."""
    pairs = ((key, record, images.records.get(images.find(key))) for key, record in own.records.items())
    others = [
        f"{key!r}, {record['file_name']!r:.80} instead of {known['file_name']!r:.80}"
        for key, record, known in pairs
        if known is not None
        and isinstance(given := record.get("file_name"), str)
        and isinstance(there := known.get("file_name"), str)
        and PureWindowsPath(given).name != PureWindowsPath(there).name
    ]
    if others:
        given = f"{name}: {len(others)} of {len(own)} ids of other images than in the instances, first {others[0]}"
        raise ParameterError("captions", given, "captions of the same images")


def _file_name(record: Mapping[str, Any], path: Path) -> str:
    """Return where an image lies: its file name or, as LVIS has it, the end of its address."""
    name = record.get("file_name") or "/".join(str(record.get("coco_url") or "").split("/")[-2:])
    if not name or not isinstance(name, str):
        given = f"{path.name} with a record without 'file_name'"
        raise ParameterError("annotations", given, "records with all fields")
    return name


def _karpathy_entries(path: Path, split: str, with_restval: bool) -> list[_Entry]:
    """List the images of a Karpathy split in the order of the file."""
    chosen = (split, "restval") if with_restval and split == "train" else (split,)
    records = read_records(path, "karpathy", ("images",))["images"]
    with complete("karpathy", path.name):
        own = [{**record, "id": record["cocoid"]} for record in records if record["split"] in chosen]
        return [
            _Entry(
                image_id,
                *(_text(record, name, path) for name in ("filename", "filepath")),
                _said(record, path),
            )
            for image_id, record in Images(own, "karpathy", path.name).records.items()
        ]


def _text(record: Mapping[str, Any], name: str, path: Path) -> str:
    if not isinstance(record[name], str):
        raise ParameterError("karpathy", f"{path.name} with {name} {record[name]!r:.80}", "text")
    return record[name]


def _said(record: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return the captions of an image of the Karpathy file."""
    sentences = record["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(sentence, Mapping) for sentence in sentences):
        given = f"{path.name} with sentences {sentences!r:.80}"
        raise ParameterError("karpathy", given, "a list of objects that have the text 'raw'")
    return tuple(_one_line(sentence["raw"], "karpathy", path) for sentence in sentences)


def _one_line(text: Any, parameter: str, path: Path) -> str:
    if not isinstance(text, str):
        raise ParameterError(parameter, f"{path.name} with a caption {text!r}", "captions that are text")
    return " ".join(text.split())
