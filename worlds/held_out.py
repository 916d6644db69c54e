"""Score a model of the embedded world on held-out scenes, groups and videos.

Every score is taken with the pictures that a question is about and with shuffled ones; multiple-choice questions also
have baselines that see no picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from rcblib.data.choices import read_options
from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate
from rcblib.evaluate.metrics import caption_table
from rcblib.reading.statistics import mean_interval, paired_ratio
from rcblib.records import ParameterError, Question, Sample, SequenceSample
from rcblib.tensors.checks import check_integer
from worlds.coco import encode_mask
from worlds.datasets import GroupDataset, SceneDataset, VideoDataset
from worlds.scenes.generator import WORLDS
from worlds.scenes.vocabulary import CATEGORIES

TASKS = ("one_word", "color", "yes_no", "digit", "count", "position", "caption")

SEQUENCES = {"multi_image": GroupDataset, "video": VideoDataset}
"""By task what the multiple-choice questions are about, in families that read it."""

SPLITS = ("validation", "test")

GOALS = {
    "llava": {
        "one_word": (0.90, 0.90),
        "color": (0.90, 0.90),
        "yes_no": (0.95, 0.90),
        "digit": (0.85, 0.80),
        "caption": (0.85, 0.80),
    },
    "llava_next": {"one_word": (0.90, 0.85)},
    "llava_onevision": {"one_word": (0.85, 0.80), "multi_image": (0.80, 0.65), "video": (0.80, 0.60)},
    "photographs": {
        "one_word": (0.80, 0.70),
        "yes_no": (0.85, 0.75),
        "caption": (0.60, 0.50),
        "larger": (0.75, 0.65),
        "left": (0.75, 0.65),
    },
}
"""By family, or for photographs, and task: the score to reach, and what suffices for a model trained without a GPU."""

FEWEST_OFFERS = 10
"""Times that an option was offered before the share of times it was right counts."""

AnySample = TypeVar("AnySample", Sample, SequenceSample)


def shuffle_images(samples: Sequence[AnySample], generator: np.random.Generator) -> list[AnySample]:
    """Give every sample the pictures of another one: questions about it then ask about wrong images.

    Parameters
    ----------
    samples : sequence of Sample or SequenceSample
        At least two of every number of pictures that occurs; a sample gets as many as it had.
    generator : numpy.random.Generator
        Draws the cycle along which pictures move, so that none stays.

    Returns
    -------
    list of Sample or SequenceSample
        In the order given.

    Raises
    ------
    ParameterError
        If a sample has no other with as many pictures.
    """
    if len(samples) < 2:
        raise ParameterError("n_images", len(samples), "at least 2, to swap their pictures")
    shuffled = list(samples)
    for n_pictures in sorted({sample.n_images for sample in samples}):
        places = [i for i, sample in enumerate(samples) if sample.n_images == n_pictures]
        if len(places) < 2:
            given = f"{len(samples)}, of which one has {n_pictures} pictures"
            raise ParameterError("n_images", given, "enough that another has as many, to swap them")
        cycle = generator.permutation(len(places))
        for here, there in zip(cycle, np.roll(cycle, 1), strict=True):
            place, shown = places[here], samples[places[there]]
            shuffled[place] = _shown_as(samples[place], shown)
    return shuffled


def _shown_as(sample: AnySample, shown: AnySample) -> AnySample:
    """Give a sample the pictures of another; where those have another size, its own objects cover nothing of them."""
    if isinstance(shown, SequenceSample):
        objects = sample.objects and tuple(map(_nowhere, sample.objects, shown.sizes))
        return replace(sample, load=shown.load, sizes=shown.sizes, objects=objects)
    size = (shown.width, shown.height)
    objects = sample.objects and _nowhere(sample.objects, size)
    return replace(sample, load=shown.load, width=size[0], height=size[1], objects=objects)


def _nowhere(objects: Sequence[Any], size: tuple[int, int]) -> tuple[Any, ...]:
    """Return objects whose masks are of another width and height with masks of that size which cover no pixel."""
    width, height = size
    empty = encode_mask(np.zeros((height, width)))
    return tuple(
        item if tuple(item.rle.get("size", empty["size"])) == (height, width) else replace(item, rle=empty)
        for item in objects
    )


def quality_scores(
    answers: pd.DataFrame, samples: Sequence[Sample], generator: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Reduce answers to one score a task, with intervals from a bootstrap over images.

    Parameters
    ----------
    answers : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate`.
    samples : sequence of Sample
        The images with their objects; needed for captions.
    generator : numpy.random.Generator
        Source of the bootstrap.

    Returns
    -------
    dict
        Task, and ``yes_no/<POPE subset>`` and ``multi_image/<kind>`` and ``video/<kind>``, to value, n, interval,
        n_clusters (images) and level. Values in [0, 1]: the share of right answers; for ``caption`` the F1 of the
        objects that captions name, pooled over all captions, colours not counted. Tasks that no question asks are
        left out.
    """
    scores = {}
    for task in (*TASKS, *SEQUENCES):
        rows = answers[answers["task"] == task]
        if rows.empty:
            continue
        if task == "caption":
            objects = {sample.image_id: {item.category for item in sample.objects} for sample in samples}
            present = [objects[image_id] for image_id in rows["image_id"]]
            table = caption_table(rows["prediction"].tolist(), present, CATEGORIES)
            estimate = paired_ratio(
                2.0 * table["n_correct"],
                table["n_named"] + table["n_present"],
                rows["image_id"].to_numpy(),
                generator=generator,
            )
        else:
            estimate = mean_interval(rows["score"], rows["image_id"].to_numpy(), generator=generator)
        scores[task] = estimate.as_result()
        if task == "yes_no" or task in SEQUENCES:
            for subset, group in rows.groupby("subset", sort=False):
                estimate = mean_interval(group["score"], group["image_id"].to_numpy(), generator=generator)
                scores[f"{task}/{subset}"] = estimate.as_result()
    return scores


