"""Set signals against the truth: which of them tell the tokens that are needed, image by image.

Tables are the parts of `rcblib.evaluate.truth.measure_truth`. All comparisons are inside one view of an image; an
image's value is the mean over its views, and intervals are those of a bootstrap over images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rcblib.evaluate.ranks import has_side
from rcblib.evaluate.token_scores import REPEATED
from rcblib.reading.labels import NAMES, label_of, method_label
from rcblib.reading.signals import most_influential, with_mean_attention
from rcblib.reading.statistics import mean_interval
from rcblib.records import ParameterError
from rcblib.signals import signal_of

MIN_COVERAGE = 0.5
"""Share of a patch from which on a token counts as lying on an object."""

NEEDED = math.log(2)
"""Fall in nats from which on an object's removal counts: the right answer becomes half as likely."""

INFLUENTIAL = 0.1
"""Share of an image's tokens that count as those whose swap matters most."""

SIZES = {"small": (0.0, 0.05), "medium": (0.05, 0.15), "large": (0.15, 1.01)}
"""Share of the image that an object covers, from and below."""

TRUTHS = {
    "coverage": "lies on an object",
    "swap": "its swap takes most from the right answer",
    "change": "its swap changes the right answer most",
    "removal": "lies on an object that the right answer needs",
}
"""What can be true of a token, in words."""

COMBINED = "information"
"""Mean of a token's ranks by top-1 probability and by influence, which the paper's criterion thresholds together."""


ORACLE = "object_coverage"
"""What masks say: the most that a signal could know of objects."""

BY_ITSELF = {
    ORACLE: "masks (oracle)",
    COMBINED: "top-1 probability and influence",
    "token_norm": "length of the token",
    "token_word_similarity": "similarity to the nearest word",
    "token_predicted": "heads of the distilled pruner",
}
"""What readers call candidates that are neither signals of probing nor scores of methods."""


def positives(tokens: pd.DataFrame) -> dict[str, pd.Series]:
    """Tell which tokens are needed, by every truth that was measured.

    Parameters
    ----------
    tokens : pandas.DataFrame
        The part ``"tokens"``; those without a donor are left out by who made it.

    Returns
    -------
    dict
        Some of `TRUTHS` to booleans on the index of `tokens`.
    """
    found = {"coverage": tokens["object_coverage"] >= MIN_COVERAGE}
    for name, column in (("swap", "swap_fall"), ("change", "swap_change")):
        if column in tokens:
            found[name] = most_influential(tokens, column, INFLUENTIAL)
    if "removal_fall" in tokens:
        found["removal"] = tokens["removal_fall"] >= NEEDED
    return found


def with_candidates(tokens: pd.DataFrame, generator: np.random.Generator) -> tuple[pd.DataFrame, list[str]]:
    """Add derived signals and random numbers; return the table and the columns that may tell what is needed.

    Returns
    -------
    tokens : pandas.DataFrame
        A copy in which higher values of every candidate mean that a token is worth keeping.
    candidates : list of str
        Signals with a direction, attention of each layer, what pixels tell, the scores of methods, and as controls
        random numbers and masks. Columns with a missing value, or the same value everywhere, and scores that repeat
        another column, are left out.
    """
    has_means = {"attention_last", "attention_question"} <= set(tokens)
    tokens = tokens.copy() if has_means else with_mean_attention(tokens)
    ranks = tokens.groupby(["image_id", "view"])[["top1_probability", "influence"]].rank(pct=True)
    tokens[COMBINED] = ranks.mean(axis=1)
    tokens["random_numbers"] = generator.random(len(tokens))
    candidates = [COMBINED, "random_numbers", ORACLE]
    for name in tokens:
        repeats = name in candidates or name.removeprefix("score_") in REPEATED
        if not has_side(name) or repeats or tokens[name].isna().any() or tokens[name].nunique() < 2:
            continue
        candidates.append(name)
        if (signal := signal_of(name)) and signal.keep == "low":
            tokens[name] = -tokens[name]
    return tokens, candidates


