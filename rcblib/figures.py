"""Draw arrays and tidy tables onto axes, in one style; knows images, grids and columns, but no models.

Every function takes the axes to draw on (or makes a figure of several) and returns what it drew on. Colours are
safe for colour-blind readers, and a signal keeps its colour through the book.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rcblib.records import ParameterError

if TYPE_CHECKING:
    import PIL.Image
    from IPython.display import HTML
    from matplotlib.figure import Figure

INK = "#2b2b2b"
MUTED = "#8a8a8a"
ACCENT = "#1f5f8b"
CYCLE = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9", "#d55e00", "#949494")
# Signals by the names of their columns in probe tables; a prefix is enough, so "region_textbook" is "region".
SIGNALS = {
    "attention": ("text-to-image attention", CYCLE[0]),
    "top1": ("top-1 probability", CYCLE[1]),
    "region": ("region divergence (nats)", CYCLE[2]),
    "global": ("global divergence (nats)", CYCLE[3]),
    "cls_similarity": ("similarity to [CLS]", CYCLE[4]),
    "cls_attention": ("[CLS] attention", CYCLE[5]),
    "object_coverage": ("covered by objects", CYCLE[7]),
    "influence": ("combined influence (nats)", CYCLE[6]),
    "recognised": ("share recognised", "#8c2d04"),
    "entropy": ("entropy (nats)", "#5e3c99"),
    "certainty": ("certainty (minus entropy)", "#5e4fa2"),
    "random": ("random numbers", MUTED),
}
# Columns that need a label of their own, in the colour of their signal.
LABELS = {
    "attention_last": "attention of the last prompt token",
    "attention_question": "attention of the question",
    "cls_rank": "rank by similarity to [CLS]",
    "region_divergence_textbook": "region divergence, textbook (nats)",
    "global_divergence_textbook": "global divergence, textbook (nats)",
    "region_entropy": "entropy of the window (nats)",
}
_SEQUENTIAL = "viridis"
_DIVERGING = "PuOr_r"
_TINT = sns.light_palette("#e08a00", as_cmap=True)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class EstimateLike(Protocol):
    """Anything with a value, its interval and its number of rows, such as `rcblib.statistics.Estimate`."""

    value: float
    low: float
    high: float
    n: int


def use_style() -> None:
    """Set the book's style for all figures drawn from now on."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette=list(CYCLE),
        font_scale=0.85,
        rc={
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.linewidth": 0.8,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 120,
            "grid.color": "#e3e3e3",
            "grid.linewidth": 0.6,
            "image.interpolation": "nearest",
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "lines.markersize": 4.5,
            "savefig.dpi": 160,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        },
    )


def signal_label(column: str) -> str:
    """Return the axis label of a signal's column; the column's own name where it is not a known signal."""
    return LABELS.get(column) or _signal(column, column, INK)[0]


def signal_color(column: str) -> str:
    """Return the colour of a signal's column."""
    return _signal(column, column, ACCENT)[1]


def heat_map(
    axes: Axes,
    image: PIL.Image.Image | np.ndarray,
    values: Sequence[float],
    grid: tuple[int, int],
    *,
    label: str = "",
    limits: tuple[float, float] | None = None,
    cmap: str = _SEQUENTIAL,
    alpha: float = 0.72,
    colorbar: bool | Axes = True,
) -> Axes:
    """Lay a signal of every visual token over the image, which is shown in grey beneath.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image; an array is ``(height, width, 3)``.
    values : array_like
        ``(n_tokens,)`` in raster order; NaN leaves its patch uncovered (a position that was not probed).
    grid : tuple of int
        ``(height, width)`` in tokens.
    label : str
        Name of the signal, with its unit, beside the colour bar; without a colour bar above the image.
    limits : tuple of float, optional
        Values at the ends of the colour scale; the data's where absent. Give them to compare images.
    cmap : str
        Colour map.
    alpha : float
        Opacity of the signal, 0 to 1.
    colorbar : bool or matplotlib.axes.Axes
        Whether to draw the scale beside the map, or the axes to draw it in, for one scale of several maps.

    Raises
    ------
    ParameterError
        If there are not as many values as grid cells.
    """
    pixels = _pixels(image)
    cells = _cells("values", values, grid).astype(float).reshape(grid)
    _show_grey(axes, pixels)
    low, high = limits if limits else (None, None)
    drawn = axes.imshow(
        np.ma.masked_invalid(cells),
        cmap=cmap,
        vmin=low,
        vmax=high,
        alpha=alpha,
        extent=_extent(pixels),
        zorder=2,
    )
    if colorbar:
        shared = isinstance(colorbar, Axes)
        place = {"cax": colorbar} if shared else {"ax": axes, "fraction": 0.046, "pad": 0.03}
        bar = axes.figure.colorbar(drawn, label=label, **place)
        bar.outline.set_visible(False)
        bar.solids.set(alpha=1)
        bar.locator = MaxNLocator(5)
        bar.update_ticks()
    elif label:
        axes.set_title(label)
    return axes


