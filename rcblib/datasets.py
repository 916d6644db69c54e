"""Read images with what is known of them: scenes, COCO with the Karpathy split, or any folder of photos.

Every dataset is a sequence of `Sample`, or of `SequenceSample` where several images are asked about together: it has a
length, an index gives a sample, a slice a list, and iterating draws or reads one sample at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rcblib.geometry import check_integer, patch_overlaps
from rcblib.records import ImageError, ParameterError, Question, Sample, SceneObject, SequenceSample
from rcblib.runs import read_json
from rcblib.scenes.coco import export_coco, scene_object, scene_sample
from rcblib.scenes.generator import SPLITS, WORLDS, Scene, SceneConfig, generate_scene
from rcblib.scenes.groups import GROUP_KINDS, N_IMAGES, generate_group, group_questions
from rcblib.scenes.questions import TASKS, pope_questions, task_questions
from rcblib.scenes.video import FEWEST_FRAMES, VIDEO_KINDS, generate_video, video_questions

KARPATHY_FILE = "dataset_coco.json"
KARPATHY_SPLITS = ("train", "restval", "val", "test")
PHOTO_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
POPE_SUBSETS = ("random", "popular", "adversarial")
SAMPLE_SEED = 2503
"""Seed of the scenes that come with the project; no other scenes are drawn with it."""
SAMPLE_SIZES = {"validation": 48, "test": 24}
N_FRAMES = 16
"""Frames taken of a video by default, as the paper does."""

AnySample = TypeVar("AnySample", Sample, SequenceSample)


class Dataset(Sequence[AnySample], ABC, Generic[AnySample]):
    """Offer samples by index, in a fixed order; nothing is drawn, opened or decoded before it is asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _sample(self, index: int) -> AnySample:
        """Return the sample at an index from 0 to the length less one."""

    @overload
    def __getitem__(self, index: int) -> AnySample: ...

    @overload
    def __getitem__(self, index: slice) -> list[AnySample]: ...

    def __getitem__(self, index: int | slice) -> AnySample | list[AnySample]:
        if isinstance(index, slice):
            return [self._sample(i) for i in range(len(self))[index]]
        return self._sample(range(len(self))[index])


class SceneDataset(Dataset[Sample]):
    """Draw scenes of the embedded world, each when it is asked for.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"`` or ``"test"``; no handwriting or photograph is in two of them.
    n : int
        Scenes, at least 1.
    seed : int
        Stream of scenes. Splits are different streams even with the same seed.
    start : int
        Index of the first scene; image ids are ``start`` to ``start + n - 1``.
    config : SceneConfig, optional
        Size and density of the scenes.

    Raises
    ------
    ParameterError
        For an unknown split or a number out of range.
    """

    def __init__(
        self, split: str, n: int, *, seed: int = 0, start: int = 0, config: SceneConfig | None = None
    ):
        if split not in SPLITS:
            raise ParameterError("split", split, ", ".join(SPLITS))
        self.split = split
        self.n = check_integer("n", n, 1)
        self.seed = check_integer("seed", seed, 0)
        self.start = check_integer("start", start, 0)
        self.config = config or SceneConfig()

    def __len__(self) -> int:
        return self.n

    def _sample(self, index: int) -> Sample:
        where = (self.seed, self.start + index, self.split, self.config)
        return scene_sample(generate_scene(*where), partial(_draw, *where))


def _draw(seed: int, index: int, split: str, config: SceneConfig) -> Image.Image:
    """Draw the picture of a scene again, so that a sample need not hold it."""
    return Image.fromarray(generate_scene(seed, index, split, config).pixels)


