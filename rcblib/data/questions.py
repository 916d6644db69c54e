"""Turn what is known of an image into questions, for drawn scenes and for COCO alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations
from typing import Protocol

import numpy as np

from rcblib.data.choices import either
from rcblib.records import ONE_WORD_QUESTION, ImageId, ParameterError, Question, Sample
from rcblib.tensors.checks import check_integer

CAPTION_QUESTION = "Provide a one-sentence caption for the image."

COUNT_QUESTION = "How many objects are there in the image?"

DIGIT_QUESTION = "Which digit is written in the image?"

BACKDROP_QUESTION = "What is in the background of the image?"

TASKS = (
    "one_word",
    "caption",
    "yes_no",
    "color",
    "count",
    "position",
    "digit",
    "larger",
    "left",
    "backdrop",
)

PAIR_RATIO, PAIR_DISTANCE = 1.3, 0.15
"""Least ratio of two areas, and distance of two centres as a share of the width, for two objects to be compared."""

PAIR_TASKS = ("larger", "left")

POPE_SUBSETS = ("random", "popular", "adversarial")

COUNT_WORDS = ("one", "two", "three", "four")

POSITION_WORDS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
DIGITS = tuple("0123456789")

DOMINANCE = 1.5
"""Times the area of the next largest that an object has which dominates its image."""

POSITION_MARGIN = 0.03
"""Distance from the lines between thirds, as a share of the side, below which no position is asked for."""


class KnownObject(Protocol):
    """Anything with a category, a colour (or `None`), an area and a centre, both in pixels."""

    category: str
    color: str | None
    area: float

    @property
    def center(self) -> tuple[float, float]: ...


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun: "a star", "an arrow", "an 8"."""
    return f"{'an' if noun[0] in 'aeiou8' else 'a'} {noun}"


def yes_no_question(category: str) -> str:
    """Ask whether a category is present, in POPE's words."""
    return f"Is there {with_article(category)} in the image?"


def color_question(category: str) -> str:
    """Ask for the colour of a named object."""
    return f"What color is the {category}?"


def position_question(category: str) -> str:
    """Ask where a named object is (grounding in words)."""
    return f"Where in the image is the {category}?"


def larger_question(first: str, second: str) -> str:
    """Ask which of two named objects covers more of the image."""
    return f"Which is larger in the image, {either(first, second)}"


def left_question(first: str, second: str) -> str:
    """Ask which of two named objects is further left."""
    return f"Which is further left in the image, {either(first, second)}"


def dominant(objects: Sequence[KnownObject]) -> KnownObject | None:
    """Return the object whose area is at least 1.5 times the next largest, or `None`."""
    by_area = sorted(objects, key=lambda o: -o.area)
    if not by_area or (len(by_area) > 1 and by_area[0].area < DOMINANCE * by_area[1].area):
        return None
    return by_area[0]


def position_words(center: tuple[float, float], width: int, height: int) -> str | None:
    """Name the third of the image a centre lies in, or `None` within 3 % of a dividing line."""
    x, y = center[0] / width, center[1] / height
    if any(abs(v - line) < POSITION_MARGIN for v in (x, y) for line in (1 / 3, 2 / 3)):
        return None
    return POSITION_WORDS[int(y * 3)][int(x * 3)]


def _unique(objects: Sequence[KnownObject]) -> list[KnownObject]:
    times = Counter(o.category for o in objects)
    return [o for o in objects if times[o.category] == 1]


def _pairs(objects: Sequence[KnownObject], width: int, task: str) -> list[tuple[str, str]]:
    """Compare every two objects that differ enough; which of them is named first does not depend on the answer."""
    pairs = []
    for a, b in combinations(sorted(_unique(objects), key=lambda o: o.category), 2):
        if sum(map(ord, a.category + b.category)) % 2:
            a, b = b, a
        if task == "larger" and max(a.area, b.area) >= PAIR_RATIO * min(a.area, b.area):
            right = a if a.area > b.area else b
            pairs.append((larger_question(a.category, b.category), right.category))
        if task == "left" and abs(a.center[0] - b.center[0]) >= PAIR_DISTANCE * width:
            right = a if a.center[0] < b.center[0] else b
            pairs.append((left_question(a.category, b.category), right.category))
    return pairs