def word_map(
    axes: Axes,
    image: PIL.Image.Image | np.ndarray,
    words: Sequence[str],
    probabilities: Sequence[float],
    grid: tuple[int, int],
    *,
    limits: tuple[float, float] | None = (0.0, 1.0),
    colorbar: bool = True,
) -> Axes:
    """Write on each patch the word that its token says alone; the deeper the tint, the surer the word.

    Letters are as large as the patch allows, so the size of the axes decides whether the map can be read: allow
    about half an inch a token. Words of positions whose probability is NaN are left out.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image, shown faintly beneath.
    words : sequence of str
        ``n_tokens`` words in raster order.
    probabilities : array_like
        ``(n_tokens,)`` probability of each word, in [0, 1].
    grid : tuple of int
        ``(height, width)`` in tokens.
    limits : tuple of float, optional
        Probabilities at the ends of the colour scale; ``None`` takes the data's.
    colorbar : bool
        Whether to draw the scale.
    """
    pixels = _pixels(image)
    words = _cells("words", np.array(words, dtype=object), grid)
    probabilities = _cells("probabilities", probabilities, grid).astype(float)
    _show_grey(axes, pixels, fade=0.3)
    low, high = limits or (np.nanmin(probabilities), np.nanmax(probabilities))
    # An unsure word leaves the image visible, a sure one covers it.
    share = np.clip((probabilities - low) / max(high - low, 1e-12), 0, 1)
    drawn = axes.imshow(
        np.ma.masked_invalid(probabilities.reshape(grid)),
        cmap=_TINT,
        vmin=low,
        vmax=high,
        alpha=(0.35 + 0.6 * np.nan_to_num(share)).reshape(grid),
        extent=_extent(pixels),
        zorder=2,
    )
    if colorbar:
        label = "probability of the word"
        scale = ScalarMappable(drawn.norm, drawn.cmap)  # opaque, unlike what was drawn
        bar = axes.figure.colorbar(scale, ax=axes, fraction=0.046, pad=0.02, label=label)
        bar.outline.set_visible(False)
    _draw_grid_lines(axes, pixels, grid)
    _write_words(axes, pixels, words, share, grid)
    return axes