class _DrawnSequences(Dataset[SequenceSample]):
    """Draw several scenes a sample; `kinds` lists what is asked about them."""

    kinds: tuple[str, ...]

    def __init__(self, split: str, n: int, seed: int, start: int):
        if split not in SPLITS:
            raise ParameterError("split", split, ", ".join(SPLITS))
        self.split = split
        self.n = check_integer("n", n, 1)
        self.seed = check_integer("seed", seed, 0)
        self.start = check_integer("start", start, 0)

    def __len__(self) -> int:
        return self.n

    @abstractmethod
    def _ask(self, index: int, rng: np.random.Generator) -> list[Question]:
        """Ask every kind of question about the sample at an index."""

    def questions(
        self, kinds: Sequence[str] | None = None, n_per_kind: int | None = None, seed: int = 0
    ) -> list[Question]:
        """Draw multiple-choice questions about these samples, the same number of each kind.

        Parameters
        ----------
        kinds : sequence of str, optional
            Some of the class's `kinds`; all by default.
        n_per_kind : int, optional
            Questions of a kind, drawn without replacement; ``None`` means all there are.
        seed : int
            Seed of the draw, of wrong options and of their order. What is asked about a sample does not depend on how
            many samples there are.

        Returns
        -------
        list of Question
            By kind, in a kind by sample.

        Raises
        ------
        ParameterError
            If a kind is unknown, or has fewer questions than asked for.
        """
        chosen = self.kinds if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
        unknown = [kind for kind in chosen if kind not in self.kinds]
        if unknown or not chosen:
            raise ParameterError("kinds", unknown or chosen, ", ".join(self.kinds))
        if n_per_kind is not None:
            check_integer("n_per_kind", n_per_kind, 1)
        check_integer("seed", seed, 0)
        by_kind: dict[str, list[Question]] = {kind: [] for kind in self.kinds}
        for i in range(len(self)):
            for question in self._ask(i, np.random.default_rng([seed, self.start + i])):
                by_kind[question.subset].append(question)
        asked: list[Question] = []
        for kind in chosen:
            found = by_kind[kind]
            if not found or len(found) < (n_per_kind or 0):
                accepted = f"at most {len(found)} for {kind} with these samples"
                raise ParameterError("n_per_kind", n_per_kind, accepted)
            rng = np.random.default_rng([seed, self.kinds.index(kind)])
            asked += [found[i] for i in np.sort(rng.permutation(len(found))[:n_per_kind])]
        return asked


class GroupDataset(_DrawnSequences):
    """Draw groups of two to four scenes, each when it is asked for.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"`` or ``"test"``; no handwriting or photograph is in two of them.
    n : int
        Groups, at least 1.
    seed : int
        Stream of groups, other scenes than those of a `SceneDataset` with this seed.
    start : int
        Index of the first group; image ids are ``start`` to ``start + n - 1``.
    n_images : int, optional
        2, 3 or 4 images in every group; drawn for each by default.

    Raises
    ------
    ParameterError
        For an unknown split or a number out of range.
    """

    kinds = GROUP_KINDS

    def __init__(self, split: str, n: int, *, seed: int = 0, start: int = 0, n_images: int | None = None):
        super().__init__(split, n, seed, start)
        if n_images is not None:
            check_integer("n_images", n_images, min(N_IMAGES), max(N_IMAGES))
        self.n_images = n_images

    def _sample(self, index: int) -> SequenceSample:
        where = (self.seed, self.start + index, self.split, self.n_images)
        return _drawn_sample("images", generate_group(*where).scenes, partial(_draw_group, *where))

    def _ask(self, index: int, rng: np.random.Generator) -> list[Question]:
        return group_questions(generate_group(self.seed, self.start + index, self.split, self.n_images), rng)


class VideoDataset(_DrawnSequences):
    """Draw videos of the embedded world, each when it is asked for.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"`` or ``"test"``; no handwriting or photograph is in two of them.
    n : int
        Videos, at least 1.
    n_frames : int
        Frames of every video, at least 4. What happens, and what is asked, does not depend on it.
    seed : int
        Stream of videos, other scenes than those of a `SceneDataset` with this seed.
    start : int
        Index of the first video; image ids are ``start`` to ``start + n - 1``.

    Raises
    ------
    ParameterError
        For an unknown split or a number out of range.
    """

    kinds = VIDEO_KINDS

    def __init__(self, split: str, n: int, n_frames: int = N_FRAMES, *, seed: int = 0, start: int = 0):
        super().__init__(split, n, seed, start)
        self.n_frames = check_integer("n_frames", n_frames, FEWEST_FRAMES)

    def _sample(self, index: int) -> SequenceSample:
        where = (self.seed, self.start + index, self.split, self.n_frames)
        return _drawn_sample("video", generate_video(*where).frames, partial(_draw_video, *where))

    def _ask(self, index: int, rng: np.random.Generator) -> list[Question]:
        return video_questions(generate_video(self.seed, self.start + index, self.split, FEWEST_FRAMES), rng)


def _draw_group(*where: Any) -> tuple[Image.Image, ...]:
    """Draw the pictures of a group again, so that a sample need not hold them."""
    return tuple(Image.fromarray(scene.pixels) for scene in generate_group(*where).scenes)


def _draw_video(*where: Any) -> tuple[Image.Image, ...]:
    """Draw the frames of a video again, so that a sample need not hold them."""
    return tuple(Image.fromarray(scene.pixels) for scene in generate_video(*where).frames)


