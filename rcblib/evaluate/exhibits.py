"""Choose, by rules that are written down, which images are shown in full and what each is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from rcblib.data.base import AnySample
from rcblib.data.questions import (
    BACKDROP_QUESTION,
    CAPTION_QUESTION,
    COUNT_QUESTION,
    task_questions,
    yes_no_question,
)
from rcblib.records import ONE_WORD_QUESTION, ImageId, ParameterError, Question
from rcblib.tensors.checks import check_integer

N_QUESTIONS = 5

FREE_QUESTIONS = (
    ONE_WORD_QUESTION,
    CAPTION_QUESTION,
    COUNT_QUESTION,
    BACKDROP_QUESTION,
    "What color is the largest object in the image?",
)
"""What is asked about an image of which nothing is known: nobody says whether the answers are right."""

FREE = "free"
"""Task of these questions."""

TASKS = ("one_word", "yes", "no", "count", "position", "backdrop", "color", "larger", "left", "digit")
"""Where the questions about an image with annotated objects come from, in this order, until there are five."""


def exhibit_questions(samples: Iterable[AnySample]) -> list[Question]:
    """Ask five questions about each image, the same ones in every run.

    Of an image with annotated objects: the first question of each family of `TASKS` that it has questions of, until
    there are five (fewer where it has not as many); ``yes`` asks for the first of its categories by name, ``no`` for
    the next category by name after that, of all these samples, that it does not show. Of any other input:
    `FREE_QUESTIONS`, without a right answer.

    Returns
    -------
    list of Question
        Image by image in the order of the samples; of ``yes`` and ``no`` the task is ``yes_no``, of questions without a
        right answer `FREE`.
    """
    samples = list(samples)
    known = [s for s in samples if s.kind == "image" and s.objects]
    names = sorted({item.category for sample in known for item in sample.objects})
    found = []
    for sample in samples:
        own = [*_known(sample, names)] if sample.kind == "image" and sample.objects else []
        found += own[:N_QUESTIONS] or [Question(sample.image_id, FREE, text, "") for text in FREE_QUESTIONS]
    return found


def _known(sample: AnySample, names: Sequence[str]) -> Iterable[Question]:
    """Yield one question of each family about an image with objects."""
    present = sorted({item.category for item in sample.objects})
    at = names.index(present[0])
    absent = [name for name in [*names[at:], *names[:at]] if name not in present]
    for task in TASKS:
        if task == "yes":
            yield Question(sample.image_id, "yes_no", yes_no_question(present[0]), "yes")
        elif task == "no":
            if absent:
                yield Question(sample.image_id, "yes_no", yes_no_question(absent[0]), "no")
        else:
            size = sample.width, sample.height
            backdrop = getattr(sample, "backdrop", None)
            yield from task_questions(sample.image_id, sample.objects, *size, None, task, backdrop)[:1]


def choose_exhibits(answers: pd.DataFrame, n_images: int) -> list[ImageId]:
    """Choose images so that failures are among them: a success, a failure, and so on, each kind by ascending id.

    Parameters
    ----------
    answers : pandas.DataFrame
        What is said with all tokens, one row a question: ``image_id``, ``score`` (NaN where nobody knows).
    n_images : int
        How many; all there are where they are fewer. Where one kind runs out, the other fills up.

    Returns
    -------
    list
        Ascending. A failure is an image of which a question scores below a half.

    Raises
    ------
    ParameterError
        If no image was asked about.
    """
    check_integer("n_images", n_images, 1)
    if not len(answers):
        raise ParameterError("answers", "none", "those of at least one image")
    fails = (answers["score"] < 0.5).groupby(answers["image_id"]).any().sort_index()
    kinds = [fails.index[~fails].tolist(), fails.index[fails].tolist()]
    chosen: list[ImageId] = []
    while len(chosen) < n_images and any(kinds):
        for kind in kinds:
            if kind and len(chosen) < n_images:
                chosen.append(kind.pop(0))
    return sorted(chosen)