def kept_map(
    axes: Axes,
    image: PIL.Image.Image | np.ndarray,
    kept: Sequence[int],
    grid: tuple[int, int],
    title: str = "",
) -> Axes:
    """Show which patches a pruner kept: dropped ones fade to grey.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image.
    kept : sequence of int
        Positions kept, in raster order.
    grid : tuple of int
        ``(height, width)`` in tokens.
    title : str
        What did the pruning; the count is added.
    """
    pixels = _pixels(image)
    n_tokens = grid[0] * grid[1]
    kept = np.asarray(kept, dtype=int)
    if kept.size and not (0 <= kept.min() and kept.max() < n_tokens):
        raise ParameterError(
            "kept", [int(kept.min()), int(kept.max())], f"positions from 0 to {n_tokens - 1}"
        )
    _show_grey(axes, pixels, fade=0.3)
    mask = np.zeros(n_tokens, dtype=bool)
    mask[kept] = True
    opacity = _to_pixels(mask.reshape(grid), pixels.shape[:2])
    axes.imshow(np.dstack([pixels, opacity]), extent=_extent(pixels), zorder=2)
    count = f"{mask.sum()} of {n_tokens} tokens"
    axes.set_title(f"{title}: {count}" if title else count)
    return axes


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
    _need_columns(frame, [x, *signals])
    drawn = [axes] + [axes.twinx() for _ in signals[1:]]
    for number, (on, column) in enumerate(zip(drawn, signals, strict=True)):
        label, color = _signal(column, column, CYCLE[number])
        groups = frame.groupby(x)[column]
        middle = groups.median()
        on.plot(middle.index, middle, color=color, marker=_MARKERS[number], markersize=3, linewidth=0.8)
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
    _need_columns(frame, [x, y])
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
    _need_columns(frame, [hue, x, "mean", "low", "high"])
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
        color, marker = CYCLE[number % len(CYCLE)], _MARKERS[number % len(_MARKERS)]
        axes.plot(rows[x], rows["mean"], color=color, marker=marker, label=str(method), zorder=3)
        axes.fill_between(rows[x], rows["low"], rows["high"], color=color, alpha=0.15, linewidth=0, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_budget_ticks(float(frame[x].min()))))
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
    _need_columns(frame, [column])
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
    _need_columns(frame, [label, value, "low", "high", *([bound] if bound else []), *([hue] if hue else [])])
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
        One row a value of `x`, in order, with `mean`, ``low`` and ``high``, as `rcblib.statistics.mean_table` makes it.
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
    _need_columns(frame, [x, mean, "low", "high"])
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
        _need_columns(frame, ["first", "second", "value", "low", "high"])
    names = list(dict.fromkeys([*lower["first"], *lower["second"]]))
    place = {name: number for number, name in enumerate(names)}
    cells = np.full((len(names), len(names)), np.nan)
    for frame, is_lower in ((lower, True), (upper, False)):
        for row in frame.to_dict("records") if frame is not None else []:
            ends = sorted((place[row["first"]], place[row["second"]]), reverse=is_lower)
            cells[tuple(ends)] = row["value"]
            if np.isfinite(row["value"]):
                _write_interval(axes, ends, row)
    axes.imshow(np.ma.masked_invalid(cells), cmap=_DIVERGING, vmin=-1, vmax=1, aspect="auto")
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