def area(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve, ties counted half; NaN where all or none are positive.

    Parameters
    ----------
    scores : numpy.ndarray
        ``(n,)``, or ``(n, k)`` for k scores at once.
    positive : numpy.ndarray
        ``(n,)`` booleans.

    Returns
    -------
    numpy.ndarray
        A number, or ``(k,)``.
    """
    n = int(positive.sum())
    if n in (0, len(positive)):
        return np.full(scores.shape[1:], math.nan)[()]
    return (rankdata(scores, axis=0)[positive].sum(0) - n * (n + 1) / 2) / (n * (len(positive) - n))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the average precision, equal scores taken together; NaN where none is positive.

    Parameters and returns are those of `area`.

    Notes
    -----
    Source: as ``sklearn.metrics.average_precision_score``, with which a test holds it equal; a tenth of its time.
    """
    if not positive.any():
        return np.full(scores.shape[1:], math.nan)[()]
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, hits = np.take_along_axis(scores, order, axis=0), positive[order]
    numbers = np.arange(len(scores)).reshape(-1, *[1] * (scores.ndim - 1))
    is_end = np.concatenate([ranked[:-1] != ranked[1:], np.ones_like(hits[:1])])
    ends = np.minimum.accumulate(np.where(is_end, numbers, len(scores))[::-1], axis=0)[::-1]
    precision = np.take_along_axis(hits.cumsum(0), ends, axis=0) / (ends + 1)
    return (hits * precision).sum(0) / positive.sum()


def image_values(
    tokens: pd.DataFrame, positive: pd.Series, candidates: Sequence[str], among: pd.Series | None = None
) -> pd.DataFrame:
    """Measure every candidate on every image.

    Parameters
    ----------
    tokens, candidates
        As `with_candidates` returns them.
    positive : pandas.Series
        Of `positives`.
    among : pandas.Series, optional
        Booleans: rows that are compared at all.

    Returns
    -------
    pandas.DataFrame
        ``image_id``, ``background``, ``signal``, ``area``, ``precision``, and what chance and the reversed signal would
        give: ``prevalence`` (the precision of random numbers), ``reversed_precision``; the area of the reversed signal
        is 1 less its own. Images without both kinds of tokens are left out.
    """
    rows = tokens if among is None else tokens[among]
    own, found = positive[rows.index].to_numpy(), []
    numbers = rows[list(candidates)].to_numpy(float)
    for (image_id, _), at in rows.groupby(["image_id", "view"], sort=False).indices.items():
        truth = own[at]
        if truth.all() or not truth.any():
            continue
        values = numbers[at]
        known = {
            "image_id": image_id,
            "background": rows["background"].iloc[at[0]],
            "signal": list(candidates),
        }
        measured = {"area": area(values, truth), "precision": average_precision(values, truth)}
        beside = {"prevalence": truth.mean(), "reversed_precision": average_precision(-values, truth)}
        found.append(pd.DataFrame(known | measured | beside))
    keys = ["image_id", "background", "signal"]
    if not found:
        return pd.DataFrame(columns=[*keys, "area", "precision", "prevalence", "reversed_precision"])
    return pd.concat(found).groupby(keys, sort=False, as_index=False).mean()


def summarize(values: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Average `image_values` over images.

    Returns
    -------
    pandas.DataFrame
        One row a signal, best first: ``signal``, ``value`` (area), ``low``, ``high``, ``precision``, ``precision_low``,
        ``precision_high``, ``prevalence``, ``reversed_precision``, ``n_images``.
    """
    rows = []
    for name, own in values.groupby("signal", sort=False):
        of_area, of_precision = (
            mean_interval(own[column], generator=generator) for column in ("area", "precision")
        )
        rows.append(
            {"signal": name, "value": of_area.value, "low": of_area.low, "high": of_area.high}
            | {"precision": of_precision.value, "precision_low": of_precision.low}
            | {"precision_high": of_precision.high, "prevalence": own["prevalence"].mean()}
            | {"reversed_precision": own["reversed_precision"].mean(), "n_images": len(own)}
        )
    if not rows:
        raise ParameterError("values", "no image", "an image with needed tokens and others")
    return pd.DataFrame(rows).sort_values("value", ascending=False, kind="stable", ignore_index=True)


def signals_against_truth(
    tokens: pd.DataFrame,
    candidates: Sequence[str],
    *,
    generator: np.random.Generator,
    truths: Mapping[str, pd.Series] | None = None,
    followed: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Measure candidates against every truth: on all images, by kind of background, and by size of the object.

    Parameters
    ----------
    tokens, candidates
        As `with_candidates` returns them.
    generator : numpy.random.Generator
        Of the bootstrap over images.
    truths : Mapping, optional
        By default `positives`.
    followed : sequence of str, optional
        Of the candidates those that are told by background and size, too; by default all.

    Returns
    -------
    pandas.DataFrame
        The columns of `summarize`, with ``truth``, ``factor`` (``"all"``, ``"background"`` or ``"size"``) and ``level``
        in front. Of a size, needed tokens on objects of it are set against all that are not needed.
    """
    tables = []
    for name, positive in (positives(tokens) if truths is None else truths).items():
        whole = image_values(tokens, positive, candidates)
        groups, followed = {("all", "all"): whole}, list(candidates if followed is None else followed)
        for level, own in whole[whole["signal"].isin(followed)].groupby("background"):
            groups["background", str(level)] = own
        for level, (low, high) in SIZES.items():
            fits = (tokens["object_share"] >= low) & (tokens["object_share"] < high)
            groups["size", level] = image_values(tokens, positive, followed, ~positive | fits)
        for (factor, level), values in groups.items():
            if len(values):
                table = summarize(values, generator)
                tables.append(table.assign(truth=name, factor=factor, level=level))
    table = pd.concat(tables, ignore_index=True)
    front = ["truth", "factor", "level"]
    return table[[*front, *(name for name in table if name not in front)]]


def candidate_label(name: str) -> str:
    """Return what readers call a candidate of `with_candidates`."""
    if name in BY_ITSELF:
        return BY_ITSELF[name]
    if name.startswith("pixel_"):
        return f"pixels: {label_of(name.removeprefix('pixel_'))}"
    if name.startswith("score_"):
        method = name.removeprefix("score_")
        rule = method.removeprefix("codebook_")
        return f"codebook, {NAMES[rule]}" if rule in NAMES else method_label(method)
    layer = re.fullmatch(r"attention_(last|question)_layer_(\d+)", name)
    return f"{label_of(f'attention_{layer[1]}', short=True)}, layer {layer[2]}" if layer else label_of(name)