def _drawn_sample(
    kind: str, scenes: Sequence[Scene], load: Callable[[], tuple[Image.Image, ...]]
) -> SequenceSample:
    first = scenes[0]
    source = "groups" if kind == "images" else "videos"
    return SequenceSample(
        image_id=first.index,
        load=load,
        kind=kind,
        sizes=tuple((scene.width, scene.height) for scene in scenes),
        objects=tuple(
            tuple(scene_object(item, scene.height, scene.width) for item in scene.objects) for scene in scenes
        ),
        source=f"{source}/{first.split}",
        file_name=f"{first.split}_{first.seed}_{first.index:06d}",
    )


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
        self.folder, self.paths, self._sizes = _open_photos(folder, n, _natural)

    def __len__(self) -> int:
        return 1

    def _sample(self, index: int) -> SequenceSample:
        load = partial(_read_images, self.paths)
        return SequenceSample(index, load, "images", self._sizes, source="photos", file_name=self.folder.name)


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
        self.path = Path(path).expanduser()
        check_integer("n_frames", n_frames, 1)
        if self.path.is_dir():
            paths = sorted(_photos_in(self.path), key=_natural)
            chosen = [paths[i] for i in _evenly_spaced(len(paths), n_frames)]
            self._sizes = tuple(_upright_size(frame) for frame in chosen)
            if len(set(self._sizes)) > 1:
                sizes = ", ".join(f"{width}x{height}" for width, height in sorted(set(self._sizes)))
                raise ImageError(f"video: the frames in {self.path.name!r} are of several sizes ({sizes})")
            self._load = partial(_read_images, chosen)
            return
        if not self.path.is_file():
            raise ImageError(
                f"video: {str(path)!r} does not exist; accepted: a video file or folder of frames"
            )
        is_picture = self.path.suffix.lower() in PHOTO_SUFFIXES
        if not is_picture and importlib.util.find_spec("av") is None:
            raise ImageError(f"video: {self.path.name!r} needs the package av: pip install 'rcblib[video]'")
        decode = _decode_animation if is_picture else _decode_film
        n_available, size = 0, (0, 0)
        with _readable(self.path, "video"):
            for n_available, frame in enumerate(decode(self.path), 1):
                size = frame().size if n_available == 1 else size
        if not n_available:
            raise ImageError(f"video: {self.path.name!r} has no frames")
        chosen = _evenly_spaced(n_available, n_frames)
        self._sizes = (size,) * len(chosen)
        self._load = partial(_read_frames, decode, self.path, chosen)

    def __len__(self) -> int:
        return 1

    def _sample(self, index: int) -> SequenceSample:
        return SequenceSample(
            index, self._load, "video", self._sizes, source="video", file_name=self.path.name
        )

    def frames(self) -> list[Sample]:
        """Return the frames that are taken as images, each for itself; they stay in memory once one was loaded."""
        load, n = cache(self._load), len(self._sizes)
        return [
            Sample(
                i,
                lambda i=i: load()[i],
                *size,
                source="video",
                file_name=f"{self.path.name}, frame {i + 1} of {n}",
            )
            for i, size in enumerate(self._sizes)
        ]


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
    with _readable(path), Image.open(path) as image:
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
def _readable(path: str | os.PathLike, what: str = "image") -> Iterator[None]:
    """Turn whatever goes wrong while an image or a video is read into an `ImageError` of one line."""
    try:
        yield
    except Exception as error:  # readers raise many kinds on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{what}: {Path(path).name!r} cannot be read ({reason})") from None


def _photos_in(folder: Path) -> list[Path]:
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
    checked, n = _existing_folder(folder), _check_limit(n)
    paths = sorted(_photos_in(checked), key=key)[:n]
    return checked, paths, tuple(_upright_size(path) for path in paths)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order file names as people do: numbers in them by their value."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts] + [(-1, path.name)]


def _evenly_spaced(n_available: int, n: int) -> list[int]:
    """Return `n` different positions from the first to the last of those available, or all if there are fewer."""
    return np.linspace(0, n_available - 1, min(n, n_available)).astype(int).tolist()


def _read_images(paths: Sequence[Path]) -> tuple[Image.Image, ...]:
    return tuple(read_image(path) for path in paths)


def _read_frames(
    decode: Callable[[Path], Iterator[Callable[[], Image.Image]]], path: Path, chosen: Sequence[int]
) -> tuple[Image.Image, ...]:
    """Decode a video again and keep the chosen frames."""
    wanted = set(chosen)
    with _readable(path, "video"):
        return tuple(frame() for i, frame in enumerate(decode(path)) if i in wanted)


def _decode_animation(path: Path) -> Iterator[Callable[[], Image.Image]]:
    """Decode the frames of a picture that moves; each is given as a function that returns it as RGB."""
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            yield partial(frame.convert, "RGB")


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


