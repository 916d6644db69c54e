"""Derive measures from probe tables: which tokens a signal calls low, how signals agree, where they lie.

A probe table is that of `rcblib.probe.run.probe`. "Of its image": among its probed positions, all views together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
import pandas as pd

from rcblib.reading.claims import interval_side
from rcblib.reading.statistics import Estimate, kendall, mean_interval, roc_auc, spearman
from rcblib.records import ParameterError
from rcblib.signals import SIGNALS, check_measured
from rcblib.tensors.checks import check_grid
from rcblib.tensors.geometry import window

_PLACE = ["image_id", "view"]

_NUMBERS = ["value", "low", "high", "n", "n_clusters"]  # of an estimate, as columns of the tables


def attention_columns(frame: pd.DataFrame, rows: str = "last") -> list[str]:
    """List the columns of text-to-image attention, one a layer of the LLM, first layer first.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table.
    rows : {"last", "question"}
        Attention of the last prompt token, or the mean over the text after the image.
    """
    signal = SIGNALS.get(f"attention_{rows}_layer_<layer>")
    if signal is None:
        raise ParameterError("rows", rows, "'last' or 'question'")
    return sorted(filter(signal.names, frame.columns), key=lambda column: int(column.rsplit("_", 1)[1]))


def without_copies(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop views that repeat an earlier view of their image, and add their attention to it.

    A photo that fills one tile is read twice, as a whole and as that tile, in the same tokens. What the LLM attends of
    the second it knows of the first as well, so both are one token that is attended as much as both together; its other
    signals are those of the first.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table.

    Returns
    -------
    pandas.DataFrame
        A copy. A view is taken for a repetition where the same positions say the same word alone, as surely, and with
        the same entropy, to five digits.
    """
    frame = frame.copy()
    attention = [column for column in frame.columns if column.startswith("attention_")]
    copies: list[int] = []
    for _, image in frame.groupby("image_id", sort=False):
        kept: list[pd.DataFrame] = []
        for _, view in image.groupby("view", sort=False):
            first = next((other for other in kept if _says_the_same(other, view)), None)
            if first is None:
                kept.append(view)
                continue
            frame.loc[first.index, attention] += view[attention].to_numpy()
            copies += list(view.index)
    return frame.drop(index=copies)


def _says_the_same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Tell whether the tokens of two views, each alone, give the same answers."""
    return (
        first["position"].tolist() == second["position"].tolist()
        and first["top1_id"].tolist() == second["top1_id"].tolist()
        and all(np.allclose(first[name], second[name], rtol=1e-5) for name in ("top1_probability", "entropy"))
    )


def with_mean_attention(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``attention_last`` and ``attention_question``: the means over layers of the columns of each kind.

    Returns
    -------
    pandas.DataFrame
        A copy; in [0, 1], higher = more attended. A probe table without attention stays without.
    """
    means = {
        f"attention_{rows}": frame[columns].mean(axis=1)
        for rows in ("last", "question")
        if (columns := attention_columns(frame, rows))
    }
    return frame.assign(**means)


def available(frame: pd.DataFrame, signals: Iterable[str]) -> list[str]:
    """Keep the signals that this model and these images have: their columns hold two different values at least.

    A vision encoder without [CLS] gives no [CLS] signals, own photos no coverage.

    Raises
    ------
    ParameterError
        If a column is missing that ought to be there, as `rcblib.signals.check_measured` tells.
    """
    signals = list(signals)
    check_measured(frame.columns, signals)
    return [name for name in signals if name in frame.columns and frame[name].nunique(dropna=True) > 1]


def lower_half(frame: pd.DataFrame, signal: str) -> pd.Series:
    """Tell which positions lie in the lower half of their image by a signal; of their view by one of its [CLS].

    Tiles have a [CLS] each, and how similar to it a token is can be compared inside a tile only. Of an odd number of
    positions the middle one is not in the lower half; equal values keep the order of positions.

    Returns
    -------
    pandas.Series
        Booleans on the index of `frame`.

    Raises
    ------
    ParameterError
        If the column is missing or a value is NaN.
    """
    within = _PLACE if signal.startswith("cls_") else ["image_id"]
    groups = _signal(frame, signal).groupby([frame[name] for name in within if name in frame])
    # The first of equal values counts as the highest, as in a rank by decreasing signal.
    rank = groups.rank(method="first", ascending=False)
    size = groups.transform("size")
    return rank > size - size // 2


