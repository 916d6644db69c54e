"""Define the look of the book's figures: style, colours, names of signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import pandas as pd
import seaborn as sns

from rcblib.records import ParameterError

if TYPE_CHECKING:
    pass

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

SEQUENTIAL = "viridis"

DIVERGING = "PuOr_r"

TINT = sns.light_palette("#e08a00", as_cmap=True)

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class EstimateLike(Protocol):
    """Anything with a value, its interval and its number of rows, such as `rcblib.reading.statistics.Estimate`."""

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
    return LABELS.get(column) or signal_parts(column, column, INK)[0]


def signal_color(column: str) -> str:
    """Return the colour of a signal's column."""
    return signal_parts(column, column, ACCENT)[1]


def thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def signal_parts(column: str, label: str, color: str) -> tuple[str, str]:
    """Return label and colour of the known signal that a column's name begins with, else those given."""
    for name in sorted(SIGNALS, key=len, reverse=True):
        if column == name or column.startswith(f"{name}_"):
            return SIGNALS[name]
    return label.replace("_", " "), color


def need_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ParameterError("frame", list(frame.columns), f"columns {missing} too")


def budget_ticks(smallest: float) -> list[float]:
    ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    return [tick for tick in ticks if tick >= 0.8 * smallest]
