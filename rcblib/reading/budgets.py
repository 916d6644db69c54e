"""Compare methods over budgets at the rows that the LLM reads, corrected for chance, seeds and images drawn together.

A *point* is a method at a budget, placed where it is read: at the mean share of an image's visual rows that the LLM
reads, newlines and merged rows counted, and for methods inside the LLM the mean over its layers. Between its points a
method's curve goes straight over the logarithm of that share, up to the unpruned model at 1; below its lowest point,
and for a method of one budget beside it, there is no curve. Two methods are compared at one's own points on the other's
curve, so at the same number of rows whatever was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from rcblib.pruners.every import BY_CHANCE, INTERMEDIATE, OURS, kind_of
from rcblib.reading.comparison import ALL_TOKENS, corrected_scores
from rcblib.reading.resampling import Draws, holm
from rcblib.reading.statistics import Estimate

LEVEL = 0.05
"""Family-wise error of the differences from one method, over all other methods and budgets."""

_SAME = 0.03  # of 144 tokens 5 % are 7, not 7.2: shares that differ by no more than this part are one


@dataclass(frozen=True)
class Curves:
    """Hold the relative scores of methods over the share of rows that is read, on the sample and on resamples.

    Attributes
    ----------
    points : pandas.DataFrame
        One row a point: ``point`` (its name), ``method``, ``asked`` (share asked for, NaN where the method takes none),
        ``retained`` (mean share of rows read), ``n_rows`` (mean rows read) and ``n`` answers.
    draws : Draws
        As `CorrectedScores.draws`.
    relative : Mapping
        Name of a point to ``(1 + n_resamples, n_tasks)`` chance-corrected scores over those of all tokens.
    """

    points: pd.DataFrame
    draws: Draws
    relative: Mapping[str, np.ndarray] = field(repr=False)

    def methods(self) -> list[str]:
        """List the methods, the unpruned model not among them."""
        return [name for name in self.points["method"].unique() if name != ALL_TOKENS]

    def lowest(self, method: str) -> float:
        """Return the smallest share of rows that a method reads."""
        return float(self.points.loc[self.points["method"] == method, "retained"].min())

    def at(self, method: str, retained: float) -> np.ndarray:
        """Return ``(1 + n_resamples, n_tasks)`` relative scores on a method's curve; NaN where it has none."""
        own = self.points[self.points["method"].isin([method, ALL_TOKENS])].sort_values("retained")
        shares = own["retained"].to_numpy()
        near = np.flatnonzero(np.abs(shares - retained) <= _SAME * retained)
        if len(near):
            return self.relative[own["point"].iloc[near[0]]]
        above = int(np.searchsorted(shares, retained))
        if above in (0, len(shares)) or self.has_one_budget(method):
            return np.full_like(next(iter(self.relative.values())), np.nan)
        low, high = np.log(shares[above - 1 : above + 1])
        weight = (np.log(retained) - low) / (high - low)
        names = own["point"].iloc[above - 1 : above + 1]
        return (1 - weight) * self.relative[names.iloc[0]] + weight * self.relative[names.iloc[1]]

    def has_one_budget(self, method: str) -> bool:
        """Tell whether a method was asked at one budget only, such as one that takes none."""
        return int((self.points["method"] == method).sum()) == 1

    def estimate(self, values: np.ndarray, task: str | None = None) -> Estimate:
        """Estimate what was computed from relative scores: of a task, or the mean over tasks."""
        chosen = values.mean(1) if task is None else values[:, self.draws.tasks.index(task)]
        return self.draws.estimate(chosen, task)


def budget_curves(
    answers: pd.DataFrame,
    tasks: Collection[str] | None = None,
    *,
    generator: np.random.Generator,
    n_resamples: int = 2000,
) -> Curves:
    """Collect the curves of all methods in a table of answers.

    Parameters
    ----------
    answers : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`, the unpruned model among the methods; seeds not averaged.
    tasks : collection of str, optional
        Those that pass a gate; by default all with a guess.
    generator, n_resamples
        As in `rcblib.reading.resampling.draw_means`.

    Raises
    ------
    ParameterError
        As `corrected_scores`.
    """
    found = answers.groupby(["method", "retain_ratio"], dropna=False, sort=False)
    settings, rows = {ALL_TOKENS: (ALL_TOKENS, None)}, []
    shares = answers.assign(retained=answers["n_retained"] / answers["n_visual_tokens"])
    for (method, ratio), places in found.indices.items():
        ratio = float(ratio)
        name = method if method == ALL_TOKENS else point_name(method, ratio)
        settings[name] = (method, None if method == ALL_TOKENS or np.isnan(ratio) else ratio)
        own = shares.iloc[places]
        rows.append(
            {
                "point": name,
                "method": method,
                "asked": ratio,
                "retained": own["retained"].mean(),
                "n_rows": own["n_retained"].mean(),
                "n": len(own),
            }
        )
    scores = corrected_scores(answers, settings, tasks, generator=generator, n_resamples=n_resamples)
    relative = {name: scores.relative_draws(name) for name in settings}
    return Curves(pd.DataFrame(rows), scores.draws, relative)


