"""Intervals, rank correlations, ROC areas and paired comparisons for measurements that are grouped by image.

Positions of one image are not independent of each other, so every bootstrap here draws whole images
(`clusters`) with replacement, which `scipy.stats.bootstrap` does not: it draws rows. A drawn sample is represented by
how often each cluster was drawn; each statistic is computed from those counts for many resamples at once. Areas count
pairs inside strata, which `sklearn.metrics.roc_auc_score` does not; without strata tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr

from rcblib.records import ParameterError

_BLOCK_ELEMENTS = 2_000_000  # elements of one intermediate matrix: 16 MB in float64


@dataclass(frozen=True)
class Estimate:
    """Hold an estimate with its interval and what it was computed from.

    Attributes
    ----------
    value : float
        Estimate on the whole sample; NaN where it is undefined (such as the correlation with a constant).
    low, high : float
        Ends of the interval.
    n : int
        Rows used.
    n_clusters : int
        Independent units among them (images), the ones that the bootstrap draws.
    level : float
        Nominal coverage of the interval, in (0, 1).
    draws : numpy.ndarray or None
        ``(n_resamples,)`` values on the resamples, where they were kept.
    """

    value: float
    low: float
    high: float
    n: int
    n_clusters: int
    level: float = 0.95
    draws: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """Format as ``0.871 [0.842, 0.897]``."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def p_value(self, bound: float) -> float:
        """Return the two-sided p-value of the draws against a bound: twice the smaller share on either side of it.

        NaN where no draws were kept. With B draws at least 2 / (B + 1).
        """
        if self.draws is None:
            return np.nan
        beyond = min((self.draws <= bound).sum(), (self.draws >= bound).sum())
        return float(min(1.0, 2 * (beyond + 1) / (len(self.draws) + 1)))

    def as_result(self) -> dict[str, Any]:
        """Return the estimate as `rcblib.runs.results.write_results` takes it: value, n, interval and more.

        Where the estimate is undefined, value and interval are ``None``, because JSON has no NaN.
        """
        defined = not np.isnan(self.value)
        return {
            "value": self.value if defined else None,
            "n": self.n,
            "interval": [self.low, self.high] if defined else None,
            "n_clusters": self.n_clusters,
            "level": self.level,
        }


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Any] | None = None,
    *,
    generator: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Estimate a mean with a percentile interval from a bootstrap over clusters.

    Parameters
    ----------
    values : array_like
        ``(n,)`` measurements.
    clusters : array_like, optional
        ``(n,)`` label of the unit (image) of each measurement; ``None`` means that each is its own unit.
    generator : numpy.random.Generator
        Source of the draws.
    n_resamples : int
        Bootstrap samples.
    level : float
        Nominal coverage, in (0, 1).

    Raises
    ------
    ParameterError
        If values are missing, not finite, or of another length than `clusters`.
    """
    values = _vector("values", values)
    codes, n_clusters = _cluster_codes(clusters, len(values))
    sums = np.bincount(codes, weights=values, minlength=n_clusters)
    sizes = np.bincount(codes, minlength=n_clusters).astype(float)
    return _bootstrap(
        lambda drawn: (drawn @ sums) / (drawn @ sizes), len(values), n_clusters, generator, n_resamples, level
    )


def mean_table(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str],
    cluster: str | None = None,
    *,
    generator: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> pd.DataFrame:
    """Average one column in groups; each mean comes with its interval from a bootstrap over clusters.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a measurement.
    value : str
        Column to average.
    by : str or sequence of str
        Columns that form the groups, at least one.
    cluster : str, optional
        Column with the unit (image) of each row.

    Returns
    -------
    pandas.DataFrame
        The columns of `by`, then ``mean``, ``low``, ``high``, ``n`` and ``n_clusters``; one row a group,
        groups sorted.
    """
    by = [by] if isinstance(by, str) else list(by)
    for column in [value, *by, *([cluster] if cluster else [])]:
        if column not in frame.columns:
            raise ParameterError("column", column, f"one of {list(frame.columns)}")
    rows = []
    for keys, group in frame.groupby(by, observed=True, sort=True):
        clusters = group[cluster].to_numpy() if cluster else None
        estimate = mean_interval(
            group[value].to_numpy(), clusters, generator=generator, n_resamples=n_resamples, level=level
        )
        rows.append((*keys, estimate.value, estimate.low, estimate.high, estimate.n, estimate.n_clusters))
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n", "n_clusters"])


def paired_ratio(
    first: Sequence[float], second: Sequence[float], clusters: Sequence[Any] | None = None, **draws: Any
) -> Estimate:
    """Estimate mean(first) / mean(second) over the same items, such as pruned over unpruned score.

    The value is NaN where mean(second) is 0; resamples in which that happens are left out.

    Parameters
    ----------
    first, second : array_like
        ``(n,)`` scores of the same n items, in the same order.
    clusters, **draws
        As in `mean_interval`.
    """
    return mean_of_ratios(first, second, np.zeros(len(first)), clusters, **draws)


def mean_of_ratios(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[Any],
    clusters: Sequence[Any] | None = None,
    *,
    generator: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean over groups of mean(first) / mean(second), such as the relative score over tasks.

    Every group weighs the same, however many items it has. A resample draws whole clusters, with the items that
    they have in any group. The value is NaN where mean(second) of a group is 0; resamples in which that happens,
    or which hold nothing of a group, are left out.

    Parameters
    ----------
    first, second : array_like
        ``(n,)`` scores of the same n items, in the same order.
    groups : array_like
        ``(n,)`` label of the group (task) of each item.
    clusters, generator, n_resamples, level
        As in `mean_interval`.
    """
    first, second = _pair(first, second, "first", "second")
    codes, n_clusters = _cluster_codes(clusters, len(first))
    group, n_groups = _cluster_codes(groups, len(first), "groups")
    members = [group == number for number in range(n_groups)]
    above, below = (
        np.stack([np.bincount(codes[rows], weights=values[rows], minlength=n_clusters) for rows in members])
        for values in (first, second)
    )

    def mean_ratio(counts: np.ndarray) -> np.ndarray:
        return _divide(counts @ above.T, counts @ below.T).mean(axis=1)

    return _bootstrap(mean_ratio, len(first), n_clusters, generator, n_resamples, level)


