"""Say what one change at a time makes of a pruned score: another policy for positions, another scope of the budget."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rcblib.pruners.every import BY_CHANCE, OURS
from rcblib.reading.budgets import two_sided
from rcblib.reading.comparison import ALL_TOKENS, corrected_scores
from rcblib.reading.resampling import estimate_of, holm
from rcblib.reading.statistics import Estimate


def is_variant(answers: pd.DataFrame) -> pd.Series:
    """Tell which answers are of a variant, as `rcblib.pruners.every.variant` names it."""
    return answers["method"].astype(str).str.contains("; ")


def factor_table(
    answers: pd.DataFrame,
    tasks: Collection[str] | None = None,
    *,
    generator: np.random.Generator,
    n_resamples: int = 2000,
) -> pd.DataFrame:
    """Subtract from every variant the method that it varies, at the budget asked for, on the same questions.

    Parameters
    ----------
    answers : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`, variants and what they vary among its methods.
    tasks, generator, n_resamples
        As in `rcblib.reading.budgets.budget_curves`.

    Returns
    -------
    pandas.DataFrame
        One row a variant: ``method``, ``factor`` (what is changed), ``asked``, ``before`` and ``after`` (relative
        scores, corrected for chance, means over tasks), ``value`` of their difference with ``low`` and ``high``,
        ``n`` answers, ``n_images``, ``p_holm`` over all rows. A change whose method was not asked at its budget is left
        out.
    """
    asked = answers[["method", "retain_ratio"]].drop_duplicates()
    known = {(row["method"], row["retain_ratio"]) for row in asked.to_dict("records")}
    pairs = [
        (method, method.partition("; ")[0], ratio)
        for method, ratio in sorted(known, key=str)
        if "; " in method and (method.partition("; ")[0], ratio) in known
    ]
    if not pairs:
        return pd.DataFrame()
    settings = {ALL_TOKENS: (ALL_TOKENS, None)}
    for changed, base, ratio in pairs:
        settings |= {base: (base, ratio), changed: (changed, ratio)}
    scores = corrected_scores(answers, settings, tasks, generator=generator, n_resamples=n_resamples)
    rows = []
    for changed, base, ratio in pairs:
        before, after = (scores.relative(name).value for name in (base, changed))
        found = scores.difference(changed, base)
        rows.append(_row(base, changed.partition("; ")[2], ratio, before, after, found))
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p_value"]))


def arms_table(
    answers: pd.DataFrame,
    other: pd.DataFrame,
    factor: str,
    asked: float,
    tasks: Collection[str] | None = None,
    *,
    methods: Sequence[str] = (OURS, BY_CHANCE),
    generator: np.random.Generator,
) -> pd.DataFrame:
    """Compare methods on two models that differ in one thing, such as what the LLM was trained with.

    Parameters
    ----------
    answers, other : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`, of either model; the questions need not be the same, and are drawn by
        themselves.
    factor : str
        What is other about the second model.
    asked : float
        Share asked for.
    tasks
        As in `factor_table`; those of both models.
    methods : sequence of str
        Those that both were asked with.
    generator : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    pandas.DataFrame
        As `factor_table`, without ``p_holm``: ``after`` is the other model's.
    """
    rows = []
    for method in methods:
        settings = {ALL_TOKENS: (ALL_TOKENS, None), method: (method, asked)}
        own, its = (
            corrected_scores(frame, settings, tasks, generator=generator).relative(method)
            for frame in (answers, other)
        )
        if own.draws is None or its.draws is None:
            continue
        n_draws = min(len(own.draws), len(its.draws))
        values = np.concatenate([[its.value - own.value], its.draws[:n_draws] - own.draws[:n_draws]])
        found = estimate_of(values, own.n + its.n, own.n_clusters + its.n_clusters)
        rows.append(_row(method, factor, asked, own.value, its.value, found))
    return pd.DataFrame(rows)


def _row(
    method: str, factor: str, asked: float, before: float, after: float, found: Estimate
) -> dict[str, Any]:
    """Lay out what one change makes of a method, with the difference that was found."""
    return {
        "method": method,
        "factor": factor,
        "asked": asked,
        "before": before,
        "after": after,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "n_images": found.n_clusters,
        "p_value": two_sided(found),
    }