def point_name(method: str, asked: float) -> str:
    """Name a method at a share asked for."""
    return method if np.isnan(asked) else f"{method} at {asked:.4g}"


def curve_table(curves: Curves, task: str | None = None) -> pd.DataFrame:
    """List all points of methods: what is read, and the relative score.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``kind``, ``asked``, ``retained``, ``n_rows``, ``mean``, ``low``, ``high``, ``half_width`` of the
        interval, ``n`` and ``n_images``; of one task, or the mean over tasks.
    """
    rows = []
    for point in curves.points.to_dict("records"):
        if point["method"] == ALL_TOKENS:
            continue
        found = curves.estimate(curves.relative[point["point"]], task)
        rows.append(
            {
                "method": point["method"],
                "kind": kind_of(point["method"]),
                **{name: point[name] for name in ("asked", "retained", "n_rows")},
                **numbers_of(found),
            }
        )
    return pd.DataFrame(rows)


def difference_table(curves: Curves, reference: str = OURS, task: str | None = None) -> pd.DataFrame:
    """Subtract from every point the reference's relative score at as many rows, all in one family of tests.

    Returns
    -------
    pandas.DataFrame
        As `curve_table`, of the difference (positive: the method is better); ``p_value``, ``p_holm`` (Holm's, over all
        rows) and ``better``: 1, -1, or 0 where that leaves it open at `LEVEL`. Points where the reference has no curve
        are left out.
    """
    rows = []
    for point in curves.points.to_dict("records"):
        if point["method"] in (ALL_TOKENS, reference):
            continue
        values = curves.relative[point["point"]] - curves.at(reference, point["retained"])
        found = curves.estimate(values, task)
        if np.isnan(found.value):
            continue
        rows.append(
            {
                "method": point["method"],
                "kind": kind_of(point["method"]),
                **{name: point[name] for name in ("asked", "retained", "n_rows")},
                **numbers_of(found),
                "p_value": two_sided(found),
            }
        )
    return judged(pd.DataFrame(rows))


def shares_read(curves: Curves, budgets: Sequence[float]) -> list[float]:
    """Return the share of rows that is read where random tokens are asked for each budget: newlines are read, too."""
    own = curves.points[curves.points["method"] == BY_CHANCE]
    read = {budget: own.loc[np.isclose(own["asked"].astype(float), budget), "retained"] for budget in budgets}
    return [float(found.iloc[0]) if len(found) else budget for budget, found in read.items()]


def at_budgets(curves: Curves, reference: str, budgets: Sequence[float]) -> pd.DataFrame:
    """Judge the differences from a method at shares of rows read, all in one family of tests.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``kind``, ``budget``, ``mean`` of the difference (positive: the method is better), ``p_value``,
        ``p_holm`` and ``better``, as in `difference_table`; of methods whose curve goes there, as does the reference's.
    """
    rows = []
    for method in curves.methods():
        for budget in budgets if method != reference else ():
            values = (curves.at(method, budget) - curves.at(reference, budget)).mean(1)
            found = curves.draws.estimate(values)
            if not np.isnan(found.value):
                p_value = two_sided(found)
                row = {"method": method, "kind": kind_of(method), "budget": budget}
                rows.append(row | {"mean": found.value, "p_value": p_value})
    return judged(pd.DataFrame(rows))


def summary_table(curves: Curves, budgets: Sequence[float]) -> pd.DataFrame:
    """Lay out relative scores at shares of rows read, a row a method, the best on top.

    Returns
    -------
    pandas.DataFrame
        By ``kind`` and ``method``: text such as ``"0.83 ▲"`` in a column a budget. ▲ and ▼: better and worse than the
        codebook there, ○: not better than random tokens; by Holm's correction, over methods and budgets. A dash where
        the method does not read so few rows.
    """
    marks = {
        name: {
            (row["method"], row["budget"]): row["better"]
            for row in at_budgets(curves, name, budgets).to_dict("records")
        }
        for name in (OURS, BY_CHANCE)
    }
    values, texts = {}, {}
    for method in curves.methods():
        found = {budget: float(curves.at(method, budget).mean(1)[0]) for budget in budgets}
        if np.isnan(list(found.values())).all():
            continue
        values[method] = found
        texts[method] = {
            budget: "–" if np.isnan(value) else f"{value:.2f}{_mark(marks, method, budget)}"
            for budget, value in found.items()
        }
    table = pd.DataFrame.from_dict(texts, orient="index", columns=list(budgets))
    order = pd.DataFrame.from_dict(values, orient="index").mean(axis=1, skipna=False)
    order = order.sort_values(ascending=False, na_position="last", kind="stable").index
    table = table.loc[order]
    table.insert(0, "kind", [kind_of(method) for method in table.index])
    return table.rename(columns={budget: f"{budget:.0%}" for budget in budgets}).rename_axis("method")