def _upright_size(path: Path) -> tuple[int, int]:
    """Decode a photo once to see that it is whole; return its `(width, height)` when upright."""
    with _readable(path), Image.open(path) as image:
        width, height = image.size
        is_turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        image.draft("RGB", (1, 1))  # a JPEG is read to its end but only its coarsest scale is computed
        image.load()
    return (height, width) if is_turned else (width, height)


def _existing_folder(folder: str | os.PathLike) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        state = "which is a file" if path.exists() else "which does not exist"
        raise ImageError(f"folder: got {str(folder)!r}, {state}; accepted: an existing folder of images")
    return path


def _check_limit(n: int | None) -> int | None:
    return None if n is None else check_integer("n", n, 1)


@dataclass(frozen=True)
class _Entry:
    """Say where an image of a COCO folder is and which annotation file, by its split, knows it."""

    image_id: int
    file_name: str
    annotated_in: str
    captions: tuple[str, ...]


class CocoDataset(Dataset[Sample]):
    """Read images, captions and masks in COCO's format: COCO itself, or the sample that comes with the project.

    The folder is laid out as COCO's archives unpack: ``annotations/instances_<split>.json`` and
    ``annotations/captions_<split>.json`` (one of them may be absent), images in ``<split>/``, ``images/<split>/``
    or ``images/``. With the Karpathy file ``dataset_coco.json`` beside them the splits ``train``, ``restval``,
    ``val`` and ``test`` are those of image captioning, in the file's order, with the captions it holds.

    Parameters
    ----------
    folder : path
        The folder.
    split : str, optional
        Name in the annotation files, such as ``"validation"`` or ``"val2017"``, or a Karpathy split where no
        annotation file has that name. May be left out where there is one annotated split only.
    n : int, optional
        Use the first `n` images in file order, or all if there are fewer.
    instances, captions, karpathy, images : path, optional
        Files, and the folder of images, that lie elsewhere. With `instances` or `captions` given, `split` is a label
        only.
    with_restval : bool
        Whether the Karpathy split ``train`` includes ``restval``, as most captioning work does; the authors' probing
        images come from ``train`` alone.
    with_objects : bool
        Whether to read instances: hundreds of megabytes of JSON for COCO's training images.

    Raises
    ------
    ImageError
        If the folder or an image of the first `n` is missing.
    ParameterError
        If an annotation file is missing or damaged, the split is unknown, an object has no mask, or `n` is below 1.

    Notes
    -----
    Objects are those of `iscrowd` 0 and 1 alike, in file order: a crowd's mask covers patches as any other. Where no
    instances exist `Sample.objects` is ``None``, which is not the same as an image without objects.
    Source: Lin et al. 2014; Karpathy and Fei-Fei 2015 for the split.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str | None = None,
        n: int | None = None,
        *,
        instances: str | os.PathLike | None = None,
        captions: str | os.PathLike | None = None,
        karpathy: str | os.PathLike | None = None,
        images: str | os.PathLike | None = None,
        with_restval: bool = False,
        with_objects: bool = True,
    ):
        self.folder = _existing_folder(folder)
        self._images = None if images is None else _existing_folder(images)
        n = _check_limit(n)
        if karpathy and (instances or captions):
            given = "karpathy together with instances or captions"
            raise ParameterError("files", given, "the Karpathy file, or annotation files of one split")
        files, found = _annotation_files(self.folder)
        if instances or captions:
            split = split or "custom"
            files = {split: {"instances": instances, "captions": captions}}
        elif split is None and len(files) == 1:
            (split,) = files
        self.split = split

        splits_file = karpathy or found
        by_karpathy = bool(splits_file) and split in KARPATHY_SPLITS and bool(karpathy or split not in files)
        if not by_karpathy and split not in files:
            known = [*sorted(files), *(f"{name} (Karpathy)" for name in KARPATHY_SPLITS if splits_file)]
            raise ParameterError("split", split, ", ".join(known) or "none: the folder holds no annotations")
        listed = _karpathy_entries(splits_file, split, with_restval)[:n] if by_karpathy else []
        names = sorted({entry.annotated_in for entry in listed}) if by_karpathy else [split]
        self._annotations = {
            name: _read_instances(files[name]["instances"])
            for name in names
            if with_objects and files.get(name, {}).get("instances")
        }
        self._entries = (
            listed if by_karpathy else _listed_entries(files[split], split, self._annotations.get(split))[:n]
        )
        if not self._entries:
            raise ParameterError("split", split, "a split with images")
        self._check_masks()
        self._paths = self._find_images()
        sources = {coco.dataset.get("info", {}).get("source") for coco in self._annotations.values()}
        self.source = f"{next(iter(sources)) or 'coco'}/{split}" if len(sources) == 1 else f"coco/{split}"

    def __len__(self) -> int:
        return len(self._entries)

    def _sample(self, index: int) -> Sample:
        entry, path = self._entries[index], self._paths[index]
        coco = self._annotations.get(entry.annotated_in)
        if coco:
            record = coco.imgs[entry.image_id]
            width, height = record["width"], record["height"]
            objects = tuple(
                _coco_object(coco, annotation) for annotation in coco.imgToAnns.get(entry.image_id, ())
            )
        else:
            with _readable(path), Image.open(path) as image:
                width, height = image.size
            objects = None
        return Sample(
            image_id=entry.image_id,
            load=partial(read_image, path, upright=False),
            width=width,
            height=height,
            captions=entry.captions,
            objects=objects,
            source=self.source,
            file_name=entry.file_name,
        )

    def _check_masks(self) -> None:
        """Raise where an image of this dataset has no record, or an object no mask or no known category."""
        for entry in self._entries:
            coco = self._annotations.get(entry.annotated_in)
            if coco is None:
                continue
            if entry.image_id not in coco.imgs:
                raise ParameterError("instances", f"no image {entry.image_id}", "the file of these images")
            for annotation in coco.imgToAnns.get(entry.image_id, ()):
                name = f"object {annotation['id']}"
                if not annotation.get("segmentation"):
                    raise ParameterError("instances", f"{name} without segmentation", "polygons or RLE")
                if annotation.get("category_id") not in coco.cats:
                    raise ParameterError("instances", f"{name} of no category", "a listed category_id")

    def _find_images(self) -> list[Path]:
        """Return the path of every image, or raise with the number of those that are missing."""
        paths, missing = [], []
        for entry in self._entries:
            name, root = entry.annotated_in, self.folder
            folders = (
                [self._images, self._images / name]
                if self._images
                else [root / "images" / name, root / name, root / "images", root]
            )
            candidates = [folder / entry.file_name for folder in folders]
            found = next((path for path in candidates if path.is_file()), None)
            (paths if found else missing).append(found or candidates[0])
        if missing:
            accepted = f"images in {name}/, images/{name}/ or images/ of the folder, or in `images`"
            raise ImageError(
                f"images: {len(missing)} of {len(self._entries)} are missing, first "
                f"{missing[0].name!r}; accepted: {accepted}"
            )
        return paths


def _annotation_files(folder: Path) -> tuple[dict[str, dict[str, str | os.PathLike | None]], Path | None]:
    """Return the annotation files, by split and kind, and the Karpathy file where there is one."""
    files: dict[str, dict[str, str | os.PathLike | None]] = {}
    places = (folder / "annotations", folder)
    for place in places:
        for kind in ("instances", "captions"):
            for path in sorted(place.glob(f"{kind}_*.json")):
                files.setdefault(path.stem.removeprefix(f"{kind}_"), {}).setdefault(kind, path)
    candidates = (place / KARPATHY_FILE for place in places)
    return files, next((path for path in candidates if path.is_file()), None)


def _read_records(path: str | os.PathLike, parameter: str, keys: Sequence[str]) -> dict[str, Any]:
    """Read a JSON file that has a list under each of the keys."""
    name = Path(path).name
    if not Path(path).is_file():
        raise ParameterError(parameter, name, "an existing JSON file")
    data = read_json(path)
    if not isinstance(data, dict) or any(not isinstance(data.get(key), list) for key in keys):
        raise ParameterError(parameter, name, f"a JSON file with lists of {', '.join(keys)}")
    return data


def _read_instances(path: str | os.PathLike) -> COCO:
    """Index an annotation file with pycocotools, which would print what it does."""
    coco = COCO()
    coco.dataset = _read_records(path, "instances", ("images", "annotations", "categories"))
    with _complete("instances", path), contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


@contextlib.contextmanager
def _complete(parameter: str, path: str | os.PathLike) -> Iterator[None]:
    """Turn a missing field of a record into an error that names the file."""
    try:
        yield
    except KeyError as error:
        given = f"{Path(path).name} with a record without {error}"
        raise ParameterError(parameter, given, "records with all fields") from None


def _listed_entries(
    files: dict[str, str | os.PathLike | None], split: str, annotated: COCO | None
) -> list[_Entry]:
    """List the images of one annotated split in file order, with their captions."""
    by_image: dict[int, list[str]] = {}
    records = annotated.dataset["images"] if annotated else None
    if files.get("captions"):
        read = _read_records(files["captions"], "captions", ("images", "annotations"))
        records = records or read["images"]
        with _complete("captions", files["captions"]):
            for annotation in read["annotations"]:
                by_image.setdefault(annotation["image_id"], []).append(_one_line(annotation["caption"]))
    if records is None:
        records = _read_records(files["instances"], "instances", ("images",))["images"]
    with _complete("annotations", files.get("instances") or files["captions"]):
        return [
            _Entry(record["id"], record["file_name"], split, tuple(by_image.get(record["id"], ())))
            for record in records
        ]


def _karpathy_entries(path: str | os.PathLike, split: str, with_restval: bool) -> list[_Entry]:
    """List the images of a Karpathy split in the order of the file."""
    chosen = {split, "restval"} if with_restval and split == "train" else {split}
    records = _read_records(path, "karpathy", ("images",))["images"]
    with _complete("karpathy", path):
        return [
            _Entry(
                record["cocoid"],
                record["filename"],
                record["filepath"],
                tuple(_one_line(sentence["raw"]) for sentence in record["sentences"]),
            )
            for record in records
            if record["split"] in chosen
        ]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _coco_object(coco: COCO, annotation: dict[str, Any]) -> SceneObject:
    """Describe an instance, whichever way its mask is written: polygons, run lengths, compressed or not."""
    record = coco.imgs[annotation["image_id"]]
    rle = coco.annToRLE(annotation)
    if list(rle["size"]) != [record["height"], record["width"]]:
        size = f"a mask of {tuple(rle['size'])} for object {annotation['id']}"
        raise ParameterError("instances", size, f"{(record['height'], record['width'])}, the image's size")
    counts = rle["counts"]
    rle = {"size": list(rle["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return SceneObject(
        category=coco.cats[annotation["category_id"]]["name"],
        box=tuple(float(v) for v in annotation.get("bbox") or coco_mask.toBbox(rle)),
        rle=rle,
        area=float(annotation.get("area") or coco_mask.area(rle)),
        color=annotation.get("color"),
    )


def open_dataset(
    name_or_path: str | os.PathLike,
    split: str | None = None,
    n: int | None = None,
    *,
    seed: int = 0,
    n_frames: int = N_FRAMES,
) -> Dataset:
    """Open the dataset that a name or a folder stands for.

    Parameters
    ----------
    name_or_path : str or path
        ``"scenes"``, ``"large-scenes"``, ``"groups"`` or ``"videos"`` of the embedded world; ``"coco:<folder>"``;
        ``"group:<folder>"``, its photos as one group; ``"video:<path>"``, or a path alone that ends in one of
        `VIDEO_SUFFIXES`; a folder in COCO's format (it holds ``instances_*.json``, ``captions_*.json`` or the Karpathy
        file, in itself or in ``annotations/``); or any other folder: photos.
    split : str, optional
        As the dataset names it; ``"validation"`` for scenes if left out. Photos and video files have none, and it is
        passed over.
    n : int, optional
        At most this many samples, the first ones, or photos of a group; for scenes required.
    seed : int
        Stream of scenes; other datasets do not use it.
    n_frames : int
        Frames of every video; other datasets do not use it.

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
    if name in WORLDS:
        return SceneDataset(split or "validation", n, seed=seed, config=WORLDS[name])
    if name == "groups":
        return GroupDataset(split or "validation", n, seed=seed)
    if name == "videos":
        return VideoDataset(split or "validation", n, n_frames, seed=seed)
    if name.startswith("coco:"):
        return CocoDataset(name.removeprefix("coco:"), split, n)
    if name.startswith("group:"):
        return PhotoGroup(name.removeprefix("group:"), n)
    video = _video_path(name)
    if video is not None:
        return VideoFile(video, n_frames)
    path = Path(name).expanduser()
    if not path.is_dir():
        worlds = ", ".join(map(repr, WORLDS))
        names = f"{worlds}, 'groups', 'videos', 'coco:<folder>', 'group:<folder>', 'video:<path>'"
        accepted = f"{names}, a folder of images or a video file"
        raise ImageError(f"images: got {name!r}, which is no folder; accepted: {accepted}")
    is_coco = any(_annotation_files(path))
    return CocoDataset(name, split, n) if is_coco else PhotoFolder(name, n)


