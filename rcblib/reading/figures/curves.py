"""Draw curves: signals over ranks, scores over budgets, means over classes, and what training printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rcblib.reading.figures.finding import tell
from rcblib.reading.figures.style import CYCLE, INK, MARKERS, MUTED, need_columns, signal_color
from rcblib.reading.figures.words import (
    lead_of_scores,
    words_of_means,
    words_of_ranks,
    words_of_scores,
    words_of_training,
)
from rcblib.reading.labels import label_of, method_label
from rcblib.records import ParameterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def signals_over_rank(axes: Axes, frame: pd.DataFrame, signals: Sequence[str]) -> list[Axes]:
    """Draw up to three signals over sorted positions, each on a y axis of its own in its own colour.

    With one row a position the values are drawn as points joined by a thin line. With several (images), the line is
    their median and the band spans the middle half.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw; the first signal's axis.
    frame : pandas.DataFrame
        One row a position (and image), with ``rank``, its place by attention.
    signals : sequence of str
        One to three columns.

    Returns
    -------
    list of matplotlib.axes.Axes
        One a signal, in order.

    Source: Yang et al. 2025, the figure that sets attention against output probabilities.
    """
    if not 1 <= len(signals) <= 3:
        raise ParameterError("signals", list(signals), "one to three columns")
    need_columns(frame, ["rank", *signals])
    drawn = [axes] + [axes.twinx() for _ in signals[1:]]
    half = ("pi", 50) if frame["rank"].duplicated().any() else None
    look = {"errorbar": half, "err_kws": {"alpha": 0.13, "linewidth": 0}, "markersize": 3, "linewidth": 0.8}
    for number, (on, column) in enumerate(zip(drawn, signals, strict=True)):
        color = signal_color(column, CYCLE[number])
        sns.lineplot(
            frame, x="rank", y=column, estimator="median", ax=on, color=color, marker=MARKERS[number],
            markeredgewidth=0, **look,
        )  # fmt: skip
        side = "left" if number == 0 else "right"
        for name, spine in on.spines.items():
            spine.set_visible(name == side or (number == 0 and name == "bottom"))
        on.spines[side].set(color=color, linewidth=1.4)
        if number == 2:
            on.spines["right"].set_position(("outward", 58))
        on.set_ylabel(label_of(column, unit=True), color=color)
        on.tick_params(axis="y", colors=color)
        on.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("position, by decreasing attention")
    tell(axes, words_of_ranks(frame, signals))
    return drawn


def score_against_retained(
    axes: Axes,
    frame: pd.DataFrame,
    *,
    order: Sequence[str] | None = None,
    reference: float | None = None,
    chance: float | None = None,
    legend: bool = True,
) -> Axes:
    """Draw score over the share of visual tokens that the LLM saw, one line a method, intervals as bands.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    frame : pandas.DataFrame
        One row a method and budget: ``method``, ``retained`` (fraction, in (0, 1]; the measured mean, which for an
        adaptive budget differs from the one asked for), ``mean``, ``low`` and ``high`` of the score.
    order : sequence of str, optional
        All methods in the order of their colours, so that plots without some of them agree; the frame's own
        order where absent.
    reference : float, optional
        Score with all tokens, as a line across.
    chance : float, optional
        Score of guessing, as a dotted line across.
    legend : bool
        Whether to name the lines.
    """
    need_columns(frame, ["method", "retained", "mean", "low", "high"])
    share = frame["retained"]
    if not ((share > 0) & (share <= 1)).all():
        raise ParameterError(
            "retained", [float(share.min()), float(share.max())], "fractions above 0, up to 1"
        )
    if reference is not None:
        axes.axhline(reference, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="all tokens", zorder=1)
    if chance is not None:
        axes.axhline(chance, color=MUTED, linewidth=0.9, linestyle=":", label="guessing", zorder=1)
    methods = list(frame["method"].unique()) if order is None else list(order)
    unknown = sorted(set(frame["method"]) - set(methods))
    if unknown:
        raise ParameterError("order", methods, f"a list that holds {unknown} too")
    for number, method in enumerate(methods):
        rows = frame[frame["method"] == method].sort_values("retained")
        if len(rows):
            look = {"color": CYCLE[number % len(CYCLE)], "marker": MARKERS[number % len(MARKERS)]}
            _band(
                axes, rows["retained"], rows, "mean", alpha=0.15, label=method_label(method), zorder=3, **look
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _BUDGETS if tick >= 0.8 * share.min()]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{100 * tick:g}%"))
    axes.set_xlabel("visual tokens retained")
    axes.set_ylabel("score")
    axes.yaxis.grid(True)
    if legend:
        axes.legend()
    tell(axes, words_of_scores(frame), lead_of_scores(frame))
    return axes


def score_grid(
    frame: pd.DataFrame,
    *,
    references: Mapping[Any, float] | None = None,
    chances: Mapping[Any, float] | None = None,
    n_columns: int = 3,
) -> Figure:
    """Draw `score_against_retained` once for each task, with one legend.

    Parameters
    ----------
    frame : pandas.DataFrame
        As for `score_against_retained`, with ``task`` besides.
    references, chances : Mapping, optional
        Task to the score with all tokens and to that of guessing.
    n_columns : int
        Plots side by side.
    """
    need_columns(frame, ["task"])
    values, methods = list(frame["task"].unique()), list(frame["method"].unique())
    n_columns = min(n_columns, len(values))
    n_rows = -(-len(values) // n_columns)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(3.1 * n_columns, 2.5 * n_rows + 0.5), squeeze=False, sharey=True
    )
    found: dict[str, Any] = {}
    for number, (axes, value) in enumerate(zip(grid.flat, values, strict=False)):
        levels = {"reference": (references or {}).get(value), "chance": (chances or {}).get(value)}
        rows = frame[frame["task"] == value]
        score_against_retained(axes, rows, order=methods, legend=False, **levels)
        axes.set_title(label_of(value))
        axes.set_ylabel("score" if number % n_columns == 0 else "")
        axes.set_xlabel("visual tokens retained" if number + n_columns >= len(values) else "")
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    for axes in grid.flat[len(values) :]:
        axes.set_visible(False)
    figure.legend(
        found.values(), found.keys(), loc="outside upper center", ncols=min(len(found), 2 * n_columns)
    )
    return figure


def mean_with_band(
    axes: Axes,
    frame: pd.DataFrame,
    x: str,
    signal: str = "",
    *,
    mean: str = "mean",
    label: str = "",
    color: str | None = None,
    marker: str | None = None,
) -> Axes:
    """Draw a mean with its interval over the values of one column, such as ranks, layers or classes.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw; several calls draw several lines.
    frame : pandas.DataFrame
        One row a value of `x`, in order, with `mean`, ``low`` and ``high``, as
        `rcblib.reading.statistics.mean_table` makes it.
    x : str
        Column along the axis; values that are no numbers are evenly spaced.
    signal : str
        Signal whose label the y axis and whose colour the line gets.
    mean : str
        Column with the mean.
    label : str
        Name of the line, for a legend.
    color : str, optional
        Colour, in place of the signal's.
    marker : str, optional
        Marker of the points; by default up to 40 points get one.
    """
    need_columns(frame, [x, mean, "low", "high"])
    is_number = pd.api.types.is_numeric_dtype(frame[x])
    places = frame[x].to_numpy() if is_number else np.arange(len(frame))
    marker = marker or ("o" if len(frame) <= 40 else "")
    color = color or signal_color(signal)
    _band(axes, places, frame, mean, color=color, marker=marker, label=label_of(label) or None)
    if not is_number:
        axes.set_xticks(places, [label_of(value) for value in frame[x]])
    axes.set_xlabel(label_of(x, unit=True))
    if signal:
        axes.set_ylabel(label_of(signal, unit=True))
    axes.yaxis.grid(True)
    tell(axes, words_of_means(frame, x, mean, label_of(label or signal) or "the mean"))
    return axes


def _band(
    axes: Axes, places: Sequence[float], rows: pd.DataFrame, mean: str, alpha: float = 0.2, **look: Any
) -> None:
    """Draw a line with the band between ``low`` and ``high``."""
    axes.plot(places, rows[mean], **look)
    axes.fill_between(
        places, rows["low"], rows["high"], color=look["color"], alpha=alpha, linewidth=0, zorder=2
    )


def learning_curves(frame: pd.DataFrame, *, labels: Mapping[str, str] | None = None) -> Figure:
    """Draw what training printed: losses above, shares of right answers below, one column a kind of stage.

    Losses that span more than a factor of five are drawn on a logarithmic axis.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a quantity and moment: ``kind``, ``stage``, ``scenes``, ``quantity`` (``loss`` is drawn above, the rest
        below) and ``value``. Stages follow one another along the scenes; dotted lines part them.
    labels : Mapping, optional
        Quantity to its name in the legends.
    """
    need_columns(frame, ["kind", "stage", "scenes", "quantity", "value"])
    kinds = list(frame["kind"].unique())
    figure, grid = plt.subplots(
        2, len(kinds), figsize=(2.5 * len(kinds), 4.6), squeeze=False, sharex="col", height_ratios=(1, 1.3)
    )
    for (upper, lower), (kind, rows) in zip(grid.T, frame.groupby("kind", sort=False), strict=True):
        is_loss = rows["quantity"] == "loss"
        ends = rows.groupby("stage", sort=False)["scenes"].max()
        for axes, part in ((upper, rows[is_loss]), (lower, rows[~is_loss])):
            for number, (quantity, values) in enumerate(part.groupby("quantity", sort=False)):
                look = {"color": INK if quantity == "loss" else CYCLE[number % len(CYCLE)]}
                look["linestyle"] = "-" if number < len(CYCLE) else "--"
                # Few moments are marked, many make a line.
                look["marker"] = "o" if values.groupby("stage")["scenes"].size().max() <= 12 else ""
                name: str | None = (labels or {}).get(quantity) or label_of(quantity)
                for _, points in values.groupby("stage", sort=False):
                    axes.plot(
                        points["scenes"], points["value"], label=name, linewidth=1.2, markersize=2.5, **look
                    )
                    name = None  # the first stage names the line
            for end in ends[:-1]:
                axes.axvline(end, color=MUTED, linestyle=":", linewidth=0.8)
            axes.yaxis.grid(True)
        losses = rows.loc[is_loss, "value"]
        if losses.max() > 5 * losses.min() > 0:
            upper.set_yscale("log")
            upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            upper.yaxis.set_minor_locator(NullLocator())
        upper.set_title(label_of(kind))
        tell(upper, words_of_training(rows, labels or {}))
        lower.set(ylim=(-0.03, 1.03), xlabel="scenes")
        lower.xaxis.set_major_formatter(FuncFormatter(_thousands))
        lower.xaxis.set_major_locator(MaxNLocator(4))
        lower.legend(loc="upper left", bbox_to_anchor=(0, -0.3), fontsize="x-small", borderpad=0)
    grid[0, 0].set_ylabel("loss")
    grid[1, 0].set_ylabel("share right")
    return figure


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