def task_questions(
    image_id: ImageId,
    objects: Sequence[KnownObject],
    width: int,
    height: int,
    caption: str | None,
    task: str,
    backdrop: str | None = None,
) -> list[Question]:
    """List every question of a family that has one right answer for this image, yes/no excepted.

    Parameters
    ----------
    task : str
        ``one_word``, ``caption``, ``color``, ``count``, ``position``, ``digit``, ``larger`` or ``left`` (which of two
        objects), ``backdrop`` (what is behind them); yes/no questions need to know the other images, see
        `pope_questions`.
    backdrop : str, optional
        What is behind the objects, in a word.

    Raises
    ------
    ParameterError
        For another task.
    """
    unique = _unique(objects)
    if task == "one_word":
        main = dominant(objects)
        pairs = [(ONE_WORD_QUESTION, main.category)] if main else []
    elif task == "caption":
        pairs = [(CAPTION_QUESTION, caption)] if caption else []
    elif task == "color":
        pairs = [(color_question(o.category), o.color) for o in unique if o.color]
    elif task == "count":
        pairs = (
            [(COUNT_QUESTION, COUNT_WORDS[len(objects) - 1])] if 1 <= len(objects) <= len(COUNT_WORDS) else []
        )
    elif task == "position":
        placed = [(o, position_words(o.center, width, height)) for o in unique]
        pairs = [(position_question(o.category), words) for o, words in placed if words]
    elif task == "digit":
        digits = [o.category for o in objects if o.category in DIGITS]
        pairs = [(DIGIT_QUESTION, digits[0])] if len(digits) == 1 else []
    elif task in PAIR_TASKS:
        pairs = _pairs(objects, width, task)
    elif task == "backdrop":
        pairs = [(BACKDROP_QUESTION, backdrop)] if backdrop else []
    else:
        raise ParameterError("task", task, ", ".join(t for t in TASKS if t != "yes_no"))
    return [Question(image_id, task, text, answer) for text, answer in pairs]


def pope_questions(
    images: Sequence[tuple[int, Iterable[str]]], rng: np.random.Generator, n_pairs: int = 1
) -> list[Question]:
    """Ask for present and absent categories, absent ones sampled in POPE's three ways.

    Per image and sampling, `n_pairs` present categories ("yes") and as many absent ones ("no"): at random; the most
    frequent of these images ("popular"); the ones that most often occur together with what is present ("adversarial").

    Parameters
    ----------
    images : sequence of (image id, categories present)
        Frequencies and co-occurrences are counted over these images.
    rng : numpy.random.Generator
        Draws the present categories and the random absent ones; ties keep alphabetical order.

    Source: Li et al. 2023 (POPE), section 4.
    """
    present = {image_id: sorted(set(categories)) for image_id, categories in images}
    names = sorted({name for categories in present.values() for name in categories})
    column = {name: i for i, name in enumerate(names)}
    has = np.zeros((len(present), len(names)), int)
    for row, categories in enumerate(present.values()):
        has[row, [column[name] for name in categories]] = 1
    frequency, together = has.sum(0), has.T @ has

    questions = []
    for row, (image_id, categories) in enumerate(present.items()):
        absent = np.flatnonzero(has[row] == 0)
        n = min(n_pairs, len(categories), len(absent))
        yes = [categories[i] for i in rng.permutation(len(categories))[:n]]
        partners = together[has[row] == 1].sum(0)
        chosen = {
            "random": rng.permutation(absent)[:n],
            "popular": absent[np.argsort(-frequency[absent], kind="stable")][:n],
            "adversarial": absent[np.argsort(-partners[absent], kind="stable")][:n],
        }
        for subset, columns in chosen.items():
            answers = [(name, "yes") for name in yes] + [(names[i], "no") for i in columns]
            questions += [Question(image_id, "yes_no", yes_no_question(c), a, subset) for c, a in answers]
    return questions


def default_tasks(samples: Iterable[Sample]) -> tuple[str, ...]:
    """Return the families that samples are asked where nobody chose.

    Two objects are compared where backdrops are known, as of photographs: models of drawn scenes have no word for it.
    """
    if any(getattr(sample, "backdrop", None) for sample in samples):
        return TASKS
    return tuple(task for task in TASKS if task not in (*PAIR_TASKS, "backdrop"))


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
        Families, of `TASKS`; by default those of `default_tasks` that these samples have questions of: colours are
        known of scenes only.
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
    samples = list(samples)
    asked = default_tasks(samples) if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)
    unknown = [task for task in asked if task not in TASKS]
    if unknown or not asked:
        raise ParameterError("tasks", unknown or asked, ", ".join(TASKS))
    if n_per_task is not None:
        check_integer("n_per_task", n_per_task, 1)
    check_integer("seed", seed, 0)
    if not samples:
        raise ParameterError("samples", "none", "at least one sample")
    bare = [sample.image_id for sample in samples if sample.objects is None]
    if bare:
        raise ParameterError(
            "samples", f"image {bare[0]} without annotation", "samples with annotated objects"
        )
    if any(sample.kind != "image" for sample in samples):
        raise ParameterError(
            "samples",
            "several images, or a video",
            "single images; those of a world ask about groups and videos themselves",
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
        size = sample.width, sample.height
        found += task_questions(sample.image_id, sample.objects, *size, caption, task, sample.backdrop)
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


def questions_by_task(
    samples: Sequence[Sample],
    tasks: Sequence[str] | None,
    n_per_task: int | None,
    seed: int,
    n_yes_no: int | None = None,
) -> list[Question]:
    """Draw questions as `questions_for`, or as samples draw their own, with another number of yes/no questions."""
    of_its_own = getattr(samples, "questions", None)  # groups and videos of a world
    if of_its_own or n_yes_no is None:
        draw = of_its_own or partial(questions_for, samples)
        return draw(tasks, n_per_task, seed)
    drawn = [
        questions_for(samples, [task], n_yes_no if task == "yes_no" else n_per_task, seed)
        for task in tasks or default_tasks(samples)
    ]
    return [question for of_task in drawn for question in of_task]
