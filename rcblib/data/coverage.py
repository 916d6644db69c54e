"""Say how much of each token's patch the annotated objects cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from rcblib.records import ParameterError, Sample
from rcblib.tensors.checks import check_integer


def visible_box(
    width: int, height: int, size: int | None = None, crop: int | None = None
) -> tuple[float, float, float, float]:
    """Return the region that a processor keeps which resizes the shorter side and crops the centre.

    Parameters
    ----------
    width, height : int
        Size of the image in pixels.
    size : int, optional
        What the shorter side is resized to, in pixels (336 for LLaVA-1.5). With it the processor's rounding to whole
        resized pixels is followed; without it the region is the central square.
    crop : int, optional
        Side of the square that is cropped of it and that the encoder sees, where it is another than `size` (DINOv2's
        own processor: 224 of 256). Where it is larger, the region reaches beyond the image.

    Returns
    -------
    tuple of float
        ``(left, top, right, bottom)`` in pixels of the image.

    Raises
    ------
    ParameterError
        If a number is below 1.
    """
    check_integer("width", width, 1)
    check_integer("height", height, 1)
    short = min(width, height)
    if size is not None:
        check_integer("size", size, 1)
        crop = size if crop is None else check_integer("crop", crop, 1)

    def kept(length: int) -> tuple[float, float]:
        if size is None:
            return (length - short) / 2, (length + short) / 2
        resized = size * length // short
        first = (resized - crop) // 2
        return first * length / resized, (first + crop) * length / resized

    (left, right), (top, bottom) = kept(width), kept(height)
    return left, top, right, bottom


@dataclass(frozen=True)
class Coverage:
    """Hold what lies under each patch.

    Attributes
    ----------
    share : torch.Tensor
        ``(n_patches,)`` float32, the fraction in [0, 1] that objects cover, all together; higher = more covered.
    category : tuple of (str or None)
        ``(n_patches,)`` the category that covers most of the patch, the first listed where two cover the same; ``None``
        where no object reaches.
    """

    share: torch.Tensor
    category: tuple[str | None, ...]


def patch_overlaps(n_pixels: int, n_patches: int, start: float, stop: float) -> np.ndarray:
    """Compute what share of each patch of a line each of its pixels is.

    Parameters
    ----------
    n_pixels : int
        Pixels of the line, each of length 1.
    n_patches : int
        Patches of equal length that divide the line from `start` to `stop`.
    start, stop : float
        Ends of the divided part, in pixels. It may reach beyond the line, where there are no pixels.

    Returns
    -------
    numpy.ndarray
        ``(n_patches, n_pixels)`` in [0, 1]; rows sum to the share of the patch that lies on the line, 1 inside it.
    """
    edges = np.linspace(start, stop, n_patches + 1)
    pixels = np.arange(n_pixels)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return shared.clip(0) * (n_patches / (stop - start))


def object_coverage(
    sample: Sample, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> Coverage:
    """Compute what share of every patch objects cover, and which category covers most of it.

    Parameters
    ----------
    sample : Sample
        An image with annotated objects.
    height, width : int
        Grid size in tokens.
    box : tuple of float, optional
        ``(left, top, right, bottom)`` in pixels of the image: the region that the grid covers. By default
        `visible_box` of the image, its central square; for a square image that is all of it. It may reach beyond the
        image, as a grid does that covers padding, where no object is.

    Returns
    -------
    Coverage
        In raster order. Exact for any size: a pixel that two patches share counts in both by its share.

    Raises
    ------
    ParameterError
        If the sample has no annotation, the grid is empty, or the box is empty or misses the image.
    """
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    if sample.objects is None:
        raise ParameterError(
            "sample", f"image {sample.image_id} without annotation", "a sample with annotated objects"
        )
    left, top, right, bottom = visible_box(sample.width, sample.height) if box is None else box
    is_part = left < right and left < sample.width and right > 0
    is_part = is_part and top < bottom and top < sample.height and bottom > 0
    if not (is_part and np.isfinite((left, top, right, bottom)).all()):
        accepted = f"a region, part of it inside (0, 0, {sample.width}, {sample.height})"
        raise ParameterError("box", box, accepted)
    rows = patch_overlaps(sample.height, height, top, bottom)
    columns = patch_overlaps(sample.width, width, left, right)

    masks: dict[str, list[dict[str, Any]]] = {}
    for item in sample.objects:
        masks.setdefault(item.category, []).append(dict(item.rle))

    def shares(rles: list[dict[str, Any]]) -> np.ndarray:
        union = coco_mask.decode(coco_mask.merge(rles))
        return (rows @ union @ columns.T).reshape(-1).clip(0, 1)

    if not masks:
        return Coverage(torch.zeros(height * width), (None,) * (height * width))
    together = shares([rle for rles in masks.values() for rle in rles])
    by_category = np.stack([shares(rles) for rles in masks.values()])
    names = list(masks)
    best = by_category.argmax(0)
    category = tuple(names[i] if by_category[i, j] > 0 else None for j, i in enumerate(best))
    return Coverage(torch.from_numpy(together).float(), category)
