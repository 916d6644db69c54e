"""Choose a variant of this project's own method by a rule, set it beside others, and say which method suits a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rcblib.pruners.every import BY_CHANCE, kind_of
from rcblib.reading.budgets import LEVEL, Curves, at_budgets, numbers_of
from rcblib.reading.comparison import ALL_TOKENS, corrected_scores


def variant_scores(answers: pd.DataFrame, budgets: Sequence[float]) -> pd.Series:
    """Score variants of one method by the rule of ``data/distilled.yml``.

    Parameters
    ----------
    answers : pandas.DataFrame
        All tokens and variants of a method, which differ in ``settings``.
    budgets : sequence of float
        Shares asked for that count.

    Returns
    -------
    pandas.Series
        Settings to the mean over tasks and shares of the chance-corrected score, the best first.
    """
    means, generator = {}, np.random.default_rng(0)
    for (method, own), rows in answers[answers["method"] != ALL_TOKENS].groupby(
        ["method", "settings"], sort=False
    ):
        names = {budget: (method, budget) for budget in budgets}
        scores = corrected_scores(rows, names, generator=generator, n_resamples=2)
        means[own] = float(np.mean([scores.corrected(budget).value for budget in budgets]))
    return pd.Series(means).sort_values(ascending=False, kind="stable")


def beside_rivals(
    curves: Curves, method: str, others: Sequence[str], budgets: Sequence[float]
) -> pd.DataFrame:
    """Subtract from a method's relative score those of some others and of the best rival at each share of rows.

    Parameters
    ----------
    curves : Curves
        Of one model.
    method : str
        The one that is set beside others.
    others : sequence of str
        Whom it is compared with everywhere.
    budgets : sequence of float
        Shares of rows read.

    Returns
    -------
    pandas.DataFrame
        ``budget``, ``value`` of the method, ``beside`` (the other; bounds are no rivals), ``mean`` of the difference
        (positive: the method is better), ``low``, ``high``, ``half_width``, ``n`` and ``n_images``. The best rival is
        the one of the highest score there, which favours it.
    """
    judged = at_budgets(curves, method, budgets)
    rivals = judged[judged["kind"] != "bounds"] if len(judged) else judged
    rows = []
    for budget in budgets:
        there = rivals[rivals["budget"] == budget] if len(rivals) else rivals
        best = [there.loc[there["mean"].idxmax(), "method"]] if len(there) else []
        for other in dict.fromkeys([*others, *best]):
            values = curves.at(method, budget)
            gap = curves.estimate(values - curves.at(other, budget))
            if not np.isnan(gap.value):
                row = {"budget": budget, "value": curves.estimate(values).value, "beside": other}
                rows.append(row | numbers_of(gap))
    return pd.DataFrame(rows)


def best_by_task(curves: Curves, budget: float, others: Sequence[str]) -> pd.DataFrame:
    """Name for each task the method that keeps most of its score at a share of rows, and what some others keep.

    Parameters
    ----------
    curves : Curves
        Of one model.
    budget : float
        Share of the rows read; methods that do not read so few take no part, nor do bounds.
    others : sequence of str
        Methods that are told in any case.

    Returns
    -------
    pandas.DataFrame
        By ``task``: ``best``, ``relative`` (its relative score), ``apart`` (whether its difference from random tokens
        is above 0 at a level of 5 % shared by all methods: Bonferroni, as it was chosen among them), and a column for
        each of the others; without tasks in which all tokens do no better than guessing.
    """
    able = [name for name in curves.methods() if kind_of(name) != "bounds"]
    at = pd.DataFrame({name: curves.at(name, budget)[0] for name in able}, index=list(curves.draws.tasks))
    at = at.dropna(axis=1, how="all").dropna(axis=0, how="all")
    if at.empty:
        return pd.DataFrame(columns=["best", "relative", "apart"])
    found = pd.DataFrame({"best": at.idxmax(axis=1), "relative": at.max(axis=1)}).rename_axis("task")
    level, apart = 1 - LEVEL / max(1, sum(name != BY_CHANCE for name in at)), []
    for task, best in found["best"].items():
        difference = curves.at(best, budget) - curves.at(BY_CHANCE, budget)
        column = difference[:, curves.draws.tasks.index(task)]
        apart.append(curves.draws.estimate(column, task, level).low > 0)
    found["apart"] = apart
    return found.join(at[[name for name in others if name in at]])