def spearman(x: Sequence[float], y: Sequence[float], clusters: Sequence[Any], **draws: Any) -> Estimate:
    """Estimate Spearman's rank correlation inside clusters (images), ties at their mean rank: the mean over clusters.

    Differences between images do not enter. Clusters in which x or y is constant have no coefficient and are left out
    (`Estimate.n_clusters` counts the rest).

    Parameters
    ----------
    x, y : array_like
        ``(n,)`` paired measurements.
    clusters : array_like
        ``(n,)`` label of the unit (image) of each pair.
    **draws
        ``generator``, ``n_resamples`` (1000) and ``level`` as in `mean_interval`.

    Raises
    ------
    ParameterError
        If the inputs differ in length or are not finite.
    """
    return _inside(spearmanr, x, y, clusters, **draws)


def kendall(x: Sequence[float], y: Sequence[float], clusters: Sequence[Any], **draws: Any) -> Estimate:
    """Estimate Kendall's tau-b inside clusters, as `spearman` does its coefficient."""
    return _inside(kendalltau, x, y, clusters, **draws)


def _inside(
    coefficient: Callable[..., Any],
    x: Sequence[float],
    y: Sequence[float],
    clusters: Sequence[Any],
    n_resamples: int = 1000,
    **draws: Any,
) -> Estimate:
    """Average a coefficient of scipy's over the clusters that have one."""
    x, y = _pair(x, y, "x", "y")
    codes, n_clusters = _cluster_codes(clusters, len(x))
    members = [np.flatnonzero(codes == code) for code in range(n_clusters)]
    members = [rows for rows in members if np.ptp(x[rows]) and np.ptp(y[rows])]
    if not members:
        return Estimate(np.nan, np.nan, np.nan, len(x), 0, draws.get("level", 0.95))
    values = [coefficient(x[rows], y[rows]).statistic for rows in members]
    return replace(mean_interval(values, n_resamples=n_resamples, **draws), n=sum(map(len, members)))


