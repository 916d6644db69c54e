"""Turn scenes into COCO records: samples in memory, and folders that every COCO tool reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from rcblib.records import ParameterError, Sample, SceneObject
from worlds.scenes.captions import captions
from worlds.scenes.generator import PlacedObject, Scene
from worlds.scenes.vocabulary import CATEGORIES, SHAPES

CATEGORY_IDS = {name: i for i, name in enumerate(CATEGORIES, 1)}


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a boolean mask `(height, width)` as COCO's compressed run lengths: ``size`` and ``counts`` (bytes)."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def scene_object(item: PlacedObject, height: int, width: int) -> SceneObject:
    """Describe a drawn object as a COCO instance of an image of that size in pixels; its box is the mask's."""
    rle = encode_mask(item.full_mask(height, width))
    box = tuple(float(v) for v in coco_mask.toBbox(rle))
    return SceneObject(item.category, box, rle, float(item.area), item.color)


def file_name(scene: Scene) -> str:
    """Name the file of a scene, unique over splits, seeds and indices."""
    return f"{scene.split}_{scene.seed}_{scene.index:06d}.png"


def scene_sample(scene: Scene, load: Callable[[], Image.Image] | None = None) -> Sample:
    """Describe a scene as a sample: five captions and its objects by decreasing area.

    Parameters
    ----------
    scene : Scene
        What was drawn; its index becomes the image id.
    load : callable, optional
        Returns the picture again. By default the sample holds the scene's pixels.
    """
    return Sample(
        image_id=scene.index,
        load=load or partial(Image.fromarray, scene.pixels),
        width=scene.width,
        height=scene.height,
        captions=captions(scene.objects, scene.background),
        objects=tuple(scene_object(item, scene.height, scene.width) for item in scene.objects),
        source=f"scenes/{scene.split}",
        file_name=file_name(scene),
    )


def export_coco(scenes: Iterable[Scene], folder: str | os.PathLike, split: str) -> None:
    """Write scenes in COCO's format: ``images/<split>/*.png`` and two annotation files.

    ``annotations/instances_<split>.json`` holds category, tight box, run-length mask, area and, beyond COCO, ``color``
    of every object, largest first; ``annotations/captions_<split>.json`` five captions an image. An image record also
    says which ``background``, ``seed`` and ``index`` the scene was drawn with. The same scenes give the same bytes of
    annotations, and of images with the same version of Pillow.

    Parameters
    ----------
    scenes : iterable of Scene
        At least one; a scene's index becomes its image id, so that indices must differ.
    folder : path
        Made where it is missing; files of the same names are replaced.
    split : str
        Name in the files' names, and the split of every scene.

    Raises
    ------
    ParameterError
        If there is no scene, one is of another split, or an index repeats.
    """
    scenes = list(scenes)
    if not scenes:
        raise ParameterError("scenes", scenes, "at least one scene")
    strangers = sorted({scene.split for scene in scenes} - {split})
    if strangers:
        raise ParameterError("scenes", f"scenes of {', '.join(strangers)}", f"scenes of {split}")
    if len({scene.index for scene in scenes}) < len(scenes):
        raise ParameterError("scenes", "an index more than once", "distinct indices")

    pictures, annotations = Path(folder) / "images" / split, Path(folder) / "annotations"
    pictures.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    images, instances, sentences = [], [], []
    for scene in scenes:
        sample = scene_sample(scene)
        sample.image.save(pictures / sample.file_name, optimize=True)
        images.append(
            {
                "id": sample.image_id,
                "file_name": sample.file_name,
                "width": sample.width,
                "height": sample.height,
                "background": scene.background,
                "seed": scene.seed,
                "index": scene.index,
            }
        )
        for item in sample.objects:
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": sample.image_id,
                    "category_id": CATEGORY_IDS[item.category],
                    "bbox": list(item.box),
                    "segmentation": {**item.rle, "counts": item.rle["counts"].decode("ascii")},
                    "area": item.area,
                    "iscrowd": 0,
                    "color": item.color,
                }
            )
        for caption in sample.captions:
            sentences.append({"id": len(sentences) + 1, "image_id": sample.image_id, "caption": caption})

    info = {"description": "Scenes of the embedded world", "source": "scenes", "split": split}
    categories = [
        {"id": i, "name": name, "supercategory": "shape" if name in SHAPES else "digit"}
        for name, i in CATEGORY_IDS.items()
    ]
    common = {"info": info, "images": images}
    _write(
        annotations / f"instances_{split}.json",
        {**common, "categories": categories, "annotations": instances},
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
