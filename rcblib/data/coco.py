"""Read folders in COCO's format, with the Karpathy splits."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rcblib.data.base import Dataset, check_limit, existing_folder
from rcblib.data.photos import read_image, readable
from rcblib.records import ImageError, ParameterError, Sample, SceneObject
from rcblib.runs.files import read_json

KARPATHY_FILE = "dataset_coco.json"

KARPATHY_SPLITS = ("train", "restval", "val", "test")


@dataclass(frozen=True)
class _Entry:
    """Say where an image of a COCO folder is and which annotation file, by its split, knows it."""

    image_id: int
    file_name: str
    annotated_in: str
    captions: tuple[str, ...]


class CocoDataset(Dataset[Sample]):
    """Read images, captions and masks in COCO's format: COCO itself, or the sample that comes with the project.

    The folder is laid out as COCO's archives unpack: ``annotations/instances_<split>.json`` and
    ``annotations/captions_<split>.json`` (one of them may be absent), images in ``<split>/``, ``images/<split>/``
    or ``images/``. With the Karpathy file ``dataset_coco.json`` beside them the splits ``train``, ``restval``,
    ``val`` and ``test`` are those of image captioning, in the file's order, with the captions it holds.

    Parameters
    ----------
    folder : path
        The folder.
    split : str, optional
        Name in the annotation files, such as ``"validation"`` or ``"val2017"``, or a Karpathy split where no
        annotation file has that name. May be left out where there is one annotated split only.
    n : int, optional
        Use the first `n` images in file order, or all if there are fewer.
    with_restval : bool
        Whether the Karpathy split ``train`` includes ``restval``, as most captioning work does; the authors' probing
        images come from ``train`` alone.
    with_objects : bool
        Whether to read instances: hundreds of megabytes of JSON for COCO's training images.

    Raises
    ------
    ImageError
        If the folder or an image of the first `n` is missing.
    ParameterError
        If an annotation file is missing or damaged, the split is unknown, an object has no mask, or `n` is below 1.

    Notes
    -----
    Objects are those of `iscrowd` 0 and 1 alike, in file order: a crowd's mask covers patches as any other. Where no
    instances exist `Sample.objects` is ``None``, which is not the same as an image without objects.
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
    ):
        self.folder = existing_folder(folder)
        n = check_limit(n)
        files, splits_file = annotation_files(self.folder)
        if split is None and len(files) == 1:
            (split,) = files
        self.split = split

        by_karpathy = bool(splits_file) and split in KARPATHY_SPLITS and split not in files
        if not by_karpathy and split not in files:
            known = [*sorted(files), *(f"{name} (Karpathy)" for name in KARPATHY_SPLITS if splits_file)]
            raise ParameterError("split", split, ", ".join(known) or "none: the folder holds no annotations")
        listed = _karpathy_entries(splits_file, split, with_restval)[:n] if by_karpathy else []
        names = sorted({entry.annotated_in for entry in listed}) if by_karpathy else [split]
        self._annotations = {
            name: _read_instances(files[name]["instances"])
            for name in names
            if with_objects and files.get(name, {}).get("instances")
        }
        self._entries = (
            listed if by_karpathy else _listed_entries(files[split], split, self._annotations.get(split))[:n]
        )
        if not self._entries:
            raise ParameterError("split", split, "a split with images")
        self._check_masks()
        self._paths = self._find_images()
        sources = {coco.dataset.get("info", {}).get("source") for coco in self._annotations.values()}
        self.source = f"{next(iter(sources)) or 'coco'}/{split}" if len(sources) == 1 else f"coco/{split}"

    def __len__(self) -> int:
        return len(self._entries)

    def _sample(self, index: int) -> Sample:
        entry, path = self._entries[index], self._paths[index]
        coco = self._annotations.get(entry.annotated_in)
        if coco:
            record = coco.imgs[entry.image_id]
            width, height = record["width"], record["height"]
            objects = tuple(
                _coco_object(coco, annotation) for annotation in coco.imgToAnns.get(entry.image_id, ())
            )
        else:
            with readable(path), Image.open(path) as image:
                width, height = image.size
            objects = None
        return Sample(
            image_id=entry.image_id,
            load=partial(read_image, path, upright=False),
            width=width,
            height=height,
            captions=entry.captions,
            objects=objects,
            source=self.source,
            file_name=entry.file_name,
            backdrop=record.get("backdrop") if coco else None,
        )

    def _check_masks(self) -> None:
        """Raise where an image of this dataset has no record, or an object no mask or no known category."""
        for entry in self._entries:
            coco = self._annotations.get(entry.annotated_in)
            if coco is None:
                continue
            if entry.image_id not in coco.imgs:
                raise ParameterError("instances", f"no image {entry.image_id}", "the file of these images")
            for annotation in coco.imgToAnns.get(entry.image_id, ()):
                name = f"object {annotation['id']}"
                if not annotation.get("segmentation"):
                    raise ParameterError("instances", f"{name} without segmentation", "polygons or RLE")
                if annotation.get("category_id") not in coco.cats:
                    raise ParameterError("instances", f"{name} of no category", "a listed category_id")

    def _find_images(self) -> list[Path]:
        """Return the path of every image, or raise with the number of those that are missing."""
        paths, missing = [], []
        for entry in self._entries:
            name, root = entry.annotated_in, self.folder
            folders = (root / "images" / name, root / name, root / "images", root)
            candidates = [folder / entry.file_name for folder in folders]
            found = next((path for path in candidates if path.is_file()), None)
            (paths if found else missing).append(found or candidates[0])
        if missing:
            accepted = f"images in {name}/, images/{name}/ or images/ of the folder"
            raise ImageError(
                f"images: {len(missing)} of {len(self._entries)} are missing, first "
                f"{missing[0].name!r}; accepted: {accepted}"
            )
        return paths