def roc_auc(
    scores: Sequence[float],
    labels: Sequence[bool],
    clusters: Sequence[Any] | None = None,
    *,
    generator: np.random.Generator,
    strata: Sequence[Any] | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Estimate the area under the ROC curve: P(score of a positive > score of a negative), ties counted half.

    Parameters
    ----------
    scores : array_like
        ``(n,)`` signal; higher should mean positive (an area below 0.5 says that it is the other way round).
    labels : array_like of bool
        ``(n,)`` truth.
    clusters, generator, n_resamples, level
        As in `mean_interval`. Resamples without a pair to compare are left out.
    strata : array_like, optional
        ``(n,)`` label of the stratum of each row: only pairs of the same stratum are compared, so that what
        differs between strata does not enter. The estimate is NaN where no stratum holds both classes.

    Raises
    ------
    ParameterError
        If lengths differ, scores are not finite, or labels are not of both classes.
    """
    scores = _vector("scores", scores)
    labels = np.asarray(labels)
    if labels.shape != scores.shape:
        raise ParameterError("labels", f"shape {labels.shape}", f"the shape of scores, {scores.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ParameterError("labels", np.unique(labels)[:5].tolist(), "True and False (or 1 and 0) only")
    positive = labels.astype(bool)
    if positive.all() or not positive.any():
        raise ParameterError("labels", f"only {bool(positive[0])}", "at least one positive and one negative")
    codes, n_clusters = _cluster_codes(clusters, len(scores))
    strata = np.zeros(len(scores)) if strata is None else strata
    layer, n_strata = _cluster_codes(strata, len(scores), "strata")
    order = np.lexsort((scores, layer))
    is_positive, layer, scores = positive[order].astype(float), layer[order], scores[order]
    is_new = (np.diff(scores) != 0) | (np.diff(layer) != 0)
    starts = np.flatnonzero(np.concatenate([[True], is_new]))  # of runs of equal scores in a stratum
    first_run = np.searchsorted(layer[starts], np.arange(n_strata))  # of each stratum

    def area(counts: np.ndarray) -> np.ndarray:
        weights = counts[:, codes[order]]
        positives = np.add.reduceat(weights * is_positive, starts, axis=1)
        negatives = np.add.reduceat(weights * (1 - is_positive), starts, axis=1)
        before = np.cumsum(negatives, axis=1) - negatives
        below = before - before[:, first_run][:, layer[starts]] + negatives / 2
        of_stratum = (np.add.reduceat(each, first_run, axis=1) for each in (positives, negatives))
        return _divide((positives * below).sum(axis=1), np.prod([*of_stratum], axis=0).sum(axis=1))

    return _bootstrap(area, len(scores), n_clusters, generator, n_resamples, level)


def _bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    n_clusters: int,
    generator: np.random.Generator,
    n_resamples: int,
    level: float,
) -> Estimate:
    """Compute `statistic`, which maps counts ``(b, n_clusters)`` to ``(b,)``, on the sample and resamples."""
    check_draws(generator, n_resamples, level)
    value = float(statistic(np.ones((1, n_clusters)))[0])
    if np.isnan(value):
        return Estimate(value, np.nan, np.nan, n, n_clusters, level)
    values = [statistic(counts) for counts in drawn_counts(n, n_clusters, generator, n_resamples)]
    low, high = np.nanquantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, n_clusters, level)


def check_draws(generator: object, n_resamples: int, level: float) -> None:
    """Raise a `ParameterError` for the first of the parameters of a bootstrap that cannot be used."""
    if not isinstance(generator, np.random.Generator):
        raise ParameterError("generator", generator, "a numpy.random.Generator")
    if n_resamples < 1:
        raise ParameterError("n_resamples", n_resamples, "an integer of at least 1")
    if not 0 < level < 1:
        raise ParameterError("level", level, "a number above 0 and below 1")


def drawn_counts(
    n: int, n_clusters: int, generator: np.random.Generator, n_resamples: int
) -> Iterator[np.ndarray]:
    """Yield how often each resample draws each cluster, ``(b, n_clusters)``, block by block for n rows."""
    block = max(1, _BLOCK_ELEMENTS // n)
    shares = np.full(n_clusters, 1 / n_clusters)
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        yield generator.multinomial(n_clusters, shares, size=size).astype(float)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def _vector(name: str, values: Sequence[float]) -> np.ndarray:
    """Return finite float64 values ``(n,)``, n at least 1, or raise."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ParameterError(name, f"shape {values.shape}", "one dimension and at least one value")
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise ParameterError(name, f"{n_bad} of {len(values)} values not finite", "finite values")
    return values


def _pair(
    first: Sequence[float], second: Sequence[float], first_name: str, second_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return two finite vectors of one length, or raise."""
    first, second = _vector(first_name, first), _vector(second_name, second)
    if len(first) != len(second):
        raise ParameterError(second_name, f"{len(second)} values", f"as many as {first_name}: {len(first)}")
    return first, second


def _cluster_codes(clusters: Sequence[Any] | None, n: int, name: str = "clusters") -> tuple[np.ndarray, int]:
    """Return each row's cluster as a number from 0, and how many clusters there are."""
    if clusters is None:
        return np.arange(n), n
    clusters = np.asarray(clusters)
    if clusters.shape != (n,):
        raise ParameterError(name, f"shape {clusters.shape}", f"one label a value: ({n},)")
    labels, codes = np.unique(clusters, return_inverse=True)
    return codes, len(labels)
