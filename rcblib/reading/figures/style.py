"""Define the look of the book's figures: style and colours."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns

from rcblib.records import ParameterError
from rcblib.signals import signal_of

INK = "#2b2b2b"

MUTED = "#8a8a8a"

ACCENT = "#1f5f8b"

CYCLE = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9", "#d55e00", "#949494")

SEQUENTIAL = "viridis"

DIVERGING = "PuOr_r"

TINT = sns.light_palette("#e08a00", as_cmap=True)

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


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


def signal_color(column: str, default: str = ACCENT) -> str:
    """Return the colour of a signal's column; the default where it is no signal, or one without a colour."""
    signal = signal_of(column)
    return (signal and signal.color) or default


def need_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise where a table lacks columns."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ParameterError("frame", list(frame.columns), f"columns {missing} too")