def answer_held_out(
    model: Any,
    processor: Any,
    split: str,
    n_images: int,
    seed: int,
    shuffled: bool = False,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[pd.DataFrame, list[Sample]]:
    """Ask held-out scenes every question of every task.

    A model of a family that reads several images and videos is asked about groups of scenes and about videos too.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    split : str
        ``"validation"`` or ``"test"``; their handwriting and photographs are not those of training scenes.
    n_images : int
        Scenes, at least 2; also groups and videos, of which there must be so many that each kind of question occurs and
        no group is alone in its number of images.
    seed : int
        Seed of the scenes and of the questions.
    shuffled : bool
        Whether every question is asked about another scene's picture, another group's as many pictures, or another
        video. What a model scores then, it scores without seeing the image.
    batch_size : int
        Questions answered together.
    progress : bool
        Whether to print how far it is.

    Returns
    -------
    answers : pandas.DataFrame
        From `rcblib.evaluate`; where shuffled, answers are about another scene than ``image_id`` says. For
        the tasks ``multi_image`` and ``video`` it is the id of a group or video, not of a scene.
    samples : list of Sample
        The scenes that the other questions are about.

    Raises
    ------
    ParameterError
        If the split is another one, or a number is out of range.
    """
    if split not in SPLITS:
        raise ParameterError("split", split, ", ".join(SPLITS))
    n_images = check_integer("n_images", n_images, 2)
    samples = list(SceneDataset(split, n_images, seed=seed, config=WORLDS[model.config.rcb_world]))
    asked = [(samples, questions_for(samples, TASKS, seed=seed), [seed, 1])]
    for i, task in enumerate(sequence_tasks(model.config.model_type)):
        sequences = SEQUENCES[task](split, n_images, seed=seed)
        asked.append((list(sequences), sequences.questions(seed=seed), [seed, 1, i]))
    # Shuffled in any case, so that too few end the run with true pictures too, before it begins.
    wrong = [shuffle_images(shown, np.random.default_rng(key)) for shown, _, key in asked]
    frames = [
        evaluate(
            model,
            processor,
            questions,
            others if shuffled else shown,
            batch_size=batch_size,
            categories=CATEGORIES,
            progress=progress,
        )
        for (shown, questions, _), others in zip(asked, wrong, strict=True)
    ]
    return pd.concat(frames, ignore_index=True), samples


def score_model(
    model: Any, processor: Any, split: str, n_images: int, seed: int, **options: Any
) -> dict[str, dict[str, Any]]:
    """Ask held-out scenes every question of every task and score the answers.

    Parameters
    ----------
    model, processor, split, n_images, seed, **options
        As in `answer_held_out`, which also says what is raised.

    Returns
    -------
    dict
        As `quality_scores`.
    """
    answers, samples = answer_held_out(model, processor, split, n_images, seed, **options)
    return quality_scores(answers, samples, np.random.default_rng([seed, 2]))


def sequence_tasks(family: str) -> list[str]:
    """List the tasks about several images and videos that a family is asked."""
    return [task for task in SEQUENCES if task in GOALS.get(family, {})]


def blind_scores(family: str, split: str, n_images: int, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Score answers to held-out multiple-choice questions that are given without any picture.

    Parameters
    ----------
    family, split, n_images, seed
        As in `answer_held_out`; the questions are those asked there.

    Returns
    -------
    dict
        ``chance``, ``letter`` and ``text`` to scores by task and kind, as `quality_scores`: the share that a random
        option gets right; that of the letter which is most often right in as many training questions; and that of
        `likeliest_options`. Empty for a family that is asked about single images only.
    """
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for task in sequence_tasks(family):
        training = SEQUENCES[task]("train", n_images, seed=seed).questions(seed=seed)
        asked = SEQUENCES[task](split, n_images, seed=seed).questions(seed=seed)
        letter = Counter(question.answer for question in training).most_common(1)[0][0]
        likeliest = likeliest_options(training, asked)
        right = {
            "chance": [1 / len(read_options(question.text)) for question in asked],
            "letter": [float(question.answer == letter) for question in asked],
            "text": [float(q.answer == said) for q, said in zip(asked, likeliest, strict=True)],
        }
        columns = [(question.image_id, question.task, question.subset) for question in asked]
        frame = pd.DataFrame(columns, columns=["image_id", "task", "subset"])
        for name, values in right.items():
            found = quality_scores(frame.assign(score=values), [], np.random.default_rng([seed, 3]))
            scores.setdefault(name, {}).update(found)
    return scores


def likeliest_options(training: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """Answer multiple-choice questions by what was most often right among other questions, without any picture.

    Parameters
    ----------
    training, asked : sequence of Question
        Questions to learn from and to answer, in the form of `rcblib.data.choices`.

    Returns
    -------
    list of str
        For each question the letter of the option that was right in the largest share of the training questions that
        offered it: questions in the same words if there are enough (`FEWEST_OFFERS`), else of the same kind, else a
        guess counts as right as often as chance. The first of equal ones.
    """
    offered: Counter[tuple[str, str, str]] = Counter()
    right: Counter[tuple[str, str, str]] = Counter()
    for question in training:
        options = read_options(question.text)
        for words in (_words(question), ""):
            offered.update((question.subset, words, option) for option in options.values())
            right[question.subset, words, options[question.answer]] += 1

    def share(question: Question, option: str, chance: float) -> float:
        for words in (_words(question), ""):
            key = (question.subset, words, option)
            if offered[key] >= FEWEST_OFFERS:
                return right[key] / offered[key]
        return chance

    chosen = []
    for question in asked:
        options = read_options(question.text)
        shares = {letter: share(question, option, 1 / len(options)) for letter, option in options.items()}
        chosen.append(max(shares, key=shares.__getitem__))
    return chosen


def _words(question: Question) -> str:
    """Return what is asked, without the options."""
    return question.text[: question.text.index("?") + 1]


def judge(family: str, task: str, value: float, on_cpu: bool) -> str:
    """Say whether a score reaches its goal: ``"yes"``, ``"yes, for a CPU"`` or ``"no"``; empty without a goal."""
    if task not in GOALS.get(family, {}):
        return ""
    goal, suffices = GOALS[family][task]
    if value >= goal:
        return "yes"
    return "yes, for a CPU" if on_cpu and value >= suffices else "no"