def _video_path(name: str) -> Path | None:
    """Return the video that a name stands for, where it does: by its prefix, or by the suffix of a file."""
    path = Path(name.removeprefix("video:")).expanduser()
    is_video = name.startswith("video:") or path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
    return path if is_video else None


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
    video = _video_path(os.fspath(name_or_path))
    if video is not None:
        return VideoFile(video, N_FRAMES if n is None else n).frames()
    samples = list(open_dataset(name_or_path, split, n))
    for sample in samples:
        if isinstance(sample, SequenceSample):
            what = "a video" if sample.kind == "video" else "several images in one prompt"
            raise ParameterError(
                "images",
                f"{name_or_path}: {what}",
                "single images: scenes, photos, or a folder in COCO's format",
            )
    return samples


def images_for(name: str, model: Any) -> str:
    """Return the name of a dataset; for ``"auto"`` that of the world that a model was trained on.

    Parameters
    ----------
    name : str
        As for `open_dataset`, or ``"auto"``.
    model : transformers.PreTrainedModel
        Embedded models name their world in ``config.rcb_world``; for others it is ``"scenes"``.
    """
    return getattr(model.config, "rcb_world", "scenes") if name == "auto" else name


def questions_for(
    samples: Iterable[Sample],
    tasks: Sequence[str] | None = None,
    n_per_task: int | None = None,
    seed: int = 0,
) -> list[Question]:
    """Draw evaluation questions about samples, the same number for each family.

    Parameters
    ----------
    samples : iterable of Sample
        Images with annotated objects. POPE's frequencies and co-occurrences are counted over all of them.
    tasks : sequence of str, optional
        Families, of `rcblib.scenes.questions.TASKS`; by default every family that these samples have questions of:
        colours are known of scenes only.
    n_per_task : int, optional
        Questions a family, drawn without replacement; ``None`` means all there are, and for ``yes_no`` 6 an image. For
        ``yes_no`` it is rounded up to a multiple of 6: the three samplings ask about the same images, each as often
        for a present category ("yes") as for an absent one ("no").
    seed : int
        Seed of the draw. A family's questions do not depend on which other families are asked.

    Returns
    -------
    list of Question
        By family in the order of `tasks`, in a family by image in the order of `samples`.

    Raises
    ------
    ParameterError
        If a family is unknown, there is no sample, one has no annotation or is several images or a video, an image id
        repeats, or a family has fewer questions than asked for.

    Notes
    -----
    Source: Li et al. 2023 for yes/no questions.
    """
    asked = TASKS if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)
    unknown = [task for task in asked if task not in TASKS]
    if unknown or not asked:
        raise ParameterError("tasks", unknown or asked, ", ".join(TASKS))
    if n_per_task is not None:
        check_integer("n_per_task", n_per_task, 1)
    check_integer("seed", seed, 0)
    samples = list(samples)
    if not samples:
        raise ParameterError("samples", "none", "at least one sample")
    bare = [sample.image_id for sample in samples if sample.objects is None]
    if bare:
        raise ParameterError(
            "samples", f"image {bare[0]} without annotation", "samples with annotated objects"
        )
    if any(sample.kind != "image" for sample in samples):
        raise ParameterError(
            "samples", "several images, or a video", "single images; see GroupDataset.questions"
        )
    if len({sample.image_id for sample in samples}) < len(samples):
        raise ParameterError("samples", "an image id more than once", "distinct image ids")

    chosen: list[Question] = []
    for task in asked:
        rng = np.random.default_rng([seed, TASKS.index(task)])
        draw = _yes_no if task == "yes_no" else partial(_one_answer, task=task)
        found, n_available = draw(samples, n_per_task, rng)
        if not n_available and tasks is None:
            continue
        if not n_available:
            raise ParameterError("tasks", task, "families that these samples have questions of")
        if n_per_task is not None and n_available < n_per_task:
            accepted = f"at most {n_available} for {task} with these samples"
            raise ParameterError("n_per_task", n_per_task, accepted)
        chosen += found
    return chosen


