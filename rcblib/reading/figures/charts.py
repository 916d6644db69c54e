"""Draw estimates with their intervals, distributions and clouds of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rcblib.reading.figures.finding import tell
from rcblib.reading.figures.style import ACCENT, CYCLE, INK, MUTED, need_columns, signal_color
from rcblib.reading.figures.words import digits, words_of_groups, words_of_intervals, words_of_points
from rcblib.reading.labels import label_of
from rcblib.records import ParameterError


def scatter_with_median(axes: Axes, frame: pd.DataFrame, x: str, y: str, *, short: bool = False) -> Axes:
    """Scatter one signal against another, with the median of y in twelve bins of x with equal counts.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    frame : pandas.DataFrame
        One row a position.
    x, y : str
        Columns.
    short : bool
        Whether axes get the signals' short labels, for small plots.
    """
    need_columns(frame, [x, y])
    rows = frame[[x, y]].dropna()
    # About 1,500 opaque points fill a small plot.
    alpha = float(np.clip(600 / max(len(rows), 1), 0.04, 0.6))
    axes.scatter(rows[x], rows[y], s=9, color=signal_color(y), alpha=alpha, linewidth=0, rasterized=True)
    bins = pd.qcut(rows[x].rank(method="first"), min(12, len(rows)), labels=False)
    middle = rows.groupby(bins).median()
    axes.plot(middle[x], middle[y], color=INK, marker="o", markersize=3.5, linewidth=1.1, label="median")
    axes.set(xlabel=label_of(x, unit=True, short=short), ylabel=label_of(y, unit=True, short=short))
    if len(middle):
        ends = [digits(value) for value in (middle[y].iloc[0], middle[y].iloc[-1])]
        tell(
            axes,
            f"median {label_of(y)} {ends[0]} where {label_of(x)} is lowest, {ends[1]} where it is highest",
        )
    return axes


def interval_plot(
    axes: Axes,
    frame: pd.DataFrame,
    *,
    label: str = "signal",
    reference: float | None = None,
    bound: str | None = None,
    hue: str | None = None,
    xlabel: str = "",
) -> Axes:
    """Draw estimates with their intervals as points and bars, one line a label, the first one on top.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    frame : pandas.DataFrame
        One row an estimate, with `label`, ``value``, ``low`` and ``high``.
    label : str
        Column with what is estimated.
    reference : float, optional
        Value that means "no effect", as a line.
    bound : str, optional
        Column with a value that each row is compared with, drawn as a tick across its line.
    hue : str, optional
        Column that tells rows of one label apart: each value has a colour and a place in the legend. Without it every
        row has a line of its own.
    xlabel : str
        What is estimated, with its direction.
    """
    need_columns(frame, [label, "value", "low", "high", *([bound] if bound else []), *([hue] if hue else [])])
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    kinds = list(frame[hue].unique()) if hue else [None]
    labels = list(frame[label].unique()) if hue else list(frame[label])
    for number, row in enumerate(frame.to_dict("records")):
        middle, offset, color = number, 0.0, signal_color(str(row[label]))
        if hue:
            kind = kinds.index(row[hue])
            step = min(0.22, 0.8 / len(kinds))  # rows of neighbouring labels stay apart
            middle, offset = labels.index(row[label]), step * (kind - (len(kinds) - 1) / 2)
            color = CYCLE[kind % len(CYCLE)]
        line = middle + offset
        axes.plot([row["low"], row["high"]], [line, line], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot(row["value"], line, "o", color=color, markersize=4.5)
        if bound:
            axes.plot([row[bound]] * 2, [middle - 0.3, middle + 0.3], color=INK, linewidth=1.4)
    if hue:
        handles = [Line2D([], [], color=CYCLE[k % len(CYCLE)], marker="o") for k in range(len(kinds))]
        # Above the rows, of which it would cover some; it may reach over the names of rows to the left.
        # A page's figure is as wide as 110 letters.
        names = [label_of(kind) for kind in kinds]
        n_columns = max(110 // (max(map(len, names)) + 8), 1)
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": n_columns, "fontsize": "small"}
        axes.legend(handles, names, **place)
    # The axis says what is estimated, so the signal's own unit would mislead.
    _rows_of_names(axes, [label_of(name) for name in labels])
    axes.xaxis.grid(True)
    axes.set_xlabel(label_of(xlabel), loc="right")
    said = words_of_intervals(frame, label, reference=reference, bound=bound, hue=hue)
    tell(axes, f"{label_of(xlabel)}: {said}" if xlabel and said else said)
    return axes


def funnel(axes: Axes, counts: Mapping[str, int]) -> Axes:
    """Draw how many remain after each stage of a selection: one bar a stage, first on top.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    counts : Mapping
        Stage to what remains, in order; each number is written with its share of the first.
    """
    values = np.array(list(counts.values()))
    if not len(values) or (values < 1).any():
        raise ParameterError("counts", dict(counts), "at least one stage, each with a count of 1 or more")
    bars = axes.barh(range(len(values)), values, color=ACCENT, height=0.62)
    shares = ["", *(f" ({value / values[0]:.1%})" for value in values[1:])]
    axes.bar_label(
        bars, [f"{value:,}{share}" for value, share in zip(values, shares, strict=True)], padding=4
    )
    axes.set_xlim(0, values.max() * 1.15)
    _rows_of_names(axes, [label_of(name) for name in counts])
    tell(
        axes,
        ", ".join(
            f"{label_of(name)} {n:,}{share}" for (name, n), share in zip(counts.items(), shares, strict=True)
        ),
    )
    return axes


def _rows_of_names(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a plot, first on top, in place of its left axis."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def histograms(
    axes: Axes,
    groups: Mapping[str, Sequence[float]],
    *,
    label: str = "",
    bins: int | Sequence[float] = 40,
    cuts: Mapping[str, float] | None = None,
) -> Axes:
    """Compare the distributions of groups: outlines of equal area, each filled faintly in its own colour.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    groups : Mapping
        Name to values; the legend states how many there are.
    label : str
        What the values are: a signal, or words with the unit.
    bins : int or sequence of float
        Bins over the range of all groups together, or their edges.
    cuts : Mapping, optional
        Name to a value that is marked by a vertical line, such as a threshold.
    """
    if not groups or not all(len(values) for values in groups.values()):
        raise ParameterError("groups", list(groups), "at least one group, each with values")
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in groups.values()]), bins)
    for number, (name, values) in enumerate(groups.items()):
        color = CYCLE[number % len(CYCLE)]
        shares = np.histogram(values, edges)[0] / len(values)
        axes.stairs(shares, edges, color=color, alpha=0.18, fill=True)
        axes.stairs(
            shares, edges, color=color, linewidth=1.4, label=f"{label_of(name)} (n = {len(values):,})"
        )
    for number, (name, value) in enumerate((cuts or {}).items()):
        style = ("--", ":", "-.")[number % 3]
        axes.axvline(value, color=INK, linewidth=1.1, linestyle=style, label=label_of(name))
    axes.set(xlabel=label_of(label, unit=True), ylabel="share of the group, a bin")
    axes.legend()
    marks = [f"{label_of(name)} {digits(value)}" for name, value in (cuts or {}).items()]
    tell(axes, "; ".join([words_of_groups(groups, label), *marks]))
    return axes


def grouped_scatter(
    axes: Axes,
    groups: Mapping[str, np.ndarray],
    *,
    highlight: str | None = None,
    labels: tuple[str, str] | None = None,
) -> Axes:
    """Scatter groups of points in the plane, each in its own colour; without labels, also without ticks.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    groups : Mapping
        Name to points ``(n, 2)``; the legend states how many there are.
    highlight : str, optional
        Group drawn on top with large, outlined markers.
    labels : tuple of str, optional
        What the two axes are: signals, or words; ``None`` for an embedding whose axes mean nothing.
    """
    n_all = sum(map(len, groups.values()))
    alpha = float(np.clip(900 / max(n_all, 1), 0.08, 0.7))
    for number, (name, points) in enumerate(groups.items()):
        points = np.asarray(points)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ParameterError(f"groups[{name!r}]", f"shape {points.shape}", "points (n, 2)")
        look = {"s": 9, "alpha": alpha, "linewidth": 0, "marker": "o", "zorder": 2}
        if name == highlight:
            size = float(np.clip(3000 / max(len(points), 1), 10, 30))
            look = {
                "s": size,
                "alpha": 0.95,
                "linewidth": 0.6,
                "marker": "X",
                "zorder": 3,
                "edgecolor": "black",
            }
        text = f"{label_of(name)} (n = {len(points):,})"
        axes.scatter(*points.T, color=CYCLE[number % len(CYCLE)], label=text, rasterized=True, **look)
    if labels is None:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    else:
        axes.set(xlabel=label_of(labels[0], unit=True), ylabel=label_of(labels[1], unit=True))
    for handle in axes.legend().legend_handles:
        handle.set(alpha=1, sizes=[30])
    tell(axes, words_of_points(groups, highlight, labels))
    return axes
