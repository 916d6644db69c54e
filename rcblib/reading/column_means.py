"""Estimate the means of many columns on the same draws of rows: a fraction of the time of one after the other."""

from __future__ import annotations

import numpy as np

from rcblib.reading.statistics import Estimate, check_draws, drawn_counts
from rcblib.records import ParameterError


def mean_intervals(
    values: np.ndarray,
    *,
    generator: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> list[Estimate]:
    """Estimate the mean of each column, as `mean_interval` does, all columns on the same draws of rows.

    Parameters
    ----------
    values : array_like
        ``(n, k)``: k measurements of each of n units (images), finite.
    generator, n_resamples, level
        As in `mean_interval`.

    Returns
    -------
    list of Estimate
        One a column.

    Raises
    ------
    ParameterError
        As `mean_interval`.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or 0 in values.shape:
        raise ParameterError("values", f"shape {values.shape}", "two dimensions and at least one value")
    if n_bad := int((~np.isfinite(values)).sum()):
        raise ParameterError("values", f"{n_bad} of {values.size} values not finite", "finite values")
    check_draws(generator, n_resamples, level)
    n = len(values)
    drawn = [counts @ values / n for counts in drawn_counts(n, n, generator, n_resamples)]
    ends = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Estimate(float(value), float(low), float(high), n, n, level)
        for value, low, high in zip(values.mean(0), *ends, strict=True)
    ]
