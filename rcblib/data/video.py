"""Read evenly spaced frames of a video: a file, an animation, or a folder of frames."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from rcblib.data.base import Dataset, evenly_spread
from rcblib.data.formats import is_moving, is_photo, photos_in
from rcblib.data.photos import natural_order, plain_name, read_images, readable, upright_sizes
from rcblib.records import ImageError, Sample, SequenceSample
from rcblib.runs.paths import user_path
from rcblib.tensors.checks import check_integer
from rcblib.tensors.pictures import as_rgb

FILM_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
"""Endings of the names of films, which no reader of pictures takes."""

N_FRAMES = 16
"""Frames taken of a video by default, as the paper does."""


class VideoFile(Dataset[SequenceSample]):
    """Read one video: a dataset of a single sample of kind ``"video"``.

    It is decoded once at the start, so that a damaged file stops the run before it begins. Frames are turned upright
    as the file says.

    Parameters
    ----------
    path : path
        A file that FFmpeg reads (the package ``av`` is needed), an animated GIF, WebP or PNG, or a folder of frames in
        the natural order of their names.
    n_frames : int
        Frames taken, evenly spaced from the first to the last; all of them if there are fewer.

    Raises
    ------
    ImageError
        If the file is missing, cannot be decoded or has no frame, ``av`` is needed but not installed, or the frames of
        a folder differ in size.
    ParameterError
        If `n_frames` is below 1.

    Notes
    -----
    Source: lmms-eval's adapter of LLaVA-OneVision, for which frames of a video are taken.
    Differs: that one repeats frames where there are too few.
    """

    def __init__(self, path: str | os.PathLike, n_frames: int = N_FRAMES):
        self.path = user_path(path)
        check_integer("n_frames", n_frames, 1)
        if self.path.is_dir():
            paths = sorted(photos_in(self.path), key=natural_order)
            chosen = [paths[i] for i in evenly_spread(len(paths), n_frames)]
            self._sizes = tuple(upright_sizes(chosen).values())
            if len(set(self._sizes)) > 1:
                sizes = ", ".join(f"{width}x{height}" for width, height in sorted(set(self._sizes)))
                raise ImageError(f"video: the frames in {self.path.name!r} are of several sizes ({sizes})")
            self._load = partial(read_images, chosen)
            return
        if not self.path.is_file():
            raise ImageError(
                f"video: {str(path)!r} does not exist; accepted: a video file or folder of frames"
            )
        is_picture = is_photo(self.path)
        if not is_picture and importlib.util.find_spec("av") is None:
            raise ImageError(f"video: {self.path.name!r} needs the package av: pip install 'rcblib[video]'")
        decode = _decode_animation if is_picture else _decode_film
        n_available, size = 0, (0, 0)
        with readable(self.path, "video"):
            for n_available, frame in enumerate(decode(self.path), 1):
                size = frame().size if n_available == 1 else size
        if not n_available:
            raise ImageError(f"video: {self.path.name!r} has no frames")
        chosen = evenly_spread(n_available, n_frames)
        self._sizes = (size,) * len(chosen)
        self._load = partial(_read_frames, decode, self.path, chosen)

    def __len__(self) -> int:
        return 1

    def _sample(self, index: int) -> SequenceSample:
        name = plain_name(self.path.resolve())
        return SequenceSample(name, self._load, "video", self._sizes, source="video", file_name=name)

    def frames(self) -> list[Sample]:
        """Return the frames that are taken as images, each for itself; they stay in memory once one was loaded."""
        load, name, n = cache(self._load), plain_name(self.path.resolve()), len(self._sizes)
        return [
            Sample(i, lambda i=i: load()[i], *size, source="video", file_name=f"{name}, frame {i + 1} of {n}")
            for i, size in enumerate(self._sizes)
        ]


def is_video(path: Path) -> bool:
    """Tell whether a path is that of a film, by the end of its name, or of a picture that moves, whatever its name."""
    return path.suffix.lower() in FILM_SUFFIXES or path.is_file() and is_moving(path)


def _read_frames(
    decode: Callable[[Path], Iterator[Callable[[], Image.Image]]], path: Path, chosen: Sequence[int]
) -> tuple[Image.Image, ...]:
    """Decode a video again and keep the chosen frames."""
    wanted = set(chosen)
    with readable(path, "video"):
        return tuple(frame() for i, frame in enumerate(decode(path)) if i in wanted)


def _decode_animation(path: Path) -> Iterator[Callable[[], Image.Image]]:
    """Decode the frames of a picture that moves; each is given as a function that returns it upright as RGB."""
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            yield partial(as_rgb, frame)


def _decode_film(path: Path) -> Iterator[Callable[[], Image.Image]]:
    """Decode the frames of a video file; each is given as a function that returns it upright as RGB."""
    import av

    with av.open(path) as container:
        for stream in container.streams.video[:1]:
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                yield partial(_upright_frame, frame)


def _upright_frame(frame: Any) -> Image.Image:
    """Turn a decoded frame as the file's display matrix says, which is in degrees counterclockwise."""
    return frame.to_image().rotate(frame.rotation, expand=True) if frame.rotation else frame.to_image()
