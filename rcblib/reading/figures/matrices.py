"""Draw matrices: correlations with their intervals, and which answer was given where which was right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from rcblib.reading.figures.finding import tell
from rcblib.reading.figures.style import DIVERGING, INK, need_columns
from rcblib.reading.figures.words import words_of_confusions, words_of_pairs
from rcblib.reading.labels import label_of
from rcblib.records import ParameterError


def correlation_matrix(axes: Axes, lower: pd.DataFrame, upper: pd.DataFrame | None = None) -> Axes:
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
    """
    names = list(dict.fromkeys([*lower["first"], *lower["second"]]))
    cells = pd.DataFrame(np.nan, index=names, columns=names)
    for frame, is_lower in ((lower, True), (upper, False)):
        if frame is None:
            continue
        need_columns(frame, ["first", "second", "value", "low", "high"])
        for row in frame.to_dict("records"):
            cell = sorted((names.index(row["first"]), names.index(row["second"])), reverse=is_lower)
            cells.iloc[*cell] = row["value"]
            if np.isfinite(row["value"]):
                middle = dict(ha="center", va="center", color="white" if abs(row["value"]) > 0.65 else INK)
                axes.text(cell[1] + 0.5, cell[0] + 0.36, f"{row['value']:.2f}", fontsize=8.5, **middle)
                interval = f"{row['low']:.2f}, {row['high']:.2f}"
                axes.text(cell[1] + 0.5, cell[0] + 0.72, interval, fontsize=6, **middle)
    written = [label_of(name, short=True) for name in names]
    sns.heatmap(
        cells, vmin=-1, vmax=1, cmap=DIVERGING, cbar=False, ax=axes, xticklabels=written, yticklabels=written
    )
    axes.set_xticks(axes.get_xticks(), written, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    tell(axes, words_of_pairs(lower))
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
    said = words_of_confusions(answers, predictions)
    predictions = predictions.where(predictions.isin(columns), "other")
    columns += ["other"] * bool((predictions == "other").any())
    shares = pd.crosstab(answers, predictions, normalize="index").reindex(
        index=rows, columns=columns, fill_value=0
    )
    sns.heatmap(shares, vmin=0, vmax=1, cmap="Blues", cbar=False, ax=axes, xticklabels=True, yticklabels=True)
    size = 7 if len(columns) <= 11 else 5.5
    axes.tick_params(axis="x", rotation=90, labelsize=size, length=0)
    axes.tick_params(axis="y", rotation=0, labelsize=size, length=0)
    axes.set(xlabel="", ylabel="")
    axes.set_title(f"{label_of(title)} (n = {len(answers):,})".strip(), fontsize="small")
    tell(axes, said)
    return axes
