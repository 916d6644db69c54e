"""Score the best guess that needs no image: what can be had without looking, on the very questions that were asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rcblib.data.choices import offered_answers
from rcblib.evaluate.metrics import CHOICE_TASKS, normalize_answer


def kinds_of(frame: pd.DataFrame) -> pd.Series:
    """Return what each question counts under: its task, or of multiple choice about sequences its kind (``subset``)."""
    if "subset" not in frame:
        return frame["task"]
    return frame["task"].mask(frame["task"].isin(CHOICE_TASKS) & (frame["subset"] != ""), frame["subset"])


def blind_scores(frame: pd.DataFrame, present: Mapping[Any, Collection[str]] | None = None) -> pd.Series:
    """Score, question by question, the best guess for each task, or kind of question (`kinds_of`).

    A guess is the same answer to all questions, or any of the answers that each question itself offers
    (`offered_answers`), whichever scores better over the task. Of fixed options, such as yes and no or letters, the
    same one always is never the worse; where every question names two objects of its own, either of them is.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a question, with ``task``, ``text``, ``answer`` and, where there are kinds, ``subset``; captions also
        need ``image_id``.
    present : Mapping, optional
        Image id to the categories in it; captions are not guessed without.

    Returns
    -------
    pandas.Series
        In [0, 1], named ``guess``, with the frame's index. Its mean over a task is the share of the most frequent
        answer (equal after `normalize_answer`), or one over the number of answers offered; for ``caption`` the object
        F1 of the caption that names the most frequent categories, as many of them as score best. NaN for captions
        without `present`.
    """
    scores = pd.Series(np.nan, index=frame.index, name="guess")
    for task, rows in frame.groupby(kinds_of(frame), sort=False):
        if task == "caption":
            if present is not None:
                scores[rows.index] = _caption_scores([present[image_id] for image_id in rows["image_id"]])
        else:
            answers = rows["answer"].map(normalize_answer)
            constant = (answers == answers.value_counts().index[0]).astype(float)
            n_offered = rows["text"].map(offered_answers).map(len)
            any_offered = (1 / n_offered.where(n_offered > 0)).fillna(0.0)
            scores[rows.index] = constant if constant.mean() >= any_offered.mean() else any_offered
    return scores


def _caption_scores(present: list[Collection[str]]) -> np.ndarray:
    """Return the F1 of each image for the best caption that names the most frequent categories."""
    counts = Counter(name for there in present for name in set(there))
    names = sorted(counts, key=lambda name: (-counts[name], name))
    has = np.array([[name in there for name in names] for there in present], dtype=float)
    n_named = np.arange(1, len(names) + 1)
    f1 = 2 * has.cumsum(1) / (n_named + has.sum(1, keepdims=True))  # (n_images, n_names)
    return f1[:, f1.mean(0).argmax()]
