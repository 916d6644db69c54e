"""Turn scenes into COCO records: samples in memory, and folders that every COCO tool reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial

from PIL import Image
from pycocotools import mask as coco_mask

from rcblib.records import ParameterError, Sample, SceneObject
from worlds.coco import encode_mask, write_coco
from worlds.scenes.captions import captions
from worlds.scenes.generator import PlacedObject, Scene
from worlds.scenes.vocabulary import CATEGORIES, SHAPES


def scene_object(item: PlacedObject, height: int, width: int) -> SceneObject:
    """Describe a drawn object as a COCO instance of an image of that size in pixels; its box is the mask's."""
    rle = encode_mask(item.full_mask(height, width))
    box = tuple(float(v) for v in coco_mask.toBbox(rle))
    return SceneObject(item.category, box, rle, float(item.area), item.color)


def file_name(scene: Scene) -> str:
    """Name the file of a scene, unique over splits, seeds and indices."""
    return f"{scene.split}_{scene.seed}_{scene.index:06d}.png"


def scene_sample(
    scene: Scene,
    load: Callable[[], Image.Image] | None = None,
    without: Callable[[int | None], Image.Image] | None = None,
) -> Sample:
    """Describe a scene as a sample: five captions and its objects by decreasing area.

    Parameters
    ----------
    scene : Scene
        What was drawn; its index becomes the image id.
    load : callable, optional
        Returns the picture again. By default the sample holds the scene's pixels.
    without : callable, optional
        Returns it without one of the objects, by number; see `Sample`.
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
        background=scene.background,
        without=without,
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

    write_coco(
        [scene_sample(scene) for scene in scenes],
        folder,
        split,
        info={"description": "Scenes of the embedded world", "source": "scenes", "split": split},
        categories={name: "shape" if name in SHAPES else "digit" for name in CATEGORIES},
        records=[{"background": s.background, "seed": s.seed, "index": s.index} for s in scenes],
        optimize=True,
    )