def most_influential(frame: pd.DataFrame, signal: str = "global_divergence", share: float = 0.1) -> pd.Series:
    """Tell which positions belong to the share of their image with the largest signal.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table.
    signal : str
        Column; higher = matters more.
    share : float
        In (0, 1]; round(share * positions) of each image, half to even, at least one, ties by position.

    Returns
    -------
    pandas.Series
        Booleans on the index of `frame`.
    """
    if not 0 < share <= 1:
        raise ParameterError("share", share, "a number above 0, up to 1")
    groups = _signal(frame, signal).groupby(frame["image_id"])
    wanted = (share * groups.transform("size")).round().clip(lower=1)
    return groups.rank(method="first", ascending=False) <= wanted


def low_share(
    frame: pd.DataFrame, chosen: pd.Series, signal: str, *, generator: np.random.Generator
) -> Estimate | None:
    """Estimate how many of the chosen tokens a signal puts into the lower half of their image.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table.
    chosen : pandas.Series
        Booleans on its index, such as `recognised` or `most_influential`.
    signal : str
        Column; higher should mean that a token is worth keeping.
    generator : numpy.random.Generator
        Source of the bootstrap over images.

    Returns
    -------
    Estimate or None
        A fraction of the chosen tokens of all images together: 0 for a signal that puts every one into the upper
        half (what else is possible: ``best`` of `rcblib.reading.reliability`), 0.5 for one that knows nothing.
        ``None`` where no token is chosen.
    """
    is_low = lower_half(frame, signal)[chosen]
    if is_low.empty:
        return None
    return mean_interval(is_low.to_numpy(float), frame["image_id"][chosen].to_numpy(), generator=generator)


def correlation_table(
    frame: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    *,
    generator: np.random.Generator,
    coefficient: str = "spearman",
) -> pd.DataFrame:
    """Correlate pairs of signals by rank inside each image, with intervals over images.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table; rows in which either signal is NaN are left out of that pair.
    pairs : iterable of (str, str)
        Columns.
    generator : numpy.random.Generator
        Source of the bootstrap.
    coefficient : {"spearman", "kendall"}
        Which rank correlation.

    Returns
    -------
    pandas.DataFrame
        ``first``, ``second``, ``value``, ``low``, ``high``, ``n``, ``n_clusters``; one row a pair.

    Raises
    ------
    ParameterError
        If a column is missing, or the coefficient is another one.
    """
    pairs = list(pairs)
    for name in chain.from_iterable(pairs):
        _check_column(frame, name, "pairs")
    measures: dict[str, Callable[..., Estimate]] = {"spearman": spearman, "kendall": kendall}
    if coefficient not in measures:
        raise ParameterError("coefficient", coefficient, "'spearman' or 'kendall'")
    rows = []
    for first, second in pairs:
        known = frame[["image_id", first, second]].dropna()
        estimate = measures[coefficient](known[first], known[second], known["image_id"], generator=generator)
        rows.append({"first": first, "second": second, **_numbers(estimate)})
    return pd.DataFrame(rows, columns=["first", "second", *_NUMBERS])


def area_table(
    frame: pd.DataFrame,
    signals: Sequence[str],
    positive: pd.Series,
    *,
    generator: np.random.Generator,
    strata: pd.Series | None = None,
) -> pd.DataFrame:
    """Measure how well each signal tells positive positions from the others, as areas under the ROC curve.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table.
    signals : sequence of str
        Columns without NaN; higher should mean positive.
    positive : pandas.Series
        Booleans on the index of `frame`, of both kinds.
    generator : numpy.random.Generator
        Source of the bootstrap over images.
    strata : pandas.Series, optional
        Labels on the index of `frame`; only positions of the same stratum are compared.

    Returns
    -------
    pandas.DataFrame
        ``signal``, ``value`` (0.5 = knows nothing, below = the other way round), ``low``, ``high``, ``n``,
        ``n_clusters``; one row a signal.
    """
    rows = []
    for signal in signals:
        values = _signal(frame, signal)
        estimate = roc_auc(values, positive, frame["image_id"], generator=generator, strata=strata)
        rows.append({"signal": signal, **_numbers(estimate)})
    return pd.DataFrame(rows, columns=["signal", *_NUMBERS])