def grid_map(
    axes: Axes,
    values: Sequence[float],
    grid: tuple[int, int],
    *,
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw one value a grid cell, without an image: a quantity by position over many images.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    values : array_like
        ``(n_tokens,)`` in raster order.
    grid : tuple of int
        ``(height, width)`` in tokens.
    label : str
        What the values are, with unit, beside the colour bar.
    limits : tuple of float, optional
        Values at the ends of the colour scale; give them to compare maps.
    """
    cells = _cells("values", values, grid).astype(float).reshape(grid)
    low, high = limits if limits else (None, None)
    drawn = axes.imshow(cells, cmap=_SEQUENTIAL, vmin=low, vmax=high)
    bar = axes.figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03, label=label)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
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


def outlined_objects(
    axes: Axes, image: PIL.Image.Image | np.ndarray, masks: Sequence[np.ndarray], text: str = ""
) -> Axes:
    """Draw an image with the outlines of its objects.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image.
    masks : sequence of numpy.ndarray
        ``(height, width)`` a mask an object, non-zero where it is.
    text : str
        What is written beneath the image, such as a caption; wrapped to about 30 letters a line.
    """
    pixels = _pixels(image)
    axes.imshow(pixels, extent=_extent(pixels))
    # Pixel centres, with a border of nothing so that an outline closes at the edge of the image.
    x, y = np.arange(-0.5, pixels.shape[1] + 1), np.arange(-0.5, pixels.shape[0] + 1)
    for mask in masks:
        axes.contour(x, y, np.pad(np.asarray(mask, float), 1), levels=[0.5], colors="white", linewidths=1.1)
    axes.set(xlim=(0, pixels.shape[1]), ylim=(pixels.shape[0], 0), xticks=[], yticks=[])
    axes.set_xlabel(textwrap.fill(text, 30), fontsize=7, labelpad=3)
    axes.spines[:].set_visible(False)
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
    _need_columns(frame, [column, "stage", x, "quantity", "value"])
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
        lower.xaxis.set_major_formatter(FuncFormatter(_thousands))
        lower.xaxis.set_major_locator(MaxNLocator(4))
        lower.legend(loc="upper left", bbox_to_anchor=(0, -0.3), fontsize="x-small", borderpad=0)
    grid[0, 0].set_ylabel("loss")
    grid[1, 0].set_ylabel("share right")
    return figure


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def patches_gallery(
    patches: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    *,
    margin: int = 0,
    size: float = 0.72,
) -> Figure:
    """Show rows of image patches, such as the patches nearest to each prototype.

    Parameters
    ----------
    patches : sequence of sequence of numpy.ndarray
        Rows of ``(height, width, 3)`` arrays; rows may differ in length.
    row_labels : sequence of str, optional
        One a row, to its left.
    captions : sequence of sequence of str, optional
        One a patch, beneath it.
    margin : int
        Patches of surroundings on each side, as given to `crop_patch`; the patch itself is then framed.
    size : float
        Side of a patch in inches.
    """
    n_rows, n_columns = len(patches), max((len(row) for row in patches), default=0)
    if not n_columns:
        raise ParameterError("patches", "none", "at least one patch")
    for name, given in (("row_labels", row_labels), ("captions", captions)):
        if given is not None and len(given) != n_rows:
            raise ParameterError(name, f"{len(given)} rows", f"one a row of patches: {n_rows}")
    height = size + (0.16 if captions is not None else 0)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(size * n_columns + (1.1 if row_labels is not None else 0), height * n_rows),
        squeeze=False,
        gridspec_kw={"wspace": 0.06, "hspace": 0.06},
    )
    for row, line in zip(grid, range(n_rows), strict=True):
        for column, axes in enumerate(row):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column < len(patches[line]):
                drawn = axes.imshow(_pixels(patches[line][column]))
                if margin:
                    _frame_patch(axes, drawn.get_extent(), margin)
                if captions is not None:
                    axes.set_xlabel(captions[line][column], fontsize=6.5, labelpad=2, color=INK)
        if row_labels is not None:
            row[0].set_ylabel(row_labels[line], rotation=0, ha="right", va="center", fontsize=8, labelpad=8)
    return figure


def _frame_patch(axes: Axes, extent: Sequence[float], margin: int) -> None:
    """Draw a frame around the middle patch of a crop, white on black so that it shows on any picture."""
    left, right, bottom, top = extent
    sides = ((right - left) / (1 + 2 * margin), (bottom - top) / (1 + 2 * margin))
    corner = (left + margin * sides[0], top + margin * sides[1])
    for color, width in (("black", 1.8), ("white", 0.9)):
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=color, linewidth=width))


def crop_patch(
    image: PIL.Image.Image | np.ndarray, position: int, grid: tuple[int, int], margin: int = 0
) -> np.ndarray:
    """Cut the patch of a visual token out of its image, with `margin` patches of surroundings on each side.

    Beyond the border the image's edge pixels are repeated, so that every crop has the same size.

    Returns
    -------
    numpy.ndarray
        ``(patch_height * (1 + 2 * margin), patch_width * (1 + 2 * margin), 3)``, values in [0, 1].
    """
    pixels = _pixels(image)
    n_tokens = grid[0] * grid[1]
    if not 0 <= position < n_tokens:
        raise ParameterError("position", position, f"0 to {n_tokens - 1}")
    sides = (pixels.shape[0] // grid[0], pixels.shape[1] // grid[1])
    row, column = divmod(position, grid[1])
    pad = [(margin * sides[0],) * 2, (margin * sides[1],) * 2, (0, 0)]
    padded = np.pad(pixels, pad, mode="edge")
    top, left = row * sides[0], column * sides[1]
    span = 1 + 2 * margin
    return padded[top : top + span * sides[0], left : left + span * sides[1]]


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


def _signal(column: str, label: str, color: str) -> tuple[str, str]:
    """Return label and colour of the known signal that a column's name begins with, else those given."""
    for name in sorted(SIGNALS, key=len, reverse=True):
        if column == name or column.startswith(f"{name}_"):
            return SIGNALS[name]
    return label.replace("_", " "), color


def _pixels(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    """Return an image as ``(height, width, 3)`` floats in [0, 1]."""
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ParameterError("image", f"shape {pixels.shape}", "an RGB image, (height, width, 3)")
    return pixels / 255 if pixels.dtype == np.uint8 else pixels.astype(float)


def _cells(name: str, values: Sequence[Any], grid: tuple[int, int]) -> np.ndarray:
    """Return values, one a grid cell, or raise."""
    values = np.asarray(values)
    n_tokens = grid[0] * grid[1]
    if values.shape != (n_tokens,):
        raise ParameterError(
            name, f"shape {values.shape}", f"one a token of the {grid[0]}×{grid[1]} grid: ({n_tokens},)"
        )
    return values


def _need_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ParameterError("frame", list(frame.columns), f"columns {missing} too")


def _extent(pixels: np.ndarray) -> tuple[float, float, float, float]:
    return (0, pixels.shape[1], pixels.shape[0], 0)


def _to_pixels(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch grid cells ``(rows, columns)`` to pixels ``(height, width)``."""
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    return cells[np.ix_(rows, columns)].astype(float)


def _show_grey(axes: Axes, pixels: np.ndarray, fade: float = 1.0) -> None:
    """Show an image by its luminance, mixed with white: `fade` 1 is full contrast, 0 is white."""
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    axes.imshow(1 - fade * (1 - grey), cmap="gray", vmin=0, vmax=1, extent=_extent(pixels), zorder=1)
    axes.set(xticks=[], yticks=[], xlim=(0, pixels.shape[1]), ylim=(pixels.shape[0], 0))
    axes.spines[:].set_visible(False)


def _draw_grid_lines(axes: Axes, pixels: np.ndarray, grid: tuple[int, int]) -> None:
    for edges, draw in ((grid[0], axes.axhline), (grid[1], axes.axvline)):
        size = pixels.shape[0] if draw == axes.axhline else pixels.shape[1]
        for line in range(1, edges):
            draw(line * size / edges, color="white", linewidth=0.6, zorder=3)


def _write_words(
    axes: Axes, pixels: np.ndarray, words: np.ndarray, share: np.ndarray, grid: tuple[int, int]
) -> None:
    """Write each word into its cell, as large as fits; `share`, 0 to 1, darkens it, NaN leaves it out."""
    axes.figure.draw_without_rendering()  # settles the layout, hence the size of a cell
    box = axes.get_window_extent()
    points = 72 / axes.figure.dpi
    cell_height, cell_width = box.height * points / grid[0], box.width * points / grid[1]
    font = FontProperties()
    largest = 0.32 * cell_height  # so that short words do not shout
    inks = LinearSegmentedColormap.from_list("ink", ["#6f6f6f", "#000000"])
    for position in np.flatnonzero(~np.isnan(share)):
        word = str(words[position]).strip()
        if not word:
            continue
        width_of_one = TextPath((0, 0), word.replace("$", r"\$"), size=1, prop=font).get_extents().width
        size = min(largest, 0.88 * cell_width / max(width_of_one, 1e-6))
        row, column = divmod(int(position), grid[1])
        axes.text(
            (column + 0.5) * pixels.shape[1] / grid[1],
            (row + 0.5) * pixels.shape[0] / grid[0],
            word,
            fontsize=size,
            ha="center",
            va="center",
            color=inks(min(1.0, 2 * share[position])),
            parse_math=False,
            clip_on=True,
            zorder=4,
        )


def _budget_ticks(smallest: float) -> list[float]:
    ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    return [tick for tick in ticks if tick >= 0.8 * smallest]
