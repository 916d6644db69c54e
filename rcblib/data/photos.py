"""Read photos, upright and as RGB, and folders of them."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from rcblib.data.base import Dataset, check_limit, existing_folder
from rcblib.data.formats import is_moving, photos_in, unreadable_because
from rcblib.records import ImageError, ParameterError, Sample, SequenceSample
from rcblib.runs.paths import user_path
from rcblib.tensors.pictures import as_rgb, is_sideways

ON_ERROR = ("stop", "skip")
"""What is done about images that cannot be read: stop before any work and name all of them, or go on without them."""


class PhotoFolder(Dataset[Sample]):
    """Read the photos of a folder, sorted by file name; nothing is known of what they show.

    A photo's id is its file name: it stays the same when others come or go. Photos are turned upright as their EXIF
    tag says; of one that moves the first moment is read, and a warning counts these. Every one that is used is decoded
    once at the start, so that damaged files stop the run before it begins.

    Parameters
    ----------
    folder : path
        What is a photo of the files directly in it `rcblib.data.formats.photos_in` says: all that Pillow reads.
    n : int, optional
        Use the first `n`, or all if there are fewer.
    on_error : {"stop", "skip"}
        Whether a photo that cannot be read stops all, or is left out and the next one taken.

    Attributes
    ----------
    skipped : dict
        File name to the reason for each photo that was left out.

    Raises
    ------
    ImageError
        If the folder is missing or holds no photo, or photos cannot be read; all of these are named.
    ParameterError
        If `n` is below 1, or `on_error` is another word.

    Warns
    -----
    UserWarning
        Naming all that are left out.
    """

    def __init__(self, folder: str | os.PathLike, n: int | None = None, on_error: str = "stop"):
        self.folder, self._sizes, self.skipped = _open_photos(folder, n, on_error=on_error)
        self.paths = list(self._sizes)

    def __len__(self) -> int:
        return len(self.paths)

    def _sample(self, index: int) -> Sample:
        path = self.paths[index]
        name, source = plain_name(path), f"photos/{plain_name(self.folder.resolve())}"
        return Sample(name, partial(read_image, path), *self._sizes[path], source=source, file_name=name)


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
        If the folder is missing or holds no photo, or photos cannot be read; all of these are named.
    ParameterError
        If `n` is below 1.
    """

    def __init__(self, folder: str | os.PathLike, n: int | None = None):
        self.folder, self._sizes, _ = _open_photos(folder, n, natural_order)
        self.paths = list(self._sizes)

    def __len__(self) -> int:
        return 1

    def _sample(self, index: int) -> SequenceSample:
        load, name = partial(read_images, self.paths), plain_name(self.folder.resolve())
        sizes = tuple(self._sizes.values())
        return SequenceSample(name, load, "images", sizes, source="photos", file_name=name)


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file, upright as its EXIF orientation says and as RGB; see `rcblib.tensors.pictures.as_rgb`.

    Raises
    ------
    ImageError
        If the file is missing, no image, or damaged.
    """
    path = user_path(path, "image")
    with readable(path), Image.open(path) as image:
        image.load()
        return as_rgb(image)


@contextlib.contextmanager
def readable(path: str | os.PathLike, what: str = "image") -> Iterator[None]:
    """Turn whatever goes wrong while an image or a video is read into an `ImageError` of one line.

    A file that ends too early is wrong, also where another package has told Pillow to fill it up, as lmms-eval does.
    """
    try:
        with _AS_THEY_ARE:
            yield
    except Exception as error:  # readers raise many kinds on damaged files
        reason = unreadable_because(path, error)
        raise ImageError(f"{what}: {Path(path).name!r} cannot be read ({reason})") from None


class _FilesAsTheyAre:
    """Let Pillow fill up no file while any thread is inside; the setting is the process's, and put back by the last."""

    def __init__(self) -> None:
        self._lock, self._n_inside, self._before = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._n_inside:
                self._before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self._n_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if not self._n_inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_AS_THEY_ARE = _FilesAsTheyAre()


def _open_photos(
    folder: str | os.PathLike,
    n: int | None,
    key: Callable[[Path], Any] | None = None,
    on_error: str = "stop",
) -> tuple[Path, dict[Path, tuple[int, int]], dict[str, str]]:
    """Return a folder, the first `n` of its photos in order with their sizes, and those skipped; each is decoded."""
    checked, n = existing_folder(folder), check_limit(n)
    check_on_error(on_error)
    paths = sorted(photos_in(checked), key=key)
    if on_error == "stop":
        sizes = upright_sizes(paths[:n])
        _tell_moving(sizes)
        return checked, sizes, {}
    sizes = {}
    errors: dict[str, ImageError] = {}
    for path in paths:
        if len(sizes) == n:
            break
        try:
            sizes[path] = upright_size(path)
        except ImageError as error:
            errors[plain_name(path)] = error
    if errors:
        told = together(errors.values(), len(sizes) + len(errors))
        if not sizes:
            raise told
        warnings.warn(f"left out: {told}", stacklevel=3)
    _tell_moving(sizes)
    return checked, sizes, {name: str(error) for name, error in errors.items()}


def _tell_moving(paths: Collection[Path]) -> None:
    """Warn of pictures that move, of which the first moment is read."""
    names = [repr(plain_name(path)) for path in paths if is_moving(path)]
    if names:
        warnings.warn(
            f"images: {len(names)} of {len(paths)} move, first {names[0]}; the first moment is read, all of them with "
            "video:<file>",
            stacklevel=4,
        )


def upright_sizes(paths: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Return the size of each photo as `upright_size`, or raise one `ImageError` that names all damaged ones."""
    sizes, errors = {}, []
    for path in paths:
        try:
            sizes[path] = upright_size(path)
        except ImageError as error:
            errors.append(error)
    if errors:
        raise together(errors, len(paths))
    return sizes


def together(errors: Collection[ImageError], n_images: int) -> ImageError:
    """Return one error that says in a line what is wrong with some of so many images."""
    if len(errors) == 1:
        return next(iter(errors))
    told = "; ".join(str(error).partition(": ")[2] for error in errors)
    return ImageError(f"images: {len(errors)} of {n_images} cannot be used: {told}")


def check_on_error(on_error: str) -> None:
    """Raise a `ParameterError` where this is no word for what is done about images that cannot be read."""
    if on_error not in ON_ERROR:
        raise ParameterError("on_error", on_error, ", ".join(ON_ERROR))


def plain_name(path: Path) -> str:
    """Return the name of a file or folder as text that can be written anywhere, whatever bytes it is made of."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


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
        size = image.size
        # A JPEG is read to its end, but only its coarsest scale is computed.
        is_draft = image.draft("RGB", (1, 1))
        image.load()  # turns a TIFF by itself
        width, height = size if is_draft else image.size
        return (height, width) if is_sideways(image) else (width, height)
