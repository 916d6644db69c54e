"""Bring a picture into the one form in which all pictures are read: upright, RGB, 8 bits a channel."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from rcblib.records import ImageError

_ORIENTATION = 0x0112
"""Number of the EXIF tag that says how a stored picture is to be turned."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture upright, as its EXIF orientation says, as RGB with 8 bits a channel.

    Grey values of 16 bits are scaled, transparency is dropped; of several frames it is the one at which the image
    stands. What is returned says nothing of orientation any more, so that nobody turns it twice.

    Raises
    ------
    ImageError
        If it is none, has no pixels, cannot be decoded, or its values have no range that is known: whole numbers of 32
        bits, or fractions.
    """
    if not isinstance(image, Image.Image):
        raise ImageError(f"image: got {type(image).__name__}; accepted: a PIL image")
    if 0 in image.size:
        raise ImageError(f"image: got {image.width} x {image.height} px; accepted: at least one pixel")
    try:
        image.load()
        turn = turn_of(image)
        picture = _eight_bits(image)
    except ImageError:
        raise
    except Exception as error:  # readers raise many kinds on damaged files
        name = os.path.basename(os.fsdecode(getattr(image, "filename", "") or ""))
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"image: {f'{name!r} ' if name else ''}cannot be read ({reason})") from None
    if picture is image:
        return image if turn is None else _bare(image.transpose(turn))
    return _bare(picture if turn is None else picture.transpose(turn))


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return how a picture has to be turned to be upright; ``None`` where it is, or where its EXIF is damaged."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # readers raise many kinds on damaged EXIF; the pixels may be whole all the same
        return None


def is_sideways(image: Image.Image) -> bool:
    """Tell whether turning a picture upright exchanges its width and height."""
    turn = turn_of(image)
    return turn is not None and turn.name in ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture as RGB with 8 bits a channel: itself, where it is that and in memory."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        accepted = "8 bits a channel, or 16 bits of grey"
        raise ImageError(f"image: got values of mode {image.mode!r}; accepted: {accepted}")
    return image if type(image) is Image.Image and image.mode == "RGB" else image.convert("RGB")


def _bare(picture: Image.Image) -> Image.Image:
    """Take away what a new picture has taken over from its file."""
    picture.info = {}
    return picture
