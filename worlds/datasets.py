"""Offer the drawn scenes, groups and videos as datasets."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from rcblib.data.base import Dataset, SampleT
from rcblib.data.video import N_FRAMES
from rcblib.records import ParameterError, Question, Sample, SequenceSample
from rcblib.tensors.checks import check_integer
from worlds.scenes.coco import export_coco, scene_object, scene_sample
from worlds.scenes.generator import SPLITS, WORLDS, Scene, SceneConfig, generate_scene
from worlds.scenes.groups import GROUP_KINDS, N_IMAGES, generate_group, group_questions
from worlds.scenes.video import FEWEST_FRAMES, VIDEO_KINDS, generate_video, video_questions

SAMPLE_SEED = 2503
"""Seed of the scenes that come with the project; no other scenes are drawn with it."""

SAMPLE_SIZES = {"validation": 48, "test": 24}


class _Drawn(Dataset[SampleT]):
    """Draw what the embedded world shows, each sample when it is asked for.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"`` or ``"test"``; no handwriting or photograph is in two of them.
    n : int
        Samples, at least 1.
    seed : int
        Stream of samples. Splits are different streams even with the same seed, and so are scenes, groups and videos.
    start : int
        Index of the first sample; image ids are ``start`` to ``start + n - 1``.

    Raises
    ------
    ParameterError
        For an unknown split or a number out of range.
    """

    def __init__(self, split: str, n: int, seed: int, start: int):
        if split not in SPLITS:
            raise ParameterError("split", split, ", ".join(SPLITS))
        self.split = split
        self.n = check_integer("n", n, 1)
        self.seed = check_integer("seed", seed, 0)
        self.start = check_integer("start", start, 0)

    def __len__(self) -> int:
        return self.n


class SceneDataset(_Drawn[Sample]):
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
        super().__init__(split, n, seed, start)
        self.config = config or SceneConfig()

    def _sample(self, index: int) -> Sample:
        where = (self.seed, self.start + index, self.split, self.config)
        draw = partial(_draw, *where)
        return scene_sample(generate_scene(*where), draw, draw)


def _draw(seed: int, index: int, split: str, config: SceneConfig, without: int | None = None) -> Image.Image:
    """Draw the picture of a scene again, so that a sample need not hold it, or without one of its objects."""
    return Image.fromarray(generate_scene(seed, index, split, config, without).pixels)


class _DrawnSequences(_Drawn[SequenceSample]):
    """Draw several scenes a sample; `kinds` lists what is asked about them."""

    kinds: tuple[str, ...]

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
    split, n, seed, start
        As for a `SceneDataset`; the scenes are others than its with the same seed.
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
    split, n, seed, start
        As for a `SceneDataset`; the scenes are others than its with the same seed.
    n_frames : int
        Frames of every video, at least 4. What happens, and what is asked, does not depend on it.

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


def open_scenes(split: str, n: int, *, seed: int, n_frames: int) -> SceneDataset:
    """Open the scenes of 96 x 96 px for `rcblib.data.opening.open_dataset`."""
    return SceneDataset(split, n, seed=seed, config=WORLDS["scenes"])


def open_large_scenes(split: str, n: int, *, seed: int, n_frames: int) -> SceneDataset:
    """Open the larger scenes for `rcblib.data.opening.open_dataset`."""
    return SceneDataset(split, n, seed=seed, config=WORLDS["large-scenes"])


def open_groups(split: str, n: int, *, seed: int, n_frames: int) -> GroupDataset:
    """Open groups of scenes for `rcblib.data.opening.open_dataset`."""
    return GroupDataset(split, n, seed=seed)


def open_videos(split: str, n: int, *, seed: int, n_frames: int) -> VideoDataset:
    """Open drawn videos for `rcblib.data.opening.open_dataset`."""
    return VideoDataset(split, n, n_frames, seed=seed)