def intermediate_methods(methods: Iterable[str]) -> list[str]:
    """Return those of some methods that are built on intermediate states, variants left out."""
    return [name for name in methods if "; " not in name and kind_of(name) in INTERMEDIATE]


def curves_beside_intermediate(
    answers: pd.DataFrame, tasks: Collection[str] | None = None, *, seed: int = 0
) -> Curves:
    """Collect the curves of the codebook and of methods built on intermediate states alone, as C4 is judged by them.

    The same answers give the same draws, and so the same intervals, wherever they are compared.

    Parameters
    ----------
    answers, tasks
        As in `budget_curves`; the order of tasks is of no account.
    seed : int
        Of the draws.
    """
    methods = [ALL_TOKENS, OURS, *intermediate_methods(answers["method"].unique())]
    chosen = answers[answers["method"].isin(methods)]
    return budget_curves(chosen, tasks and sorted(tasks), generator=np.random.default_rng(seed))


def above_intermediate(curves: Curves, budget: float) -> dict[str, Any]:
    """Compare the codebook with every method built on intermediate states at a share of rows.

    A method that does not read so few rows is compared at the fewest that it reads.

    Parameters
    ----------
    curves : Curves
        Of one model.
    budget : float
        Share of the rows.

    Returns
    -------
    dict
        A result: ``value`` is the smallest difference, codebook minus method, in relative score, and ``against`` names
        the method, ``retained`` the share of rows at which it is taken. The codebook is better than all where it is
        better than each: the interval's lower end is the lowest of the 95 % intervals. It is worse than some where one
        of them is better, corrected for their number m: the upper end is the lowest of the 1 - 0.05 / m intervals'
        upper ends. ``p_value`` accordingly: the largest of all, or m times the smallest. Empty where no such method,
        or not the codebook, was asked.
    """
    found: dict[str, np.ndarray] = {}
    shares: dict[str, float] = {}
    for method in intermediate_methods(curves.methods()):
        share = curves.lowest(method) if curves.has_one_budget(method) else max(budget, curves.lowest(method))
        values = (curves.at(OURS, share) - curves.at(method, share)).mean(1)
        if not np.isnan(values[0]):
            found[method], shares[method] = values, share
    if not found:
        return {}
    single = {method: curves.draws.estimate(values) for method, values in found.items()}
    level = 1 - (1 - next(iter(single.values())).level) / len(found)
    wide = {method: curves.draws.estimate(values, level=level) for method, values in found.items()}
    worst = min(single, key=lambda method: single[method].value)
    p_values = [own.p_value(0.0) for own in single.values()]
    better = min(own.value for own in single.values()) > 0
    p_value = max(p_values) if better else min(1.0, len(found) * p_values[list(single).index(worst)])
    low = min(own.low for own in single.values())
    high = min(own.high for own in wide.values())
    return single[worst].as_result() | {
        "interval": [low, max(low, high)],
        "against": worst,
        "retained": shares[worst],
        "n_methods": len(found),
        "p_value": p_value,
    }


def two_sided(difference: Estimate) -> float:
    """Return the p-value of a difference against none, from its value over the standard deviation of its draws.

    Holm's correction over a hundred differences needs p-values far below what a share of some thousand draws can tell.
    """
    spread = np.nan if difference.draws is None else float(np.std(difference.draws))
    if not spread:
        return float(difference.value == 0)
    return float(2 * norm.sf(abs(difference.value) / spread))


def judged(frame: pd.DataFrame, by: str = "mean") -> pd.DataFrame:
    """Add Holm's p-values over the rows that have one, and which way each difference is decided."""
    if "p_value" not in frame:
        return frame
    tested = frame["p_value"].notna()
    frame["p_holm"] = np.nan
    frame.loc[tested, "p_holm"] = holm(frame.loc[tested, "p_value"])
    frame["better"] = np.where(frame["p_holm"] <= LEVEL, np.sign(frame[by]), 0).astype(int)
    return frame


def _mark(marks: Mapping[str, Mapping[tuple[str, float], int]], method: str, budget: float) -> str:
    told = {1: "\u00a0▲", -1: "\u00a0▼"}.get(marks[OURS].get((method, budget), 0), "")
    is_random = method == BY_CHANCE or marks[BY_CHANCE].get((method, budget), 1) == 1
    return told + ("" if is_random else "\u00a0○")


def numbers_of(found: Estimate) -> dict[str, float]:
    return {
        "mean": found.value,
        "low": found.low,
        "high": found.high,
        "half_width": (found.high - found.low) / 2,
        "n": found.n,
        "n_images": found.n_clusters,
    }
