"""Read a smaller picture: the control that prunes nothing but pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rcblib.data.coverage import visible_box
from rcblib.mllm import Adapter
from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext
from rcblib.records import ParameterError, VisualView
from rcblib.tensors.pictures import as_rgb

if TYPE_CHECKING:
    import PIL.Image

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class DownsampledPruner(Pruner):
    r"""Shrink each picture, and read the tokens that look at it.

    A family that reads pictures of any size, such as Qwen2.5-VL, is given the smaller picture, and all its tokens are
    read. An encoder of a fixed frame is given the smaller picture in the frame's upper left corner, the rest of it in
    the mean colour of its training, and the tokens whose middle lies on the picture are read: of tiles too, and of
    frames of a video. Newlines stay.

    Parameters
    ----------
    retain_ratio : float
        Share of the picture's area that the smaller one has, in (0, 1]; about that share of the tokens is read. With a
        fixed frame the side of the smaller picture is a whole number of tokens.

    Notes
    -----
    Rule: width and height times :math:`\sqrt{r}`
    Cost: less than none where pictures have any size; with a fixed frame the encoder runs as before.
    Fails: small print, and objects of a few pixels.
    Source: a control; down-sampling beats many methods (arXiv 2510.07143), there with families that read any size.
    Differs: a fixed frame is filled up, as else its processor would blow the picture up again and save nothing.
    """

    retain_ratio: float

    def __post_init__(self):
        super().__post_init__()
        if self.retain_ratio == 0:
            raise ParameterError("retain_ratio", self.retain_ratio, "a number above 0 and up to 1")

    def resize(self, pictures: Sequence[PIL.Image.Image], adapter: Adapter) -> list[PIL.Image.Image]:
        """Return the smaller pictures, in a frame of the old size where the encoder's is fixed."""
        if self.retain_ratio == 1:
            return list(pictures)
        scale = self.scale(adapter)
        return [self._smaller(as_rgb(picture), scale, adapter) for picture in pictures]

    def scale(self, adapter: Adapter) -> float:
        """Return what sides are multiplied by; in a fixed frame the picture's is then a whole number of tokens."""
        scale, side = math.sqrt(self.retain_ratio), adapter.frame_side
        return scale if side is None else max(round(side * scale), 1) / side

    def _smaller(self, picture: PIL.Image.Image, scale: float, adapter: Adapter) -> PIL.Image.Image:
        left, top, right, bottom = seen_box(adapter, *picture.size)
        size = (max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1))
        small = picture.resize(size, resample=3, box=(left, top, right, bottom))  # bicubic
        if adapter.frame_side is None:
            return small
        mean = adapter.processor.image_processor.image_mean
        frame = picture.copy()
        frame.paste(tuple(round(255 * value) for value in mean), (0, 0, *picture.size))
        frame.paste(small, (round(left), round(top)))
        return frame

    def select(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Choose the tokens whose middle lies on the smaller picture."""
        if context is None or context.adapter is None:
            raise ParameterError("context", None, "a pruner's context, whose model has a frame")
        if self.retain_ratio == 1 or context.adapter.frame_side is None:
            return torch.arange(sum(view.n_tokens for view in views))
        scale = self.scale(context.adapter)
        return torch.cat([lies_on_picture(view, scale) for view in views]).nonzero().flatten()


def seen_box(adapter: Adapter, width: int, height: int) -> Box:
    """Return the part of a picture that a model's processor keeps, in pixels."""
    settings = adapter.processor.image_processor
    if adapter.frame_side is None or not getattr(settings, "do_center_crop", False):
        return 0, 0, width, height
    crop, shortest = settings.crop_size["height"], settings.size.get("shortest_edge")
    left, top, right, bottom = visible_box(width, height, crop if shortest is None else shortest, crop)
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def lies_on_picture(view: VisualView, scale: float) -> torch.Tensor:
    """Tell which tokens of a view have their middle on a picture in the frame's upper left corner."""
    left, top, right, bottom = view.region or (0.0, 0.0, 1.0, 1.0)
    height, width = view.grid
    x = left + (torch.arange(width, dtype=torch.float64) + 0.5) * (right - left) / width
    y = top + (torch.arange(height, dtype=torch.float64) + 0.5) * (bottom - top) / height
    return (((y >= 0) & (y < scale))[:, None] & ((x >= 0) & (x < scale))).flatten()