def _numbers(estimate: Estimate) -> dict[str, float]:
    return {name: getattr(estimate, name) for name in _NUMBERS}


def as_estimates(table: pd.DataFrame, names: Iterable[str]) -> dict[str, Estimate]:
    """Turn the rows of a `correlation_table` or `area_table` into estimates, under the names given, in order.

    Raises
    ------
    ParameterError
        If there are not as many names as rows.
    """
    names = list(names)
    if len(names) != len(table):
        raise ParameterError("names", f"{len(names)} names", f"one a row: {len(table)}")
    rows = table[_NUMBERS].itertuples(index=False, name=None)
    return {name: Estimate(*row) for name, row in zip(names, rows, strict=True)}


def side(estimate: Estimate, reference: float) -> str:
    """Say on which side of a reference an estimate lies, so that prose can follow what was measured.

    Returns
    -------
    str
        ``"above"`` or ``"below"`` where the whole interval is, ``"undecided"`` where it contains the reference or
        the estimate is undefined.
    """
    return interval_side(estimate.low, estimate.high, reference)


def window_mean(frame: pd.DataFrame, column: str, grid: tuple[int, int] | None = None) -> pd.Series:
    """Average a column over the window of nine grid cells around every position.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table with all positions of every view.
    column : str
        Numeric column.
    grid : tuple of int, optional
        ``(height, width)`` of every view in tokens. By default each view's own, from its ``row`` and ``column``: tiles
        at the edge of a photo may be smaller than others.

    Returns
    -------
    pandas.Series
        On the index of `frame`.

    Raises
    ------
    ParameterError
        If a view lacks positions.
    """
    means = pd.Series(np.nan, index=frame.index)
    windows: dict[tuple[int, int], np.ndarray] = {}
    for (image_id, view), rows in frame.groupby(_PLACE, sort=False):
        height, width = grid or (int(rows["row"].max()) + 1, int(rows["column"].max()) + 1)
        n_tokens = height * width
        if (height, width) not in windows:
            check_grid((height, width), n_tokens, smallest=3)
            cells = [window(position, height, width) for position in range(n_tokens)]
            windows[height, width] = np.array(cells)
        if sorted(rows["position"]) != list(range(n_tokens)):
            raise ParameterError(
                "frame",
                f"{len(rows)} positions of image {image_id}, view {view}",
                f"all {n_tokens} positions",
            )
        ordered = rows.sort_values("position")
        means[ordered.index] = ordered[column].to_numpy(float)[windows[height, width]].mean(axis=1)
    return means


def on_grid(frame: pd.DataFrame, column: str, n_tokens: int) -> np.ndarray:
    """Lay a column of one view out over the grid, for heat maps and word maps.

    Parameters
    ----------
    frame : pandas.DataFrame
        Probe table of one view of one image.
    column : str
        Which column.
    n_tokens : int
        Grid cells.

    Returns
    -------
    numpy.ndarray
        ``(n_tokens,)`` in raster order. Cells that were not probed are NaN; in a column of text, empty.

    Raises
    ------
    ParameterError
        If the table holds several views or images.
    """
    if len(frame[_PLACE].drop_duplicates()) != 1:
        raise ParameterError(
            "frame", f"{len(frame[_PLACE].drop_duplicates())} views", "one view of one image"
        )
    values = frame[column].to_numpy()
    is_number = pd.api.types.is_numeric_dtype(frame[column])
    cells = np.full(n_tokens, np.nan) if is_number else np.full(n_tokens, "", dtype=object)
    cells[frame["position"].to_numpy()] = values
    return cells


def _check_column(frame: pd.DataFrame, name: str, parameter: str) -> None:
    if name not in frame.columns:
        raise ParameterError(parameter, name, f"one of {list(frame.columns)}")


def _signal(frame: pd.DataFrame, signal: str) -> pd.Series:
    """Return a column without NaN, or raise."""
    _check_column(frame, signal, "signal")
    if frame[signal].isna().any():
        raise ParameterError(
            "signal", f"{signal} with {int(frame[signal].isna().sum())} NaN", "a signal without NaN"
        )
    return frame[signal]
