"""Say in words, with numbers, what a figure shows: sentences made of the very data that are drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rcblib.reading.labels import label_of, method_label

_MOST_LISTED = 4
"""Estimates of one group that are all said; of more, the ends."""

_DOWN, _ACROSS = ("upper", "middle", "lower"), ("left", "middle", "right")


def digits(value: float) -> str:
    """Write a number with three digits that count, as ``0.638`` or ``14,000``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def plain(text: object) -> str:
    """Return text in one line, formulas without their marks."""

    def letters(formula: re.Match[str]) -> str:
        return re.sub(r"\\mathrm|[\\{}]", "", formula[1]).replace("_", " ")

    return " ".join(re.sub(r"\$([^$]*)\$", letters, str(text)).split())


def words_of_intervals(
    frame: pd.DataFrame,
    label: str,
    *,
    reference: float | None = None,
    bound: str | None = None,
    hue: str | None = None,
) -> str:
    """Say estimates with their intervals: all of a few, of many the highest and the lowest.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row an estimate, with `label`, ``value``, ``low`` and ``high``.
    label : str
        Column with what is estimated.
    reference : float, optional
        Value that means "no effect": how many intervals lie above and below it is said.
    bound : str, optional
        Column with a value that each estimate is to reach.
    hue : str, optional
        Column whose values are told one after the other.
    """
    known = frame[np.isfinite(frame["value"].astype(float))]
    parts = []
    for name, rows in known.groupby(hue, sort=False) if hue else [("", known)]:
        ordered = rows.sort_values("value", ascending=False, kind="stable")
        each = [f"{label_of(row[label])} {_estimate(row, 'value')}" for row in ordered.to_dict("records")]
        if not each:
            continue
        said = ", ".join(each)
        if len(each) > (_MOST_LISTED if not hue else 2):
            said = f"highest {each[0]}, lowest {each[-1]}"
        if reference is not None:
            above, below = (rows["low"] > reference).sum(), (rows["high"] < reference).sum()
            said += f"; of {len(rows)} intervals {above} lie above {digits(reference)}, {below} below"
        if bound:
            held = rows[np.isfinite(rows[bound].astype(float))]
            if len(held):
                said += f"; {(held['value'] >= held[bound]).sum()} of {len(held)} reach their mark"
        parts.append(f"{label_of(name)}: {said}" if hue else said)
    return ". ".join(parts)


def words_of_means(frame: pd.DataFrame, x: str, mean: str, name: str) -> str:
    """Say how a mean goes from the first to the last value of a column, and where it is highest between."""
    rows = frame.dropna(subset=[mean]).to_dict("records")
    if not rows:
        return ""
    first, last, top = rows[0], rows[-1], max(rows, key=lambda row: row[mean])
    if len(rows) == 1:
        return f"{name}: {_estimate(first, mean)} where {label_of(x)} is {label_of(first[x])}"
    verb = "does not clearly change"
    if last["low"] > first["high"]:
        verb = "rises"
    elif last["high"] < first["low"]:
        verb = "falls"
    said = f"{name} {verb}: {digits(first[mean])} where {label_of(x)} is {label_of(first[x])}, "
    if top is not first and top is not last:
        said += f"at most {digits(top[mean])} at {label_of(top[x])}, "
    return f"{said}{digits(last[mean])} at {label_of(last[x])}"


def words_of_scores(frame: pd.DataFrame) -> str:
    """Say the scores at the smallest budget of the first method: its own, the best and the lowest of the others'.

    Others that read a quarter more at least, and so cannot be compared there, are said with their own share, where none
    reads so few.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a method and budget: ``method``, ``retained`` (fraction), ``mean``, ``low`` and ``high``.
    """
    if not len(frame):
        return ""
    leading, own, others, is_near = _at_least_budget(frame)
    said = [f"{method_label(leading)} {_estimate(own, 'mean')}"]
    for place, name in _ends(list(others.index)):
        share = "" if is_near else f" with {others.loc[name, 'retained']:.0%}"
        said.append(f"{place}{method_label(name)} {_estimate(others.loc[name], 'mean')}{share}")
    return f"with {own['retained']:.0%} of the tokens {', '.join(said)}"


