"""Turn what the views of a picture cover into small images that a page holds inside itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from rcblib.data.base import AnySample
from rcblib.data.coverage import visible_box
from rcblib.data.samples import load_pictures
from rcblib.probe.inputs import Place
from rcblib.probe.pictures import view_pictures
from rcblib.reading.explorer.schema import Pictures, ShownView
from rcblib.records import ParameterError

MOST_BYTES = 40_000
"""Of one picture, with what one model says about it."""

LONGEST_SIDE, QUALITIES, THUMB = 336, (86, 75, 60, 45, 30), 56


def pictures_of(adapter: Any, sample: AnySample, places: Sequence[Place], n_bytes: int) -> Pictures:
    """Show what each view covers, in at most so many bytes.

    Raises
    ------
    ParameterError
        If even the lowest quality takes more.
    """
    shown = [_shown(adapter, sample, place) for place in places]
    for quality in QUALITIES:
        made = Pictures(views=[_packed(picture, quality) for picture in shown])
        if sum(len(view.source) for view in made.views) <= n_bytes:
            return made
    raise ParameterError(
        "views", f"{len(shown)} views of image {sample.image_id!r}", f"what fits into {n_bytes} bytes: base"
    )


def _shown(adapter: Any, sample: AnySample, place: Place) -> PIL.Image.Image:
    """Return what a view covers, at the photo's own resolution where nothing was cut into tiles."""
    photo = load_pictures(sample)[place.picture]
    settings = adapter.processor.image_processor
    if (
        place.view.region is None
        and place.view.kind == "image"
        and getattr(settings, "do_center_crop", False)
    ):
        crop = settings.crop_size["height"]
        shortest = settings.size.get("shortest_edge") or crop
        picture = photo.crop([round(edge) for edge in visible_box(photo.width, photo.height, shortest, crop)])
    else:
        views = [place.view] if place.view.region is not None else None
        arrays = view_pictures(adapter.processor, photo, views)
        array = arrays[0 if len(arrays) == 1 else place.inside]
        picture = PIL.Image.fromarray((np.asarray(array) * 255).round().astype(np.uint8))
    if max(picture.size) > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), PIL.Image.Resampling.LANCZOS)
    return picture


def _packed(picture: PIL.Image.Image, quality: int) -> ShownView:
    written = io.BytesIO()
    picture.save(written, "WEBP", quality=quality, method=6)
    text = base64.b64encode(written.getvalue()).decode()
    return ShownView(source=f"data:image/webp;base64,{text}", width=picture.width, height=picture.height)


def thumbnails(pictures: Sequence[Pictures]) -> str:
    """Return the first view of each picture, side by side in one image, `THUMB` pixels wide each."""
    if not pictures:
        return ""
    strip = PIL.Image.new("RGB", (THUMB * len(pictures), THUMB), "white")
    for number, own in enumerate(pictures):
        data = own.views[0].source.partition(",")[2]
        with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            strip.paste(
                picture.convert("RGB").resize((THUMB, THUMB), PIL.Image.Resampling.LANCZOS),
                (THUMB * number, 0),
            )
    return _packed(strip, 70).source
