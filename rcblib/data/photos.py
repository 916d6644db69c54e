"""Read photos, upright and as RGB, and folders of them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from rcblib.data.base import Dataset, check_limit, existing_folder
from rcblib.records import ImageError, Sample, SequenceSample

PHOTO_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class PhotoFolder(Dataset[Sample]):
    """Read the photos of a folder, sorted by file name; nothing is known of what they show.

    Photos are turned upright as their EXIF tag says. Every one that is used is decoded once at the start, so that a
    damaged file stops the run before it begins.

    Parameters
    ----------
    folder : path
        Files directly in it whose names end in ``.jpg``, ``.png`` or another suffix of `PHOTO_SUFFIXES` (in any
        case) are photos; other files, hidden files and folders are passed over.
    n : int, optional
        Use the first `n`, or all if there are fewer.

    Raises
    ------
    ImageError
        If the folder is missing or holds no photo, or a photo cannot be read.
    ParameterError
        If `n` is below 1.
    """

    def __init__(self, folder: str | os.PathLike, n: int | None = None):
        self.folder, self.paths, self._sizes = _open_photos(folder, n)

    def __len__(self) -> int:
        return len(self.paths)

    def _sample(self, index: int) -> Sample:
        path = self.paths[index]
        width, height = self._sizes[index]
        return Sample(index, partial(read_image, path), width, height, source="photos", file_name=path.name)


class PhotoGroup(Dataset[SequenceSample]):
    """Read the photos of a folder as one group: a dataset of a single sample of kind ``"images"``.

    The photos are those of `PhotoFolder`, in the natural order of their names (``2.jpg`` before ``10.jpg``).

    Parameters
    ----------
    folder : path
        The folder.
    n : int, optional
        Use the first `n` photos, or all if there are fewer.

    Raises
    ------
    ImageError
        If the folder is missing or holds no photo, or a photo cannot be read.
    ParameterError
        If `n` is below 1.
    """

    def __init__(self, folder: str | os.PathLike, n: int | None = None):
        self.folder, self.paths, self._sizes = _open_photos(folder, n, natural_order)

    def __len__(self) -> int:
        return 1

    def _sample(self, index: int) -> SequenceSample:
        load = partial(read_images, self.paths)
        return SequenceSample(index, load, "images", self._sizes, source="photos", file_name=self.folder.name)


def read_image(path: str | os.PathLike, upright: bool = True) -> Image.Image:
    """Read an image file as RGB.

    Parameters
    ----------
    path : path
        The file.
    upright : bool
        Whether to turn it as its EXIF tag says; masks of COCO refer to the image as it is stored.

    Raises
    ------
    ImageError
        If the file is missing, no image, or damaged.
    """
    with readable(path), Image.open(path) as image:
        return as_rgb(ImageOps.exif_transpose(image) if upright else image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB with 8 bits a channel; grey values of 16 bits are scaled.

    Raises
    ------
    ImageError
        If its values have no range that is known: whole numbers of 32 bits, or fractions.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"image: got values of mode {image.mode!r}; accepted: 8 bits a channel, or 16 bits of grey"
        )
    return image.convert("RGB")


@contextlib.contextmanager
def readable(path: str | os.PathLike, what: str = "image") -> Iterator[None]:
    """Turn whatever goes wrong while an image or a video is read into an `ImageError` of one line.

    A file that ends too early is wrong, also where another package has told Pillow to fill it up, as lmms-eval does.
    """
    filled_up, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    except Exception as error:  # readers raise many kinds on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{what}: {Path(path).name!r} cannot be read ({reason})") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = filled_up


def photos_in(folder: Path) -> list[Path]:
    """List the photos of a folder in any order, at least one."""
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        accepted = f"a folder with photos ({', '.join(PHOTO_SUFFIXES)})"
        raise ImageError(f"folder: got {str(folder)!r} without any photo; accepted: {accepted}")
    return found


def _open_photos(
    folder: str | os.PathLike, n: int | None, key: Callable[[Path], Any] | None = None
) -> tuple[Path, list[Path], tuple[tuple[int, int], ...]]:
    """Return a folder, the first `n` of its photos in order, and their sizes; each is decoded once."""
    checked, n = existing_folder(folder), check_limit(n)
    paths = sorted(photos_in(checked), key=key)[:n]
    return checked, paths, tuple(upright_size(path) for path in paths)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Order file names as people do: numbers in them by their value."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts] + [(-1, path.name)]


def read_images(paths: Sequence[Path]) -> tuple[Image.Image, ...]:
    """Read image files as `read_image` does."""
    return tuple(read_image(path) for path in paths)


def upright_size(path: Path) -> tuple[int, int]:
    """Decode a photo once to see that it is whole; return its `(width, height)` when upright."""
    with readable(path), Image.open(path) as image:
        width, height = image.size
        is_turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        image.draft("RGB", (1, 1))  # a JPEG is read to its end but only its coarsest scale is computed
        image.load()
    return (height, width) if is_turned else (width, height)
