"""Tell which files are photos that can be read here, by their names and by what is in them."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from rcblib.records import ImageError
from rcblib.runs.errors import in_one_line

with contextlib.suppress(ImportError):  # an extra; with it Pillow reads the photos of iPhones
    import pillow_heif

    pillow_heif.register_heif_opener()

Image.init()

_NO_PHOTOS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""What Pillow knows by name but leaves to others to decode: films, drawings, data."""

_BY_CONTENT = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "WEBP")
"""Formats that begin with a mark of their own, by which a photo of another name or none is told from other files."""

PHOTO_SUFFIXES = tuple(
    sorted(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_PHOTOS
    )
)
"""Endings of the names of photos, in lower case: those of all formats that the installed Pillow reads."""

_ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")
"""Formats whose further frames are moments; those of others are pages, or previews of the same photo."""

_N_NAMED = 5


def photos_in(folder: Path) -> list[Path]:
    """List the photos of a folder in any order, at least one.

    A photo is a file whose name ends in one of `PHOTO_SUFFIXES`, in any case, or that begins as photos do, whatever it
    is called. Of camera raw files, which begin as TIFF does, Pillow would read the thumbnail: by content none is TIFF.

    Raises
    ------
    ImageError
        If there is none.

    Warns
    -----
    UserWarning
        Of all that is passed over: other files, folders, and hidden files, which systems leave beside photos.
    """
    entries = sorted(folder.iterdir())
    shown = [path for path in entries if not path.name.startswith(".")]
    found = [path for path in shown if path.is_file() and is_photo(path)]
    passed_over = sorted({*shown} - {*found})
    told = _told(passed_over, len(entries) - len(shown))
    if not found:
        held = f", but {told}" if told else ""
        accepted = "a folder with photos, of a format that is read here"
        raise ImageError(f"folder: got {str(folder)!r} without any photo{held}; accepted: {accepted}")
    if told:
        warnings.warn(
            f"folder {folder.resolve().name!r}: {len(found)} of {len(entries)} are read as photos; passed over: {told}",
            stacklevel=4,
        )
    return found


def is_moving(path: Path) -> bool:
    """Tell whether a file is a picture that moves, whatever its name."""
    try:
        with Image.open(path) as image:
            return image.format in _ANIMATIONS and getattr(image, "is_animated", False)
    except Exception:  # who reads it says what is wrong
        return False


def is_photo(path: Path) -> bool:
    """Tell whether a file is a photo, by the end of its name or by how it begins."""
    if path.suffix.lower() in PHOTO_SUFFIXES:
        return True
    try:
        with Image.open(path, formats=[kind for kind in _BY_CONTENT if kind in Image.OPEN]):
            return True
    except Exception:  # readers raise many kinds on what they do not know
        return False


def _told(passed_over: list[Path], n_hidden: int) -> str:
    """Count and name what is passed over; empty where nothing is."""
    names = [repr(path.name + "/" * path.is_dir()) for path in passed_over]
    more = [f"{len(names) - _N_NAMED} more"] if len(names) > _N_NAMED else []
    hidden = [f"{n_hidden} hidden"] if n_hidden else []
    told = ", ".join([*names[:_N_NAMED], *more])
    parts = [f"{len(names)} ({told})"] if names else []
    hint = any(path.suffix.lower() in (".heic", ".heif", ".hif") for path in passed_over)
    return " and ".join(parts + hidden) + "; HEIC is read where pillow-heif is installed" * hint


def unreadable_because(path: str | os.PathLike, error: Exception) -> str:
    """Say in a few words why an image or a video could not be read."""
    if isinstance(error, UnidentifiedImageError) and "HEIF" not in Image.OPEN:
        with open(path, "rb") as file:
            if file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
                return "HEIC, which is read where pillow-heif is installed"
    return in_one_line(error)
