"""Draw many pruning methods so that a reader takes them in at once: curves by kind, and what each keeps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from rcblib.reading.figures.finding import tell, tell_whole
from rcblib.reading.figures.maps import kept_map, pixels_of
from rcblib.reading.figures.style import CYCLE, INK, MARKERS, MUTED, need_columns
from rcblib.reading.figures.words import lead_of_scores, words_of_scores
from rcblib.records import ParameterError

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.figure import Figure

_TICKS = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Kept:
    """Say what a method keeps of a picture and what the model then answers.

    Attributes
    ----------
    method : str
        Its label.
    positions : sequence of int or None
        Tokens kept, in raster order; ``None`` where that is no matter of tokens, as inside the LLM.
    note : str
        What is said in place of the count of tokens.
    answer : str
        What the model answers.
    is_right : bool
        Whether that counts as right.
    """

    method: str
    positions: Sequence[int] | None
    note: str
    answer: str
    is_right: bool


def curves_by_kind(
    frame: pd.DataFrame,
    kinds: Sequence[str],
    *,
    everywhere: Sequence[str] = ("codebook", "random tokens"),
    ylabel: str = "relative score",
    n_columns: int = 2,
) -> Figure:
    """Draw score over rows read, a panel a kind of method, two methods in all panels.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a point: ``method``, ``kind``, ``retained`` (share of rows read, in (0, 1]), ``mean``, ``low`` and
        ``high``; as `rcblib.reading.budgets.curve_table` makes it.
    kinds : sequence of str
        Kinds in order; those without methods of their own get no panel.
    everywhere : sequence of str
        Methods that are drawn in every panel, with their intervals as bands; of others the points alone are drawn, as
        bands over each other hide all.
    ylabel : str
        What is compared.
    n_columns : int
        Panels side by side.
    """
    need_columns(frame, ["method", "kind", "retained", "mean", "low", "high"])
    own = {kind: frame[(frame["kind"] == kind) & ~frame["method"].isin(everywhere)] for kind in kinds}
    shown = [kind for kind in kinds if len(own[kind])]
    if not shown:
        raise ParameterError("frame", sorted(frame["kind"].unique()), f"methods of the kinds {list(kinds)}")
    n_rows = -(-len(shown) // n_columns)
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=(7.6, 3.2 * n_rows), sharex=True, sharey=True, squeeze=False
    )
    tell(grid[0, 0], words_of_scores(frame[frame["method"].isin(everywhere)]))
    for number, (axes, kind) in enumerate(zip(grid.flat, shown, strict=False)):
        axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
        axes.axhline(0.0, color=MUTED, linewidth=0.8, linestyle=":", zorder=1)
        for name, color in zip(everywhere, (CYCLE[0], INK), strict=False):
            rows = frame[frame["method"] == name].sort_values("retained")
            axes.fill_between(
                rows["retained"], rows["low"], rows["high"], color=color, alpha=0.15, linewidth=0
            )
            said = name if number == 0 else None  # the same in all panels, so named in one
            axes.plot(rows["retained"], rows["mean"], color=color, marker="o", linewidth=2.2, label=said)
        for place, (name, rows) in enumerate(own[kind].groupby("method", sort=False)):
            rows = rows.sort_values("retained")
            axes.plot(
                rows["retained"],
                rows["mean"],
                color=CYCLE[1 + place % (len(CYCLE) - 1)],
                marker=MARKERS[1 + place % (len(MARKERS) - 1)],
                linestyle="-" if place < len(CYCLE) - 1 else "--",
                linewidth=1.1,
                markersize=4,
                label=name,
            )
        _share_axis(axes, float(frame["retained"].min()))
        rows = frame[frame["method"] == everywhere[0]]
        drawn = pd.concat([rows, own[kind]], ignore_index=True)
        tell(axes, words_of_scores(drawn), lead_of_scores(drawn))
        axes.set_title(kind)
        axes.yaxis.grid(True)
        is_last = axes.get_subplotspec().rowspan.stop == n_rows  # the only row whose ticks are named
        axes.legend(
            fontsize="x-small",
            loc="upper left",
            bbox_to_anchor=(0, -0.16 if is_last else -0.02),
            ncols=2,
            handlelength=1.6,
            labelspacing=0.25,
            borderpad=0,
        )
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    lowest = float(np.nanmin(frame["mean"], initial=0.0))
    grid[0, 0].set_ylim(
        max(lowest - 0.1, -0.6), float(np.clip(np.nanmax(frame["mean"], initial=1.0), 1, 2)) + 0.1
    )
    figure.supxlabel("visual rows that the LLM reads", fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    return figure


def kept_grid(
    image: PIL.Image.Image | np.ndarray, kept: Sequence[Kept], grid: tuple[int, int], n_columns: int = 5
) -> Figure:
    """Show what each method keeps of one picture, and beneath it what the model then answers.

    Parameters
    ----------
    image : PIL.Image.Image or numpy.ndarray
        RGB image, as the encoder sees it.
    kept : sequence of Kept
        In order; at least one.
    grid : tuple of int
        ``(height, width)`` in tokens.
    n_columns : int
        Pictures side by side.
    """
    if not kept:
        raise ParameterError("kept", "none", "at least one method")
    n_rows = -(-len(kept) // n_columns)
    width = 7.6 / n_columns
    figure, axes_grid = plt.subplots(
        n_rows, n_columns, figsize=(7.6, (width + 0.5) * n_rows), squeeze=False, layout="constrained"
    )
    for axes, one in zip(axes_grid.flat, kept, strict=False):
        every = np.arange(grid[0] * grid[1])
        kept_map(axes, image, every if one.positions is None else one.positions, grid)
        axes.set_title(textwrap.fill(f"{one.method}: {one.note}", 23), fontsize=7.5)
        axes.set_xlabel(
            textwrap.fill(f"{'✓' if one.is_right else '✗'} {one.answer or '(nothing)'}", 26),
            fontsize=8,
            color=CYCLE[2] if one.is_right else CYCLE[6],
            labelpad=2,
            parse_math=False,
        )
    for axes in axes_grid.flat[len(kept) :]:
        axes.set_visible(False)
    right = [one.method for one in kept if one.is_right]
    wrong = [f"{one.method} “{one.answer}”" for one in kept if not one.is_right]
    said = f"{len(right)} of {len(kept)} answer rightly: {', '.join(right) or 'none'}"
    tell_whole(figure, f"{said}. Wrong: {', '.join(wrong)}." if wrong else f"{said}.")
    return figure


def kept_beside_objects(
    axes: Axes, image: PIL.Image.Image | np.ndarray, kept: Sequence[int], coverage: np.ndarray, text: str = ""
) -> Axes:
    """Show which patches are kept, in colour, and outline those that objects cover at least half.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image, as the encoder sees it.
    kept : sequence of int
        Positions kept, in raster order.
    coverage : numpy.ndarray
        ``(height, width)`` in tokens: share of each patch that objects cover.
    text : str
        What is written beneath.
    """
    kept_map(axes, image, kept, coverage.shape)
    height, width = pixels_of(image).shape[:2]
    rows, columns = coverage.shape
    on_object = np.kron(np.asarray(coverage) >= 0.5, np.ones((8, 8)))  # outlines follow the patches
    x = (np.arange(on_object.shape[1]) + 0.5) * width / on_object.shape[1]
    y = (np.arange(on_object.shape[0]) + 0.5) * height / on_object.shape[0]
    if on_object.any() and not on_object.all():
        axes.contour(x, y, on_object, levels=[0.5], colors=CYCLE[6], linewidths=1.2, zorder=4)
    axes.set_title("")
    is_on = np.asarray(coverage).flatten() >= 0.5
    tell(axes, f"of {is_on.sum()} patches on objects {is_on[np.asarray(kept, int)].sum()} are kept")
    axes.set_xlabel(textwrap.fill(text, 34), fontsize=7, labelpad=3, parse_math=False)
    return axes


def mark_setting(figure: Figure, text: str) -> None:
    """Write beneath a figure, small, which setting it came from."""
    figure.text(1, 0, text, ha="right", va="top", fontsize="x-small", color=MUTED)


def _share_axis(axes: Axes, lowest: float) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if tick >= 0.8 * lowest]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{100 * tick:g}%"))