def annotation_files(folder: Path) -> tuple[dict[str, dict[str, Path]], Path | None]:
    """Return the annotation files, by split and kind, and the Karpathy file where there is one."""
    files: dict[str, dict[str, Path]] = {}
    places = (folder / "annotations", folder)
    for place in places:
        for kind in ("instances", "captions"):
            for path in sorted(place.glob(f"{kind}_*.json")):
                files.setdefault(path.stem.removeprefix(f"{kind}_"), {}).setdefault(kind, path)
    candidates = (place / KARPATHY_FILE for place in places)
    return files, next((path for path in candidates if path.is_file()), None)


def _read_records(path: str | os.PathLike, parameter: str, keys: Sequence[str]) -> dict[str, Any]:
    """Read a JSON file that has a list under each of the keys."""
    name = Path(path).name
    if not Path(path).is_file():
        raise ParameterError(parameter, name, "an existing JSON file")
    data = read_json(path)
    if not isinstance(data, dict) or any(not isinstance(data.get(key), list) for key in keys):
        raise ParameterError(parameter, name, f"a JSON file with lists of {', '.join(keys)}")
    return data


def _read_instances(path: str | os.PathLike) -> COCO:
    """Index an annotation file with pycocotools, which would print what it does."""
    coco = COCO()
    coco.dataset = _read_records(path, "instances", ("images", "annotations", "categories"))
    with _complete("instances", path), contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


@contextlib.contextmanager
def _complete(parameter: str, path: str | os.PathLike) -> Iterator[None]:
    """Turn a missing field of a record into an error that names the file."""
    try:
        yield
    except KeyError as error:
        given = f"{Path(path).name} with a record without {error}"
        raise ParameterError(parameter, given, "records with all fields") from None


def _listed_entries(files: dict[str, Path], split: str, annotated: COCO | None) -> list[_Entry]:
    """List the images of one annotated split in file order, with their captions."""
    by_image: dict[int, list[str]] = {}
    records = annotated.dataset["images"] if annotated else None
    if files.get("captions"):
        read = _read_records(files["captions"], "captions", ("images", "annotations"))
        records = records or read["images"]
        with _complete("captions", files["captions"]):
            for annotation in read["annotations"]:
                by_image.setdefault(annotation["image_id"], []).append(_one_line(annotation["caption"]))
    if records is None:
        records = _read_records(files["instances"], "instances", ("images",))["images"]
    with _complete("annotations", files.get("instances") or files["captions"]):
        return [
            _Entry(record["id"], record["file_name"], split, tuple(by_image.get(record["id"], ())))
            for record in records
        ]


def _karpathy_entries(path: str | os.PathLike, split: str, with_restval: bool) -> list[_Entry]:
    """List the images of a Karpathy split in the order of the file."""
    chosen = {split, "restval"} if with_restval and split == "train" else {split}
    records = _read_records(path, "karpathy", ("images",))["images"]
    with _complete("karpathy", path):
        return [
            _Entry(
                record["cocoid"],
                record["filename"],
                record["filepath"],
                tuple(_one_line(sentence["raw"]) for sentence in record["sentences"]),
            )
            for record in records
            if record["split"] in chosen
        ]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _coco_object(coco: COCO, annotation: dict[str, Any]) -> SceneObject:
    """Describe an instance, whichever way its mask is written: polygons, run lengths, compressed or not."""
    record = coco.imgs[annotation["image_id"]]
    rle = coco.annToRLE(annotation)
    if list(rle["size"]) != [record["height"], record["width"]]:
        size = f"a mask of {tuple(rle['size'])} for object {annotation['id']}"
        raise ParameterError("instances", size, f"{(record['height'], record['width'])}, the image's size")
    counts = rle["counts"]
    rle = {"size": list(rle["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return SceneObject(
        category=coco.cats[annotation["category_id"]]["name"],
        box=tuple(float(v) for v in annotation.get("bbox") or coco_mask.toBbox(rle)),
        rle=rle,
        area=float(annotation.get("area") or coco_mask.area(rle)),
        color=annotation.get("color"),
    )
