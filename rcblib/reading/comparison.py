"""Compare pruning methods: turn the answers of `evaluate_grid` into scores a budget, with intervals over images.

A *setting* is a method at a budget: its rows differ in question and, where something is drawn, in seed. Seeds of a
setting are averaged question by question before anything else, so that intervals are over images alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from rcblib.evaluate.metrics import normalize_answer
from rcblib.reading.statistics import Estimate, mean_interval, mean_of_ratios
from rcblib.records import ParameterError

SETTING = ["method", "retain_ratio", "max_similarity", "settings"]

ALL_TOKENS = "all tokens"

ALL_TASKS = "mean over tasks"

_QUESTION = ["image_id", "task", "subset", "question"]


def average_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Average the seeds of each setting, question by question.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`.

    Returns
    -------
    pandas.DataFrame
        One row a setting and question, both in the order given: `SETTING`, ``image_id``, ``task``, ``subset``,
        ``question``, ``score`` and ``retained``, the share of the image's visual tokens that the LLM was fed.

    Raises
    ------
    ParameterError
        If a column is missing.
    """
    needed = [*SETTING, *_QUESTION, "score", "n_retained", "n_visual_tokens"]
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise ParameterError("frame", list(frame.columns), f"columns {missing} too")
    shares = frame.assign(retained=frame["n_retained"] / frame["n_visual_tokens"])
    groups = shares.groupby([*SETTING, *_QUESTION], dropna=False, sort=False)
    return groups[["score", "retained"]].mean().reset_index()


def score_table(frame: pd.DataFrame, *, generator: np.random.Generator) -> pd.DataFrame:
    """Average the scores of each setting and task.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `average_seeds`.
    generator : numpy.random.Generator
        Source of the bootstrap over images.

    Returns
    -------
    pandas.DataFrame
        `SETTING`, ``task``, ``retained`` (mean share of visual tokens), ``mean``, ``low`` and ``high`` of the score,
        ``n`` questions and ``n_images``; in the order given.
    """
    rows = []
    for setting, group in _settings(frame):
        for task, answers in group.groupby("task", sort=False):
            estimate = mean_interval(answers["score"], answers["image_id"], generator=generator)
            rows.append({**setting, "task": task, **_numbers(answers, estimate)})
    return pd.DataFrame(rows)


def relative_table(
    frame: pd.DataFrame, *, generator: np.random.Generator, reference: str = ALL_TOKENS
) -> pd.DataFrame:
    """Divide the scores of each setting by those of the reference on the same questions.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `average_seeds`.
    generator : numpy.random.Generator
        Source of the bootstrap over images, which draws both scores of a question together.
    reference : str
        Method with one setting, such as the unpruned model.

    Returns
    -------
    pandas.DataFrame
        As `score_table`; per setting one row a task and one, ``"mean over tasks"``, of the mean of the tasks' ratios.
        A task that the reference fails altogether is left out, and so is the mean.
    """
    rows = []
    for setting, group in _settings(frame):
        if setting["method"] == reference:
            continue
        baseline = _matched(frame, reference, None, group)
        for task, chosen in [*group.groupby("task", sort=False).indices.items(), (ALL_TASKS, slice(None))]:
            answers = group.iloc[chosen]
            estimate = mean_of_ratios(
                answers["score"],
                baseline[chosen],
                answers["task"],
                answers["image_id"],
                generator=generator,
            )
            if not np.isnan(estimate.value):
                rows.append({**setting, "task": task, **_numbers(answers, estimate)})
    return pd.DataFrame(rows)


