"""Show and measure what each view of a photo covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from rcblib.data.base import AnySample
from rcblib.data.coverage import Coverage, object_coverage, visible_box
from rcblib.data.samples import by_picture
from rcblib.records import (
    ParameterError,
    VisualView,
)
from rcblib.tensors.checks import check_integer
from rcblib.tensors.pictures import as_rgb


def view_coverage(processor: Any, sample: AnySample, view: VisualView, picture: int = 0) -> Coverage | None:
    """Compute what share of every token's patch objects cover, for one view of a photo or video.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        As `load_model` returns it; it says what is cropped where the view does not say what it covers.
    sample : Sample or SequenceSample
        The photo that the view was encoded from, or the photos or video that it is part of.
    view : VisualView
        From the adapter.
    picture : int
        Number of the view's photo or frame in a `SequenceSample`.

    Returns
    -------
    Coverage or None
        As `object_coverage`; what a patch shows of padding counts as uncovered. ``None`` where the sample has no
        annotation, or nothing says where a tile lies.

    Raises
    ------
    ParameterError
        If the sample has no such picture.
    """
    pictures = by_picture(sample)
    known = pictures[check_integer("picture", picture, 0, len(pictures) - 1)]
    if known.objects is None:
        return None
    width, height = float(known.width), float(known.height)
    if view.region is not None:
        left, top, right, bottom = view.region
        box = (left * width, top * height, right * width, bottom * height)
    elif view.kind != "image":
        return None
    elif getattr(processor.image_processor, "do_center_crop", False):
        settings = processor.image_processor
        crop, shortest = settings.crop_size["height"], settings.size.get("shortest_edge")
        box = visible_box(known.width, known.height, crop if shortest is None else shortest, crop)
    else:
        box = (0.0, 0.0, width, height)
    return object_coverage(known, *view.grid, box)


def view_pictures(
    processor: Any, image: PIL.Image.Image, views: Sequence[VisualView] | None = None
) -> list[np.ndarray]:
    """Show what each view of a photo covers, so that a signal laid over it covers the pixels its tokens come from.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        As `load_model` returns it.
    image : PIL.Image.Image
        Any size and mode; of a video, one frame.
    views : sequence of VisualView, optional
        Views of this photo, all or some. What their `region` says is cut from the photo, black beyond its edges.

    Returns
    -------
    list of numpy.ndarray
        ``(height, width, 3)`` values in [0, 1] for each view. Without `views`, or where they have no region: what the
        vision encoder gets, resized, cropped, cut into tiles, but not normalised. A tile is then shown whole, also
        where the LLM reads only a part of it. Of an encoder that gets patches of a whole photo, the photo.

    Raises
    ------
    ParameterError
        If views without a region are not as many as the pictures that the encoder gets.
    """
    image = as_rgb(image)
    if views and all(view.region is not None for view in views):
        return [_cut(image, view.region) for view in views]
    batch = processor.image_processor([image], do_normalize=False, return_tensors="pt")
    if torch.as_tensor(batch["pixel_values"]).ndim < 4:  # patches in a row, of a whole photo
        return [_cut(image, (0.0, 0.0, 1.0, 1.0))]
    pixels = torch.as_tensor(batch["pixel_values"][0])
    tiles = pixels if pixels.ndim == 4 else pixels[None]  # (n_views, 3, height, width)
    if views is not None and len(views) != len(tiles):
        raise ParameterError("views", f"{len(views)} views", f"{len(tiles)}, or views with regions")
    return [tile.permute(1, 2, 0).clamp(0, 1).numpy() for tile in tiles]


def _cut(image: PIL.Image.Image, region: tuple[float, float, float, float]) -> np.ndarray:
    """Cut a part out of a photo, given as fractions of its sides, at the photo's own resolution."""
    left, top, right, bottom = (
        edge * side for edge, side in zip(region, (image.width, image.height) * 2, strict=True)
    )
    size = (max(1, round(right - left)), max(1, round(bottom - top)))
    part = image.transform(size, PIL.Image.Transform.EXTENT, (left, top, right, bottom))
    return np.asarray(part, dtype=np.float32) / 255
