"""Compare methods on the questions that a smaller picture fails: what it answers says nothing about pruning."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from rcblib.evaluate.guessing import kinds_of
from rcblib.pruners.every import OURS, kind_of
from rcblib.reading.budgets import judged, numbers_of, two_sided
from rcblib.reading.comparison import ALL_TOKENS
from rcblib.reading.resampling import draw_means
from rcblib.records import ParameterError

DOWNSAMPLED = "smaller picture"

_QUESTION = ["image_id", "task", "subset", "question"]


def hard_questions(answers: pd.DataFrame, asked: float, control: str = DOWNSAMPLED) -> pd.MultiIndex:
    """Return the questions that all tokens answer better than a smaller picture of about as many tokens does.

    Source: Liao et al. 2025 (arXiv 2510.07143): what down-sampling answers says nothing about pruning.
    """
    scores = {}
    for name, rows in (
        (ALL_TOKENS, answers[answers["method"] == ALL_TOKENS]),
        (control, answers[(answers["method"] == control) & np.isclose(answers["retain_ratio"], asked)]),
    ):
        if rows.empty:
            raise ParameterError("answers", f"none of {name} at {asked:g}", "answers of both")
        scores[name] = rows.set_index(_QUESTION)["score"]
    whole, small = scores[ALL_TOKENS], scores[control].reindex(scores[ALL_TOKENS].index)
    return whole.index[(whole > small).to_numpy()]


def hard_table(
    answers: pd.DataFrame,
    asked: float,
    tasks: Collection[str] | None = None,
    *,
    generator: np.random.Generator,
    n_resamples: int = 2000,
) -> pd.DataFrame:
    """Score methods at one budget on `hard_questions` only: plain scores, means over tasks.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``kind``, ``retained``, ``mean``, ``low``, ``high``, ``half_width``, ``n``, ``n_images``; and
        against the codebook ``difference``, ``p_value``, ``p_holm`` and ``better``, as in `difference_table`. On these
        questions the control is worse than all tokens by choice, and so is, a little, whatever resembles it. Empty
        where there are none of some task.
    """
    answers = answers.assign(kind_of_task=kinds_of(answers))
    if tasks is not None:
        answers = answers[answers["kind_of_task"].isin(tasks)]
    hard = hard_questions(answers, asked)
    chosen = answers[pd.MultiIndex.from_frame(answers[_QUESTION]).isin(hard)]
    chosen = chosen.assign(task=chosen["kind_of_task"])
    if set(chosen["task"]) != set(answers["kind_of_task"]):
        return pd.DataFrame()
    at = np.isclose(chosen["retain_ratio"].astype(float), asked) | chosen["retain_ratio"].isna()
    frames = {
        str(method): rows
        for method, rows in chosen[at | (chosen["method"] == ALL_TOKENS)].groupby("method", sort=False)
    }
    draws = draw_means(frames, generator=generator, n_resamples=n_resamples)
    rows = []
    for method, own in frames.items():
        found = draws.estimate(draws[method].mean(1))
        row = {"method": method, "kind": kind_of(method)}
        row["retained"] = (own["n_retained"] / own["n_visual_tokens"]).mean()
        row |= numbers_of(found)
        if method != OURS and OURS in frames:
            apart = draws.estimate((draws[method] - draws[OURS]).mean(1))
            row |= {"difference": apart.value, "p_value": two_sided(apart)}
        rows.append(row)
    return judged(pd.DataFrame(rows), by="difference")