def lead_of_scores(frame: pd.DataFrame) -> float | None:
    """Return how far the first method is ahead of the best other that `words_of_scores` says; None without any."""
    if not len(frame):
        return None
    _, own, others, _ = _at_least_budget(frame)
    return float(own["mean"] - others["mean"].iloc[0]) if len(others) else None


def _at_least_budget(frame: pd.DataFrame) -> tuple[str, pd.Series, pd.DataFrame, bool]:
    """Return the first method, its row at its smallest budget, the others' from the best, and if they read so few."""
    least = frame.sort_values("retained", kind="stable").groupby("method", sort=False).first()
    leading = frame["method"].iloc[0]
    own = least.loc[leading]
    others = least.drop(index=leading).sort_values("mean", ascending=False, kind="stable")
    near = others[others["retained"] < 1.25 * own["retained"]]
    return leading, own, near if len(near) else others, len(near) > 0


def words_of_ranks(frame: pd.DataFrame, signals: Sequence[str]) -> str:
    """Say medians of signals in the first and in the last quarter of ranks."""
    quarter = frame["rank"].quantile([0.25, 0.75]).tolist()
    ends = (frame[frame["rank"] <= quarter[0]], frame[frame["rank"] >= quarter[1]])
    told = [
        f"{label_of(name)} {digits(ends[0][name].median())} and {digits(ends[1][name].median())}"
        for name in signals
    ]
    return f"medians in the first and the last quarter of ranks: {'; '.join(told)}"


def words_of_groups(groups: Mapping[str, Sequence[float]], label: str) -> str:
    """Say the median of each group of values."""
    told = [f"{label_of(name)} {digits(float(np.median(values)))}" for name, values in groups.items()]
    return f"median {label_of(label) or 'value'}: {', '.join(told)}"


def words_of_points(
    groups: Mapping[str, np.ndarray], highlight: str | None, labels: tuple[str, str] | None
) -> str:
    """Say the medians of groups of points ``(n, 2)``; in a map without axes, beside whom the highlighted ones lie."""
    if labels is not None:
        return "; ".join(
            words_of_groups({k: np.asarray(p)[:, d] for k, p in groups.items()}, labels[d]) for d in (0, 1)
        )
    others = {name: points for name, points in groups.items() if name != highlight}
    if highlight not in groups or not others:
        return ", ".join(f"{len(points):,} {label_of(name)}" for name, points in groups.items())
    own = np.asarray(groups[highlight], float)
    nearest = np.array(
        [((own[:, None] - np.asarray(points)) ** 2).sum(2).min(1) for points in others.values()]
    ).argmin(0)
    told = [f"{label_of(name)} for {(nearest == k).sum()}" for k, name in enumerate(others)]
    return f"the nearest neighbour of {len(own)} {label_of(highlight)} is one of the {', of the '.join(told)}"


