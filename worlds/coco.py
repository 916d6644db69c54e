"""Write samples in COCO's format: folders that every COCO tool reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from rcblib.records import Sample
from rcblib.runs.paths import user_path


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a boolean mask `(height, width)` as COCO's compressed run lengths: ``size`` and ``counts`` (bytes)."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def write_coco(
    samples: Sequence[Sample],
    folder: str | os.PathLike,
    split: str,
    *,
    info: Mapping[str, Any],
    categories: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    **how_saved: Any,
) -> None:
    """Write ``images/<split>/``, ``annotations/instances_<split>.json`` and ``annotations/captions_<split>.json``.

    Parameters
    ----------
    samples : sequence of Sample
        With objects; file names decide the pictures' format.
    folder : path
        Made where it is missing; files of the same names are replaced.
    split : str
        Name in the files' names.
    info : Mapping
        What the annotation files say of themselves; ``source`` names the world.
    categories : Mapping
        Name to supercategory; ids count from 1 in this order.
    records : sequence of Mapping
        For each sample, what its image record holds beyond COCO.
    **how_saved
        Arguments of Pillow's ``save``.
    """
    folder = user_path(folder, "folder")
    pictures, annotations = folder / "images" / split, folder / "annotations"
    pictures.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    ids = {name: i for i, name in enumerate(categories, 1)}
    images, instances, sentences = [], [], []
    for sample, record in zip(samples, records, strict=True):
        sample.image.save(pictures / sample.file_name, **how_saved)
        known = {
            "id": sample.image_id,
            "file_name": sample.file_name,
            "width": sample.width,
            "height": sample.height,
        }
        images.append({**known, **record})
        for item in sample.objects or ():
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": sample.image_id,
                    "category_id": ids[item.category],
                    "bbox": list(item.box),
                    "segmentation": {**item.rle, "counts": item.rle["counts"].decode("ascii")},
                    "area": item.area,
                    "iscrowd": 0,
                    **({"color": item.color} if item.color else {}),
                }
            )
        for caption in sample.captions:
            sentences.append({"id": len(sentences) + 1, "image_id": sample.image_id, "caption": caption})
    listed = [{"id": i, "name": name, "supercategory": categories[name]} for name, i in ids.items()]
    common = {"info": dict(info), "images": images}
    _write(
        annotations / f"instances_{split}.json",
        {**common, "categories": listed, "annotations": instances},
    )
    _write(annotations / f"captions_{split}.json", {**common, "annotations": sentences})


def _write(path: Path, value: Any) -> None:
    """Write JSON with a record a line, so that a change shows as the lines it touches."""
    parts = []
    for key, entry in value.items():
        is_table = isinstance(entry, list)
        text = ",\n".join(map(json.dumps, entry)) if is_table else json.dumps(entry)
        parts.append(f'"{key}": [\n{text}\n]' if is_table else f'"{key}": {text}')
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
