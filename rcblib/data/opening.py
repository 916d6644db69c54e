"""Open the dataset that a name or a folder stands for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rcblib.data.base import AnySample, Dataset, check_apart
from rcblib.data.coco import CocoDataset
from rcblib.data.layout import annotation_files, dataset_of
from rcblib.data.photos import PhotoFolder, PhotoGroup
from rcblib.data.plain import SAMPLE, SamplePhotos
from rcblib.data.samples import fitting, usable
from rcblib.data.skipped import record_skipped
from rcblib.data.video import N_FRAMES, VideoFile, is_video
from rcblib.records import ImageError, ImageId, ParameterError, Sample, SequenceSample
from rcblib.runs.paths import user_path

WORLD_GROUP = "rcblib.worlds"
"""Entry points by which a package offers datasets of its own: name to ``opener(split, n, *, seed, n_frames)``."""

OTHER_WORLD = "photographs"
"""World whose pictures stand for ``"auto"`` where a model was trained on none: photographs with known objects."""

PREFIXES = ("coco:", "group:", "video:")
"""What stands before a path that is to be read as one kind of dataset."""


def open_dataset(
    name_or_path: str | os.PathLike,
    split: str | None = None,
    n: int | None = None,
    *,
    seed: int = 0,
    n_frames: int = N_FRAMES,
    on_error: str = "stop",
) -> Dataset:
    """Open the dataset that a name or a folder stands for.

    Parameters
    ----------
    name_or_path : str or path
        A world's name (entry points of `WORLD_GROUP`), such as ``"scenes"`` of the drawn ones; ``"sample"``, a few
        photographs that are there without a download (`SamplePhotos`); ``"coco:<folder>"``;
        ``"group:<folder>"``, its photos as one group; ``"video:<path>"``, or the path alone of a film or of a
        picture that moves; a folder in COCO's format (it holds ``instances_*.json``, ``captions_*.json`` or the
        Karpathy file, in itself or in ``annotations/``), or one of these files, which says the split; any other
        folder: photos.
    split : str, optional
        As the dataset names it; ``"validation"`` for scenes if left out. Photos and video files have none, and it is
        passed over.
    n : int, optional
        At most this many samples, the first ones, or photos of a group; for scenes required.
    seed : int
        Stream of scenes; other datasets do not use it.
    n_frames : int
        Frames of every video; other datasets do not use it.
    on_error : {"stop", "skip"}
        Whether damaged or missing images stop all, or are left out, as `PhotoFolder` and `CocoDataset` say. A group or
        a video is one input, from which nothing is left out.

    Returns
    -------
    Dataset

    Raises
    ------
    ImageError
        If the folder is missing or empty, or an image or a video missing or damaged.
    ParameterError
        If the split is unknown, `n` is out of range or missing, or annotations are damaged.
    """
    name = os.fspath(name_or_path)
    worlds = entry_points(group=WORLD_GROUP)
    if name in worlds.names:
        return worlds[name].load()(split or "validation", n, seed=seed, n_frames=n_frames)
    if name == SAMPLE:
        return SamplePhotos(n)
    annotations = user_path(name.removeprefix("coco:"), "images")
    if annotations.suffix == ".json" and annotations.is_file():
        return CocoDataset(*dataset_of(annotations), n, on_error=on_error)
    if name.startswith("coco:"):
        return CocoDataset(annotations, split, n, on_error=on_error)
    if name.startswith("group:"):
        return PhotoGroup(name.removeprefix("group:"), n)
    video = _video_path(name)
    if video is not None:
        return VideoFile(video, n_frames)
    path = user_path(name, "images")
    if not name or not path.is_dir():
        named = [
            *sorted(map(repr, (*worlds.names, SAMPLE))),
            "'coco:<folder>'",
            "'group:<folder>'",
            "'video:<path>'",
        ]
        names = ", ".join(named)
        accepted = f"{names}, a folder of images or a video file"
        raise ImageError(f"images: got {name!r}, which is no folder; accepted: {accepted}")
    if any(annotation_files(path)):
        return CocoDataset(name, split, n, on_error=on_error)
    return PhotoFolder(name, n, on_error=on_error)


def open_noted(
    folder: Path,
    name_or_path: str | os.PathLike,
    split: str | None,
    n: int | None,
    *,
    seed: int,
    on_error: str,
) -> tuple[Sequence[AnySample], dict[ImageId, str]]:
    """Open a dataset as `open_dataset`; return its samples, and id or file name to the reason of those left out.

    A folder of results keeps in ``skipped/`` which were left out, and why. With ``"skip"`` every image is decoded once.
    What was noted of images that can be read now is taken away.

    Raises
    ------
    ImageError, ParameterError
        As `open_dataset`; also if the folder of results is that of the images.
    """
    check_apart(folder_of(name_or_path), folder)
    opened = open_dataset(name_or_path, split, n, seed=seed, on_error=on_error)
    samples, unread = (opened, {}) if on_error == "stop" else usable(opened)
    skipped = {**opened.skipped, **unread}
    record_skipped(folder, skipped, (sample.image_id for sample in samples))
    return samples, skipped


def fitting_noted(
    folder: Path,
    samples: Sequence[AnySample],
    skipped: Mapping[ImageId, str],
    limit: Callable[[int, int], str],
    on_error: str,
) -> tuple[Sequence[AnySample], dict[ImageId, str]]:
    """Leave out what breaks a limit too, of what `open_noted` returned, where images are to be skipped; note them."""
    if on_error == "stop":
        return samples, dict(skipped)
    left, refused = fitting(samples, limit)
    record_skipped(folder, refused)
    return left, {**skipped, **refused}


def folder_of(name_or_path: str | os.PathLike) -> Path | None:
    """Return the folder that `open_dataset` reads for a name; ``None`` where it reads a file, a world or nothing."""
    name = os.fspath(name_or_path)
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    path = user_path(name.removeprefix(prefix), "images")
    named = {*entry_points(group=WORLD_GROUP).names, SAMPLE}
    return path if name not in named and path.is_dir() else None


def _video_path(name: str) -> Path | None:
    """Return the video that a name stands for, where it does: by its prefix, or as a file that is one."""
    path = user_path(name.removeprefix("video:"), "images")
    return path if name.startswith("video:") or path.is_file() and is_video(path) else None


def open_images(
    name_or_path: str | os.PathLike, split: str | None = None, n: int | None = None
) -> list[Sample]:
    """Open a dataset of single images and list them; arguments and errors as in `open_dataset`.

    A video file is read as its frames, `n` of them evenly spaced (`N_FRAMES` without `n`), each an image by itself: so
    any model can be asked about them, also one that takes no videos.

    Raises
    ------
    ParameterError
        If the samples are groups of images, or generated videos.
    """
    return _open_single(name_or_path, split, n, "stop")[0]


def usable_images(
    name_or_path: str | os.PathLike,
    split: str | None = None,
    n: int | None = None,
    limit: Callable[[int, int], str] | None = None,
) -> tuple[list[Sample], dict[ImageId, str]]:
    """Open a dataset as `open_images`, decode every image once, and leave out those that cannot be used.

    Returns
    -------
    tuple
        The images that can be used, and id or file name to the reason of the others; `limit` as in
        `rcblib.data.samples.identified`, which raises and warns.
    """
    samples, skipped = _open_single(name_or_path, split, n, "skip")
    samples, unread = usable(samples, limit)
    return samples, {**skipped, **unread}


def _open_single(
    name_or_path: str | os.PathLike, split: str | None, n: int | None, on_error: str
) -> tuple[list[Sample], Mapping[str, str]]:
    """List the images of a dataset, and those that it left out."""
    video = _video_path(os.fspath(name_or_path))
    if video is not None:
        return VideoFile(video, N_FRAMES if n is None else n).frames(), {}
    dataset = open_dataset(name_or_path, split, n, on_error=on_error)
    samples = list(dataset)
    for sample in samples:
        if isinstance(sample, SequenceSample):
            what = "a video" if sample.kind == "video" else "several images in one prompt"
            raise ParameterError(
                "images",
                f"{name_or_path}: {what}",
                "single images: scenes, photos, or a folder in COCO's format",
            )
    return samples, dataset.skipped


def images_for(name: str, model: Any) -> str:
    """Return the name of a dataset; for ``"auto"`` that of the world that a model was trained on.

    Parameters
    ----------
    name : str
        As for `open_dataset`, or ``"auto"``.
    model : transformers.PreTrainedModel
        Embedded models name their world in ``config.rcb_world``; for others it is `OTHER_WORLD`.
    """
    return getattr(model.config, "rcb_world", OTHER_WORLD) if name == "auto" else name


def world_note(model: Any, samples: Iterable[AnySample]) -> str:
    """Say that samples lie outside the world that an embedded model was trained on.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Embedded models name their world in ``config.rcb_world``.
    samples : iterable of Sample or SequenceSample
        What it is to look at.

    Returns
    -------
    str
        One sentence; empty where the model is of no such world or every sample is from a world.
    """
    world = getattr(model.config, "rcb_world", None)
    drawn = entry_points(group=WORLD_GROUP).names
    sources = sorted({sample.source for sample in samples if sample.source.split("/")[0] not in drawn})
    if world is None or not sources:
        return ""
    return (
        f"Outside its world: this model was trained on nothing but {world}, so what it says about {', '.join(sources)} "
        "shows that the code runs, not what a model sees."
    )
