"""Turn what is given to be probed into pictures, and say where their views stand."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import PIL.Image

from rcblib.data.base import AnySample
from rcblib.data.photos import read_image
from rcblib.data.samples import by_picture, check_sizes, load_pictures
from rcblib.data.video import VideoFile, is_video
from rcblib.mllm import Adapter
from rcblib.probe.config import ProbeConfig
from rcblib.probe.perturbation import WINDOW_SIZE
from rcblib.records import (
    EncodedImage,
    ImageError,
    ParameterError,
    VisualView,
)
from rcblib.runs.paths import user_path
from rcblib.tensors.checks import check_positions
from rcblib.tensors.pictures import as_rgb

Photo = PIL.Image.Image | str | os.PathLike


def opened(
    image: Photo | Sequence[Photo] | AnySample, sample: AnySample | None
) -> tuple[list[PIL.Image.Image], str, AnySample | None]:
    """Return the pictures of an input as RGB, its kind as in `SequenceSample.kind`, and what is known of it."""
    beside = None if sample is image else sample
    if isinstance(image, AnySample):
        if beside is not None:
            raise ParameterError("sample", sample.image_id, "none, or the image itself, where it is a sample")
        image, sample = load_pictures(image), image
    elif isinstance(image, list | tuple):
        if not image:
            raise ImageError("image: got an empty list; accepted: at least one image")
        image = [_photo(each) for each in image]
    elif isinstance(image, str | os.PathLike) and is_video(user_path(image, "image")):
        if beside is not None:
            raise ParameterError("sample", sample.image_id, "none, or the image itself, with a video file")
        sample = VideoFile(image)[0]
        image = load_pictures(sample)
    else:
        image = _photo(image)
    pictures = image if isinstance(image, list) else [image]
    kind = sample.kind if sample is not None else "images" if isinstance(image, list) else "image"
    if beside is not None:  # else the pictures are those of the sample, and checked
        sizes = [(known.width, known.height) for known in by_picture(beside)]
        if [picture.size for picture in pictures] != sizes:
            found = ", ".join(f"{width} x {height}" for width, height in sizes)
            accepted = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
            raise ParameterError("sample", f"pictures of {found}", f"those of the image, {accepted}")
        check_sizes(beside, pictures)
    return pictures, kind, sample


def _photo(image: Photo) -> PIL.Image.Image:
    """Return an image as RGB, from its file where it is one."""
    if isinstance(image, PIL.Image.Image):
        return as_rgb(image)
    if not isinstance(image, str | os.PathLike):
        raise ImageError(f"image: got {type(image).__name__}; accepted: a PIL image or a file")
    return read_image(image)


@dataclass(frozen=True)
class Place:
    """Say where a view stands in an input.

    Attributes
    ----------
    number : int
        Number among all views.
    picture : int
        Number of its photo or frame.
    image, inside : int
        Number of its `EncodedImage`, and its own among the views of that.
    n_before : int
        Tokens of the views before it.
    view : VisualView
        The view.
    """

    number: int
    picture: int
    image: int
    inside: int
    n_before: int
    view: VisualView


def places_of(images: Sequence[EncodedImage]) -> list[Place]:
    """List all views of an input in order."""
    places, n_before = [], 0
    for i, image in enumerate(images):
        for k, view in enumerate(image.views):
            places.append(Place(len(places), k if image.is_video else i, i, k, n_before, view))
            n_before += view.n_tokens
    return places


def size_limit(adapter: Adapter, config: ProbeConfig) -> Callable[[int, int], str]:
    """Return what says of a picture's width and height which limit they break: the processor's, or probing's own."""

    def limit(width: int, height: int) -> str:
        broken = adapter.size_limit(width, height)
        grid = None if broken else adapter.grid_of(width, height)
        if grid is not None and min(grid) < _smallest(config):
            return f"accepted: photos that make {_needed(config)}, not {grid[0]} x {grid[1]}"
        return broken

    return limit


def _smallest(config: ProbeConfig) -> int:
    return max(WINDOW_SIZE, config.n_side) if config.positions == "grid" else WINDOW_SIZE


def _needed(config: ProbeConfig) -> str:
    return f"at least {_smallest(config)} x {_smallest(config)} tokens"


def wanted_places(places: list[Place], config: ProbeConfig, name: str) -> list[Place]:
    """Choose the views that are probed; warn of those that are too small."""
    if config.views == "base":
        wanted = [place for place in places if place.view.kind == "image"]
        if not wanted:
            raise ParameterError("views", "base", "all, or frames by number, as a video has no reduced photo")
    elif config.views == "all":
        wanted = places
    else:
        wanted = [places[i] for i in sorted(check_positions("views", config.views, len(places)))]
    small = [place for place in wanted if min(place.view.grid) < _smallest(config)]
    if not small:
        return wanted
    sides = ", ".join(dict.fromkeys("{} x {}".format(*place.view.grid) for place in small))
    needed = _needed(config)
    if len(small) == len(wanted):
        raise ParameterError("image", f"{name}, grids of {sides} tokens", f"a grid of {needed}")
    warnings.warn(
        f"{name}: {len(small)} of {len(wanted)} views are not probed, with grids of {sides} tokens instead of {needed}",
        stacklevel=5,
    )
    return [place for place in wanted if place not in small]
