"""Draw curves, intervals and distributions."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rcblib.records import ParameterError

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure
from rcblib.reading.figures.style import (
    ACCENT,
    CYCLE,
    DIVERGING,
    INK,
    MARKERS,
    MUTED,
    EstimateLike,
    budget_ticks,
    need_columns,
    signal_color,
    signal_label,
    signal_parts,
    thousands,
)


def signals_over_rank(
    axes: Axes,
    frame: pd.DataFrame,
    signals: Sequence[str] = ("attention", "top1", "global"),
    *,
    x: str = "rank",
    labels: Mapping[str, str] | None = None,
) -> list[Axes]:
    """Draw up to three signals over sorted positions, each on a y axis of its own in its own colour.

    With one row a position the values are drawn as points joined by a thin line. With several (images), the line is
    their median and the band spans the middle half.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw; the first signal's axis.
    frame : pandas.DataFrame
        One row a position (and image).
    signals : sequence of str
        One to three columns.
    x : str
        Column with the place in the order, such as the rank by attention.
    labels : Mapping, optional
        Column to axis label, in place of `signal_label`.

    Returns
    -------
    list of matplotlib.axes.Axes
        One a signal, in order.

    Source: Yang et al. 2025, the figure that sets attention against output probabilities.
    """
    if not 1 <= len(signals) <= 3:
        raise ParameterError("signals", list(signals), "one to three columns")
    need_columns(frame, [x, *signals])
    drawn = [axes] + [axes.twinx() for _ in signals[1:]]
    for number, (on, column) in enumerate(zip(drawn, signals, strict=True)):
        label, color = signal_parts(column, column, CYCLE[number])
        groups = frame.groupby(x)[column]
        middle = groups.median()
        on.plot(middle.index, middle, color=color, marker=MARKERS[number], markersize=3, linewidth=0.8)
        if groups.size().max() > 1:
            quarters = groups.quantile(0.25), groups.quantile(0.75)
            on.fill_between(middle.index, *quarters, color=color, alpha=0.13, linewidth=0)
        side = "left" if number == 0 else "right"
        for name, spine in on.spines.items():
            spine.set_visible(name == side or (number == 0 and name == "bottom"))
        on.spines[side].set(color=color, linewidth=1.4)
        if number == 2:
            on.spines["right"].set_position(("outward", 58))
        on.set_ylabel((labels or {}).get(column, label), color=color)
        on.tick_params(axis="y", colors=color)
        on.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel({"rank": "position, by decreasing attention"}.get(x, x.replace("_", " ")))
    return drawn


def scatter_with_correlation(
    axes: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str,
    estimate: EstimateLike | None = None,
    *,
    name: str = "Spearman",
    n_bins: int = 12,
    labels: Mapping[str, str] | None = None,
) -> Axes:
    """Scatter one signal against another, with the median of y along x and the rank correlation.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    frame : pandas.DataFrame
        One row a position.
    x, y : str
        Columns.
    estimate : Estimate, optional
        The correlation with its interval, written above the plot.
    name : str
        Which coefficient it is.
    n_bins : int
        Bins of x with equal counts, whose medians form the line.
    labels : Mapping, optional
        Column to axis label, in place of `signal_label`.
    """
    need_columns(frame, [x, y])
    rows = frame[[x, y]].dropna()
    # About 1,500 opaque points fill a small plot.
    alpha = float(np.clip(600 / max(len(rows), 1), 0.04, 0.6))
    axes.scatter(rows[x], rows[y], s=9, color=signal_color(y), alpha=alpha, linewidth=0, rasterized=True)
    bins = pd.qcut(rows[x].rank(method="first"), min(n_bins, len(rows)), labels=False)
    middle = rows.groupby(bins).median()
    axes.plot(middle[x], middle[y], color=INK, marker="o", markersize=3.5, linewidth=1.1, label="median")
    axes.set_xlabel((labels or {}).get(x, signal_label(x)))
    axes.set_ylabel((labels or {}).get(y, signal_label(y)))
    if estimate is not None:
        axes.set_title(
            f"{name} {estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}], n = {estimate.n:,}"
        )
    return axes


def score_against_retained(
    axes: Axes,
    frame: pd.DataFrame,
    *,
    hue: str = "pruner",
    order: Sequence[str] | None = None,
    x: str = "retained",
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
        One row a method and budget: `hue`, `x` (fraction retained, in (0, 1]; the measured mean, which for an
        adaptive budget differs from the one asked for), ``mean``, ``low`` and ``high`` of the score.
    hue : str
        Column that names the method.
    order : sequence of str, optional
        All methods in the order of their colours, so that plots without some of them agree; the frame's own
        order where absent.
    x : str
        Column with the fraction retained.
    reference : float, optional
        Score with all tokens, as a line across.
    chance : float, optional
        Score of guessing, as a dotted line across.
    legend : bool
        Whether to name the lines.
    """
    need_columns(frame, [hue, x, "mean", "low", "high"])
    if not ((frame[x] > 0) & (frame[x] <= 1)).all():
        raise ParameterError(x, [float(frame[x].min()), float(frame[x].max())], "fractions above 0, up to 1")
    if reference is not None:
        axes.axhline(reference, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="all tokens", zorder=1)
    if chance is not None:
        axes.axhline(chance, color=MUTED, linewidth=0.9, linestyle=":", label="guessing", zorder=1)
    methods = list(frame[hue].unique()) if order is None else list(order)
    unknown = sorted(set(frame[hue]) - set(methods))
    if unknown:
        raise ParameterError("order", methods, f"a list that holds {unknown} too")
    for number, method in enumerate(methods):
        rows = frame[frame[hue] == method].sort_values(x)
        if rows.empty:
            continue
        color, marker = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
        axes.plot(rows[x], rows["mean"], color=color, marker=marker, label=str(method), zorder=3)
        axes.fill_between(rows[x], rows["low"], rows["high"], color=color, alpha=0.15, linewidth=0, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(budget_ticks(float(frame[x].min()))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.set_xlabel("visual tokens retained")
    axes.set_ylabel("score")
    axes.yaxis.grid(True)
    if legend:
        axes.legend()
    return axes


def score_grid(
    frame: pd.DataFrame,
    *,
    column: str = "task",
    hue: str = "pruner",
    x: str = "retained",
    references: Mapping[Any, float] | None = None,
    chances: Mapping[Any, float] | None = None,
    n_columns: int = 3,
) -> Figure:
    """Draw `score_against_retained` once for each value of a column, with one legend.

    Parameters
    ----------
    frame : pandas.DataFrame
        As for `score_against_retained`, with `column` besides.
    references, chances : Mapping, optional
        Value of `column` to the score with all tokens and to that of guessing.
    n_columns : int
        Plots side by side.
    """
    need_columns(frame, [column])
    values = list(frame[column].unique())
    n_columns = min(n_columns, len(values))
    n_rows = -(-len(values) // n_columns)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(3.1 * n_columns, 2.5 * n_rows + 0.5), squeeze=False, sharey=True
    )
    methods = list(frame[hue].unique())
    for number, (axes, value) in enumerate(zip(grid.flat, values, strict=False)):
        score_against_retained(
            axes,
            frame[frame[column] == value],
            hue=hue,
            order=methods,
            x=x,
            reference=(references or {}).get(value),
            chance=(chances or {}).get(value),
            legend=False,
        )
        axes.set_title(str(value).replace("_", " "))
        axes.set_ylabel("score" if number % n_columns == 0 else "")
        axes.set_xlabel("visual tokens retained" if number + n_columns >= len(values) else "")
    for axes in grid.flat[len(values) :]:
        axes.set_visible(False)
    found: dict[str, Any] = {}
    for axes in grid.flat[: len(values)]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        found.values(), found.keys(), loc="outside upper center", ncols=min(len(found), 2 * n_columns)
    )
    return figure


def interval_plot(
    axes: Axes,
    frame: pd.DataFrame,
    *,
    label: str = "signal",
    value: str = "value",
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
        One row an estimate, with `label`, `value`, ``low`` and ``high``.
    label, value : str
        Columns with what is estimated and the estimate.
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
    need_columns(frame, [label, value, "low", "high", *([bound] if bound else []), *([hue] if hue else [])])
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    kinds = list(frame[hue].unique()) if hue else [None]
    labels = list(frame[label].unique()) if hue else list(frame[label])
    for number, row in enumerate(frame.to_dict("records")):
        middle, offset, color = number, 0.0, signal_color(str(row[label]))
        if hue:
            kind = kinds.index(row[hue])
            middle, offset = labels.index(row[label]), 0.22 * (kind - (len(kinds) - 1) / 2)
            color = CYCLE[kind % len(CYCLE)]
        line = middle + offset
        axes.plot([row["low"], row["high"]], [line, line], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot(row[value], line, "o", color=color, markersize=4.5)
        if bound:
            axes.plot([row[bound]] * 2, [middle - 0.3, middle + 0.3], color=INK, linewidth=1.4)
    if hue:
        handles = [Line2D([], [], color=CYCLE[k % len(CYCLE)], marker="o") for k in range(len(kinds))]
        axes.legend(handles, [str(kind) for kind in kinds])
    # The axis says what is estimated, so the signal's own unit would mislead.
    names = [signal_label(str(name)).split(" (")[0] for name in labels]
    axes.set_yticks(range(len(labels)), names)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.grid(True)
    axes.set_xlabel(xlabel, loc="right")
    return axes


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
    color = color or signal_color(signal)
    is_number = pd.api.types.is_numeric_dtype(frame[x])
    places = frame[x].to_numpy() if is_number else np.arange(len(frame))
    marker = marker or ("o" if len(frame) <= 40 else "")
    axes.plot(places, frame[mean], color=color, marker=marker, label=label or None)
    axes.fill_between(places, frame["low"], frame["high"], color=color, alpha=0.2, linewidth=0)
    if not is_number:
        axes.set_xticks(places, [str(value) for value in frame[x]])
    axes.set_xlabel(signal_label(x).replace("_", " "))
    if signal:
        axes.set_ylabel(signal_label(signal))
    axes.yaxis.grid(True)
    return axes


def correlation_matrix(
    axes: Axes,
    lower: pd.DataFrame,
    upper: pd.DataFrame | None = None,
    *,
    labels: Mapping[str, str] | None = None,
) -> Axes:
    """Draw correlations of pairs of signals as a matrix: the values, beneath them the intervals.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw; about 0.85 inches a signal keep the numbers apart.
    lower : pandas.DataFrame
        One row a pair: ``first``, ``second``, ``value``, ``low``, ``high``. Signals appear in the order in which the
        pairs name them.
    upper : pandas.DataFrame, optional
        The same pairs by another coefficient, drawn above the diagonal.
    labels : Mapping, optional
        Column to label, in place of `signal_label`.
    """
    for frame in (lower, *([upper] if upper is not None else [])):
        need_columns(frame, ["first", "second", "value", "low", "high"])
    names = list(dict.fromkeys([*lower["first"], *lower["second"]]))
    place = {name: number for number, name in enumerate(names)}
    cells = np.full((len(names), len(names)), np.nan)
    for frame, is_lower in ((lower, True), (upper, False)):
        for row in frame.to_dict("records") if frame is not None else []:
            ends = sorted((place[row["first"]], place[row["second"]]), reverse=is_lower)
            cells[tuple(ends)] = row["value"]
            if np.isfinite(row["value"]):
                _write_interval(axes, ends, row)
    axes.imshow(np.ma.masked_invalid(cells), cmap=DIVERGING, vmin=-1, vmax=1, aspect="auto")
    written = [(labels or {}).get(name, signal_label(name)) for name in names]
    axes.set_xticks(range(len(names)), written, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), written)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes


def _write_interval(axes: Axes, cell: Sequence[int], row: Mapping[str, float]) -> None:
    """Write a value and, smaller, its interval into the cell (row, column) of a matrix."""
    color = "white" if abs(row["value"]) > 0.65 else INK
    middle = dict(ha="center", va="center", color=color)
    axes.text(cell[1], cell[0] - 0.14, f"{row['value']:.2f}", fontsize=8.5, **middle)
    axes.text(cell[1], cell[0] + 0.22, f"{row['low']:.2f}, {row['high']:.2f}", fontsize=6, **middle)


def funnel(axes: Axes, counts: Mapping[str, int]) -> Axes:
    """Draw how many remain after each stage of a selection: one bar a stage, first on top.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    counts : Mapping
        Stage to what remains, in order; each number is written with its share of the first.
    """
    names, values = list(counts), np.array(list(counts.values()))
    if not len(values) or (values < 1).any():
        raise ParameterError("counts", dict(counts), "at least one stage, each with a count of 1 or more")
    axes.barh(range(len(values)), values, color=ACCENT, height=0.62)
    for line, value in enumerate(values):
        share = f" ({value / values[0]:.1%})" if line else ""
        axes.annotate(f"{value:,}{share}", (value, line), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, values.max() * 1.15)
    axes.set_yticks(range(len(values)), names)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return axes


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
        What the values are, with unit.
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
        axes.stairs(shares, edges, color=color, linewidth=1.4, label=f"{name} (n = {len(values):,})")
    for number, (name, value) in enumerate((cuts or {}).items()):
        axes.axvline(value, color=INK, linewidth=1.1, linestyle=("--", ":", "-.")[number % 3], label=name)
    axes.set_xlabel(label)
    axes.set_ylabel("share of the group, a bin")
    axes.legend()
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
        What the two axes are; ``None`` for an embedding whose axes mean nothing.
    """
    n_all = sum(map(len, groups.values()))
    alpha = float(np.clip(900 / max(n_all, 1), 0.08, 0.7))
    for number, (name, points) in enumerate(groups.items()):
        points = np.asarray(points)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ParameterError(f"groups[{name!r}]", f"shape {points.shape}", "points (n, 2)")
        on_top = name == highlight
        drawn = axes.scatter(
            *points.T,
            s=float(np.clip(3000 / max(len(points), 1), 10, 30)) if on_top else 9,
            color=CYCLE[number % len(CYCLE)],
            alpha=0.95 if on_top else alpha,
            linewidth=0.6 if on_top else 0,
            edgecolor="black" if on_top else "none",
            marker="X" if on_top else "o",
            zorder=3 if on_top else 2,
            rasterized=True,
        )
        axes.scatter(
            [],
            [],
            s=30,
            color=CYCLE[number % len(CYCLE)],
            linewidth=drawn.get_linewidth()[0],
            edgecolor="black" if on_top else "none",
            marker="X" if on_top else "o",
            label=f"{name} (n = {len(points):,})",
        )
    if labels is None:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    else:
        axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.legend()
    return axes


def confusion_matrix(
    axes: Axes, answers: Sequence[str], predictions: Sequence[str], order: Sequence[str], title: str = ""
) -> Axes:
    """Draw which answer was given where which was right, each row a share of the questions with that right answer.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    answers, predictions : sequence of str
        ``n`` right and given answers.
    order : sequence of str
        Right answers in the order of rows and columns; those that never occur are left out. What is predicted besides
        them is counted in a last column, ``other``, where it occurs.
    title : str
        What is asked; the number of questions is added.
    """
    answers, predictions = pd.Series(list(answers)), pd.Series(list(predictions))
    if len(answers) != len(predictions) or not answers.isin(order).all():
        raise ParameterError(
            "answers", sorted(set(answers) - set(order)), "one of `order` for each prediction"
        )
    rows = [name for name in order if (answers == name).any()]
    columns = [name for name in order if (answers == name).any() or (predictions == name).any()]
    predictions = predictions.where(predictions.isin(columns), "other")
    columns += ["other"] * bool((predictions == "other").any())
    shares = pd.crosstab(answers, predictions, normalize="index").reindex(
        index=rows, columns=columns, fill_value=0
    )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = 7 if len(columns) <= 11 else 5.5
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{title} (n = {len(answers):,})".strip(), fontsize="small")
    return axes


def learning_curves(
    frame: pd.DataFrame, *, column: str = "kind", x: str = "scenes", labels: Mapping[str, str] | None = None
) -> Figure:
    """Draw what training printed: losses above, shares of right answers below, one column a kind of stage.

    Losses that span more than a factor of five are drawn on a logarithmic axis.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a quantity and moment: `column`, ``stage``, `x`, ``quantity`` (``loss`` is drawn above, everything else
        below) and ``value``. Stages follow one another along `x`; dotted lines part them.
    column : str
        Column that makes the columns of the figure.
    x : str
        Column along which training goes.
    labels : Mapping, optional
        Quantity to its name in the legends.
    """
    need_columns(frame, [column, "stage", x, "quantity", "value"])
    kinds = list(frame[column].unique())
    figure, grid = plt.subplots(
        2, len(kinds), figsize=(2.5 * len(kinds), 4.6), squeeze=False, sharex="col", height_ratios=(1, 1.3)
    )
    for place, kind in enumerate(kinds):
        rows = frame[frame[column] == kind]
        upper, lower = grid[:, place]
        ends = rows.groupby("stage", sort=False)[x].max()
        for axes, part in (
            (upper, rows[rows["quantity"] == "loss"]),
            (lower, rows[rows["quantity"] != "loss"]),
        ):
            for number, (quantity, values) in enumerate(part.groupby("quantity", sort=False)):
                color = INK if quantity == "loss" else CYCLE[number % len(CYCLE)]
                name = (labels or {}).get(quantity, str(quantity).replace("_", " "))
                # Few moments are marked, many make a line.
                marker = "o" if values.groupby("stage")[x].size().max() <= 12 else ""
                for stage, points in values.groupby("stage", sort=False):
                    first = stage == values["stage"].iloc[0]
                    axes.plot(
                        points[x],
                        points["value"],
                        color=color,
                        marker=marker,
                        markersize=2.5,
                        linewidth=1.2,
                        linestyle="-" if number < len(CYCLE) else "--",
                        label=name if first else None,
                    )
            for end in ends[:-1]:
                axes.axvline(end, color=MUTED, linestyle=":", linewidth=0.8)
            axes.yaxis.grid(True)
        losses = rows.loc[rows["quantity"] == "loss", "value"]
        if losses.max() > 5 * losses.min() > 0:
            upper.set_yscale("log")
            upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            upper.yaxis.set_minor_locator(NullLocator())
        upper.set_title(str(kind))
        lower.set_ylim(-0.03, 1.03)
        lower.set_xlabel(x)
        lower.xaxis.set_major_formatter(FuncFormatter(thousands))
        lower.xaxis.set_major_locator(MaxNLocator(4))
        lower.legend(loc="upper left", bbox_to_anchor=(0, -0.3), fontsize="x-small", borderpad=0)
    grid[0, 0].set_ylabel("loss")
    grid[1, 0].set_ylabel("share right")
    return figure


def inline_chart(chart: Any, *, width: int = 720, height: int = 380) -> HTML:
    """Embed an interactive Altair chart with all the code it needs, so that it also works offline.

    The frame of its own keeps the chart's code apart from the page's. It adds about 1 MB to the notebook.

    Parameters
    ----------
    chart : altair.Chart
        What to show; needs the package vl-convert-python.
    width, height : int
        Size of the frame in pixels.

    Returns
    -------
    IPython.display.HTML
        Shown by a notebook as the result of its cell.
    """
    from IPython.display import HTML

    page = html.escape(chart.to_html(inline=True))
    size = f'width="{width}" height="{height}"'
    return HTML(f'<div><iframe srcdoc="{page}" {size} style="border: 0; max-width: 100%"></iframe></div>')