def _one_answer(
    samples: Sequence[Sample], n: int | None, rng: np.random.Generator, task: str
) -> tuple[list[Question], int]:
    """Draw up to `n` questions of a family with one right answer; return them and how many there are."""
    found: list[Question] = []
    for sample in samples:
        # A caption is scored by the objects it names, so an image without any is not asked for one.
        caption = sample.captions[0] if sample.captions and sample.objects else None
        found += task_questions(sample.image_id, sample.objects, sample.width, sample.height, caption, task)
    drawn = np.sort(rng.permutation(len(found))[:n])
    return [found[i] for i in drawn], len(found)


def _yes_no(samples: Sequence[Sample], n: int | None, rng: np.random.Generator) -> tuple[list[Question], int]:
    """Draw pairs of a present and an absent category, of the same images in all three samplings."""
    per_pair = 2 * len(POPE_SUBSETS)
    images = [(sample.image_id, sorted({item.category for item in sample.objects})) for sample in samples]
    n_names = len({name for _, names in images for name in names})
    most = [min(len(names), n_names - len(names)) for _, names in images]  # pairs that an image has
    n_pairs = sum(min(1, m) for m in most) if n is None else -(-n // per_pair)
    per_image = 1
    while sum(min(per_image, m) for m in most) < n_pairs and per_image < max(most):
        per_image += 1
    found = pope_questions(images, rng, per_image)
    answers: dict[tuple[int, str, str], list[Question]] = {}
    for question in found:
        answers.setdefault((question.image_id, question.subset, question.answer), []).append(question)
    pairs = [
        (image_id, i)
        for (image_id, subset, answer), questions in answers.items()
        if (subset, answer) == ("random", "yes")
        for i in range(len(questions))
    ]
    drawn = [pairs[i] for i in np.sort(rng.permutation(len(pairs))[:n_pairs])]
    asked = [
        answers[image_id, subset, answer][i]
        for image_id, i in drawn
        for subset in POPE_SUBSETS
        for answer in ("yes", "no")
    ]
    return asked, len(pairs) * per_pair


def visible_box(width: int, height: int, size: int | None = None) -> tuple[float, float, float, float]:
    """Return the region that CLIP's processor keeps: shorter side resized, centre cropped.

    Parameters
    ----------
    width, height : int
        Size of the image in pixels.
    size : int, optional
        Side of what the encoder sees in pixels (336 for LLaVA-1.5). With it the processor's rounding to whole
        resized pixels is followed; without it the region is the central square.

    Returns
    -------
    tuple of float
        ``(left, top, right, bottom)`` in pixels of the image.

    Raises
    ------
    ParameterError
        If a number is below 1.
    """
    check_integer("width", width, 1)
    check_integer("height", height, 1)
    short, long = min(width, height), max(width, height)
    if size is None:
        start, stop = (long - short) / 2, (long + short) / 2
    else:
        resized = check_integer("size", size, 1) * long // short
        first = (resized - size) // 2
        start, stop = first * long / resized, (first + size) * long / resized
    return (start, 0.0, stop, float(height)) if width > height else (0.0, start, float(width), stop)


@dataclass(frozen=True)
class Coverage:
    """Hold what lies under each patch.

    Attributes
    ----------
    share : torch.Tensor
        ``(n_patches,)`` float32, the fraction in [0, 1] that objects cover, all together; higher = more covered.
    category : tuple of (str or None)
        ``(n_patches,)`` the category that covers most of the patch, the first listed where two cover the same; ``None``
        where no object reaches.
    """

    share: torch.Tensor
    category: tuple[str | None, ...]


def object_coverage(
    sample: Sample, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> Coverage:
    """Compute what share of every patch objects cover, and which category covers most of it.

    Parameters
    ----------
    sample : Sample
        An image with annotated objects.
    height, width : int
        Grid size in tokens.
    box : tuple of float, optional
        ``(left, top, right, bottom)`` in pixels of the image: the region that the grid covers. By default
        `visible_box` of the image, its central square; for a square image that is all of it. It may reach beyond the
        image, as a grid does that covers padding, where no object is.

    Returns
    -------
    Coverage
        In raster order. Exact for any size: a pixel that two patches share counts in both by its share.

    Raises
    ------
    ParameterError
        If the sample has no annotation, the grid is empty, or the box is empty or misses the image.
    """
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    if sample.objects is None:
        raise ParameterError(
            "sample", f"image {sample.image_id} without annotation", "a sample with annotated objects"
        )
    left, top, right, bottom = visible_box(sample.width, sample.height) if box is None else box
    is_part = left < right and left < sample.width and right > 0
    if not (is_part and top < bottom and top < sample.height and bottom > 0):
        accepted = f"a region, part of it inside (0, 0, {sample.width}, {sample.height})"
        raise ParameterError("box", box, accepted)
    rows = patch_overlaps(sample.height, height, top, bottom)
    columns = patch_overlaps(sample.width, width, left, right)

    masks: dict[str, list[dict[str, Any]]] = {}
    for item in sample.objects:
        masks.setdefault(item.category, []).append(dict(item.rle))

    def shares(rles: list[dict[str, Any]]) -> np.ndarray:
        union = coco_mask.decode(coco_mask.merge(rles))
        return (rows @ union @ columns.T).reshape(-1).clip(0, 1)

    if not masks:
        return Coverage(torch.zeros(height * width), (None,) * (height * width))
    together = shares([rle for rles in masks.values() for rle in rles])
    by_category = np.stack([shares(rles) for rles in masks.values()])
    names = list(masks)
    best = by_category.argmax(0)
    category = tuple(names[i] if by_category[i, j] > 0 else None for j, i in enumerate(best))
    return Coverage(torch.from_numpy(together).float(), category)


def write_sample(folder: str | os.PathLike) -> None:
    """Write the scenes that come with the project, in COCO's format, as `data/README.md` describes them.

    The same pixels and annotations every time; the bytes of the PNG files may differ between versions of Pillow.

    Parameters
    ----------
    folder : path
        Made where it is missing; files of the same names are replaced.
    """
    for split, n in SAMPLE_SIZES.items():
        export_coco((generate_scene(SAMPLE_SEED, i, split) for i in range(n)), folder, split)