def words_of_map(values: np.ndarray, label: str) -> str:
    """Say the range of a map ``(rows, columns)`` and where it is highest; NaN is left out."""
    cells = np.asarray(values, float)
    if not np.isfinite(cells).any():
        return ""
    row, column = np.unravel_index(np.nanargmax(cells), cells.shape)
    place = {_DOWN[3 * row // cells.shape[0]], _ACROSS[3 * column // cells.shape[1]]}
    where = " ".join(name for name in dict.fromkeys((*_DOWN, *_ACROSS)) if name in place)
    ends = f"{digits(np.nanmin(cells))} to {digits(np.nanmax(cells))}"
    return f"{label_of(label) or 'values'} from {ends}, highest in the {where}"


def words_of_words(words: Sequence[str], share: Sequence[float]) -> str:
    """Say how many words there are on the patches of a map, and which is the most frequent and which the surest."""
    said = pd.DataFrame({"word": [str(word).strip() for word in words], "share": np.asarray(share, float)})
    said = said.dropna()
    if not len(said):
        return ""
    counts, surest = said["word"].value_counts(), said.loc[said["share"].idxmax()]
    return (
        f"{len(counts)} different words on {len(said)} patches; most often “{counts.index[0]}”, {counts.iloc[0]} "
        f"times; surest “{surest['word']}”, {surest['share']:.2f}"
    )


def words_of_pairs(frame: pd.DataFrame) -> str:
    """Say the highest and the lowest correlation of pairs: ``first``, ``second``, ``value``, ``low``, ``high``."""
    known = frame.dropna(subset=["value"]).sort_values("value", ascending=False, kind="stable")
    if not len(known):
        return ""
    told = [
        f"{place} {label_of(row['first'])} with {label_of(row['second'])} {_estimate(row, 'value')}"
        for place, row in (("highest", known.iloc[0]), ("lowest", known.iloc[-1]))
    ]
    return f"of {len(known)} pairs {', '.join(told)}"


def words_of_confusions(answers: Sequence[str], predictions: Sequence[str]) -> str:
    """Say the share of right answers, and which wrong one is most frequent."""
    frame = pd.DataFrame({"right": list(answers), "said": list(predictions)})
    wrong = frame[frame["right"] != frame["said"]]
    said = f"{1 - len(wrong) / max(len(frame), 1):.0%} right"
    if len(wrong):
        (right, given), count = wrong.value_counts().index[0], wrong.value_counts().iloc[0]
        said += f", most often wrong “{given}” for “{right}”, {count} times"
    return said


def words_of_training(rows: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Say the loss at the start and at the end, and what else there is at the end.

    Parameters
    ----------
    rows : pandas.DataFrame
        One row a quantity and moment: ``scenes``, ``quantity`` and ``value``.
    labels : Mapping
        Quantity to what readers call it.
    """
    told = []
    for name, values in rows.sort_values("scenes", kind="stable").groupby("quantity", sort=False)["value"]:
        last = digits(values.iloc[-1])
        if name == "loss":
            told.insert(0, f"loss from {digits(values.iloc[0])} to {last}")
        else:
            told.append(f"{labels.get(name) or label_of(name)} {last}")
    return ", at the end ".join([told[0], ", ".join(told[1:])]) if len(told) > 1 else "".join(told)


def words_on_and_off(frame: pd.DataFrame, names: Sequence[str], on: str = "on_object") -> str:
    """Say the means of signals over tokens on objects and elsewhere; without masks the medians.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a token.
    names : sequence of str
        Columns of signals.
    on : str
        Column that says which tokens lie on objects; where it is missing or empty nothing is known of objects.
    """
    is_on = frame[on].dropna() if on in frame else pd.Series(dtype=bool)
    known = frame.loc[is_on.index]
    if is_on.nunique() < 2:
        return f"median {', '.join(f'{label_of(name)} {digits(frame[name].median())}' for name in names)}"
    means = known[list(names)].groupby(is_on.astype(bool)).mean()
    told = [
        f"{label_of(name)} {digits(means.loc[True, name])} and {digits(means.loc[False, name])}"
        for name in names
    ]
    return f"means over tokens on objects and over the others: {', '.join(told)}"


def _ends(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the first and the last of ordered methods with what is said before them; of two or less all."""
    if len(names) <= 2:
        return [("", name) for name in names]
    return [("best of the others ", names[0]), ("lowest ", names[-1])]


def _estimate(row: Any, value: str) -> str:
    """Write a value with its interval, as ``0.638 [0.59, 0.69]``; an interval without width is left out."""
    low, high = row["low"], row["high"]
    is_wide = np.isfinite([low, high]).all() and low != high
    return digits(row[value]) + (f" [{low:.2g}, {high:.2g}]" if is_wide else "")