def advantage_table(
    frame: pd.DataFrame, method: str, others: Sequence[str], *, generator: np.random.Generator
) -> pd.DataFrame:
    """Subtract the scores of other methods from a method's at the same ``retain_ratio``, on the same questions.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `average_seeds`.
    method : str
        The one to judge.
    others : sequence of str
        What it is compared with; budgets that they lack are left out.
    generator : numpy.random.Generator
        Source of the bootstrap over images, which draws both scores of a question together.

    Returns
    -------
    pandas.DataFrame
        ``other``, ``retain_ratio``, ``settings`` of `method`, ``mean`` over tasks of the difference in
        score (positive: `method` is better), ``low``, ``high``, ``n`` questions and ``n_images``.
    """
    rows = []
    for setting, group in _settings(frame[(frame["method"] == method) & frame["retain_ratio"].notna()]):
        for other in others:
            ratio = setting["retain_ratio"]
            if not ((frame["method"] == other) & (frame["retain_ratio"] == ratio)).any():
                continue
            difference = group["score"].to_numpy() - _matched(frame, other, ratio, group)
            estimate = mean_of_ratios(
                difference,
                np.ones(len(group)),
                group["task"],
                group["image_id"],
                generator=generator,
            )
            row = {"other": other, "retain_ratio": ratio, "settings": setting["settings"]}
            row |= _numbers(group, estimate)
            rows.append({name: value for name, value in row.items() if name != "retained"})
    return pd.DataFrame(rows)


def relative_score(
    frame: pd.DataFrame,
    method: str,
    retain_ratio: float,
    *,
    generator: np.random.Generator,
    reference: str = ALL_TOKENS,
) -> Estimate:
    """Estimate the mean over tasks of a setting's score over the reference's; see `relative_table`.

    Raises
    ------
    ParameterError
        If there is no such setting, or more than one.
    """
    group = frame[(frame["method"] == method) & np.isclose(frame["retain_ratio"], retain_ratio)]
    if len(group[SETTING].drop_duplicates()) != 1:
        given = (method, retain_ratio, *group["settings"].unique())
        raise ParameterError("setting", given, "a method and a budget that were evaluated, with one setting")
    baseline = _matched(frame, reference, None, group)
    return mean_of_ratios(group["score"], baseline, group["task"], group["image_id"], generator=generator)


def guessing_scores(questions: pd.DataFrame) -> dict[str, float]:
    """Score the best constant answer of each task: what can be had without looking.

    Parameters
    ----------
    questions : pandas.DataFrame
        One row a question, with ``task`` and ``answer``.

    Returns
    -------
    dict
        Task to the share of its most frequent answer, after `normalize_answer`. Captions are left out: they are not
        scored by equality.
    """
    scores = {}
    for task, rows in questions.groupby("task", sort=False):
        if task != "caption":
            scores[task] = float(rows["answer"].map(normalize_answer).value_counts(normalize=True).iloc[0])
    return scores


def _settings(frame: pd.DataFrame) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Yield each setting with its rows, in the order given."""
    for keys, group in frame.groupby(SETTING, dropna=False, sort=False):
        yield dict(zip(SETTING, keys, strict=True)), group


def _matched(frame: pd.DataFrame, method: str, ratio: float | None, like: pd.DataFrame) -> np.ndarray:
    """Return a method's scores of the very questions of `like`, in their order."""
    rows = frame[frame["method"] == method]
    if ratio is not None:
        rows = rows[rows["retain_ratio"] == ratio]
    scores = rows.set_index(_QUESTION)["score"]
    if scores.index.has_duplicates or scores.empty:
        settings = rows[SETTING].drop_duplicates().to_dict("records")
        raise ParameterError("method", f"{method} with settings {settings}", "a method with one setting here")
    matched = scores.reindex(pd.MultiIndex.from_frame(like[_QUESTION]))
    if matched.isna().any():
        raise ParameterError(
            "frame", f"{int(matched.isna().sum())} questions without {method}", "all of them"
        )
    return matched.to_numpy()


def _numbers(answers: pd.DataFrame, estimate: Estimate) -> dict[str, float]:
    return {
        "retained": answers["retained"].mean(),
        "mean": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "n_images": estimate.n_clusters,
    }
