"""Set signals against the truth: which of them tell the tokens that are needed, image by image.

Tables are the parts of `rcblib.evaluate.truth.measure_truth`. All comparisons are inside one view of an image; an
image's value is the mean over its views, and intervals are those of a bootstrap over images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rcblib.reading.labels import NAMES, label_of, method_label
from rcblib.reading.signals import attention_columns, most_influential, with_mean_attention
from rcblib.reading.statistics import Estimate, mean_interval, spearman
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

REPEATED = ("cls_rank", "score_random", "score_cls_most", "score_cls_least", "score_cls_attention")
"""Columns that rank tokens as another does, or the other way round."""

BY_ITSELF = {
    ORACLE: "masks (oracle)",
    COMBINED: "top-1 probability and influence",
    "token_norm": "length of the token",
    "token_word_similarity": "similarity to the nearest word",
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
        Signals with a direction, attention of each layer, what pixels tell, every method's score, and as controls
        random numbers and masks. Columns with a missing value, or the same value everywhere, and `REPEATED`
        are left out.
    """
    tokens = with_mean_attention(tokens)
    ranks = tokens.groupby("image_id")[["top1_probability", "influence"]].rank(pct=True)
    tokens[COMBINED] = ranks.mean(axis=1)
    tokens["random_numbers"] = generator.random(len(tokens))
    layers = [name for rows in ("last", "question") for name in attention_columns(tokens, rows)]
    candidates = [COMBINED, "random_numbers", ORACLE]
    for name in tokens:
        signal = signal_of(name)
        has_side = (
            name in layers or name.startswith(("score_", "pixel_", "token_")) or bool(signal and signal.keep)
        )
        repeats = name in candidates or name in REPEATED
        if not has_side or repeats or tokens[name].isna().any() or tokens[name].nunique() < 2:
            continue
        candidates.append(name)
        if signal and signal.keep == "low":
            tokens[name] = -tokens[name]
    return tokens, candidates


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve, ties counted half; NaN where all or none are positive."""
    n = int(positive.sum())
    if n in (0, len(positive)):
        return math.nan
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the average precision, equal scores taken together; NaN where none is positive.

    Notes
    -----
    Source: as ``sklearn.metrics.average_precision_score``, with which a test holds it equal; a tenth of its time.
    """
    if not positive.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits, ends = positive[order].cumsum(), np.flatnonzero(np.diff(-scores[order], append=np.inf))
    found = hits[ends]
    precision = found / (ends + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / hits[-1])


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
        background = rows["background"].iloc[at[0]]
        for name, values in zip(candidates, numbers[at].T, strict=True):
            precision, turned = average_precision(values, truth), average_precision(-values, truth)
            found.append((image_id, background, name, area(values, truth), precision, truth.mean(), turned))
    columns = ["image_id", "background", "signal", "area", "precision", "prevalence", "reversed_precision"]
    measured = pd.DataFrame(found, columns=columns)
    keys = ["image_id", "background", "signal"]
    return measured.groupby(keys, sort=False, as_index=False).mean()


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
) -> pd.DataFrame:
    """Measure every candidate against every truth: on all images, by kind of background, and by size of the object.

    Parameters
    ----------
    tokens, candidates
        As `with_candidates` returns them.
    generator : numpy.random.Generator
        Of the bootstrap over images.
    truths : Mapping, optional
        By default `positives`.

    Returns
    -------
    pandas.DataFrame
        The columns of `summarize`, with ``truth``, ``factor`` (``"all"``, ``"background"`` or ``"size"``) and ``level``
        in front. Of a size, needed tokens on objects of it are set against all that are not needed.
    """
    tables = []
    for name, positive in (positives(tokens) if truths is None else truths).items():
        groups = {("all", "all"): image_values(tokens, positive, candidates)}
        for level, own in groups["all", "all"].groupby("background"):
            groups["background", str(level)] = own
        for level, (low, high) in SIZES.items():
            fits = (tokens["object_share"] >= low) & (tokens["object_share"] < high)
            groups["size", level] = image_values(tokens, positive, candidates, ~positive | fits)
        for (factor, level), values in groups.items():
            if len(values):
                table = summarize(values, generator)
                tables.append(table.assign(truth=name, factor=factor, level=level))
    table = pd.concat(tables, ignore_index=True)
    front = ["truth", "factor", "level"]
    return table[[*front, *(name for name in table if name not in front)]]


@dataclass(frozen=True)
class Validation:
    """Hold how far the truth can be trusted.

    Attributes
    ----------
    over_questions : dict
        ``"fall"`` and ``"change"`` to the rank correlation, inside images, of the means over one half of an image's
        questions, and so of the donors, with those over the other.
    over_answers : Estimate or None
        The same of the fall of the right answer with that of the model's own first word, of questions where these
        differ; ``None`` where they never do.
    between : dict
        Pairs of truths to the rank correlation of their values inside images.
    objects : Estimate or None
        Share of questions about several objects for which the object whose removal takes most is the one with the token
        whose swap changes most; ``None`` where pictures were not drawn again.
    objects_by_chance : float
        What that share would be by chance.
    """

    over_questions: dict[str, Estimate]
    over_answers: Estimate | None
    between: dict[tuple[str, str], Estimate]
    objects: Estimate | None
    objects_by_chance: float


def stepped_up(correlation: float, times: float = 2.0) -> float:
    """Return the reliability of a mean over so many times as many questions, by Spearman and Brown's formula."""
    return times * correlation / (1 + (times - 1) * correlation)


def validate(
    tokens: pd.DataFrame,
    swapped: pd.DataFrame,
    removed: pd.DataFrame | None,
    *,
    generator: np.random.Generator,
) -> Validation:
    """Compare the truths with each other, and each with itself over questions and answers.

    Parameters
    ----------
    tokens, swapped, removed : pandas.DataFrame
        The parts of the table of `measure_truth`; the last is ``None`` or empty where pictures were not drawn again.
    """
    keys = ["image_id", "view", "position"]
    swapped = swapped.assign(change=swapped["fall"].abs())
    numbers = swapped.drop_duplicates(["image_id", "question"])
    half = numbers.set_index(["image_id", "question"]).groupby("image_id").cumcount() % 2
    swapped = swapped.join(half.rename("half"), on=["image_id", "question"])
    over_questions = {}
    for name in ("fall", "change"):
        halves = swapped.pivot_table(index=keys, columns="half", values=name).dropna().reset_index()
        if 1 in halves:
            over_questions[name] = spearman(halves[0], halves[1], halves["image_id"], generator=generator)
    differ = swapped[swapped["fall"] != swapped["own_fall"]]
    over_answers = None
    if len(differ):
        labels = differ.groupby(["image_id", "question"]).ngroup()
        over_answers = spearman(differ["fall"], differ["own_fall"], labels, generator=generator)
    columns = [c for c in ("object_coverage", "swap_fall", "swap_change", "removal_fall") if c in tokens]
    between = {}
    for k, first in enumerate(columns):
        for second in columns[k + 1 :]:
            both = tokens[["image_id", first, second]].dropna()
            between[first, second] = spearman(
                both[first], both[second], both["image_id"], generator=generator
            )
    objects, chance = None, math.nan
    if removed is not None and len(removed):
        hits = _same_object(tokens, swapped, removed)
        if len(hits):
            objects = mean_interval(hits["hit"], hits["image_id"], generator=generator)
            chance = float(hits["chance"].mean())
    return Validation(over_questions, over_answers, between, objects, chance)


def _same_object(tokens: pd.DataFrame, swapped: pd.DataFrame, removed: pd.DataFrame) -> pd.DataFrame:
    """Tell for each question whether both interventions point to the same category."""
    cells = tokens[["image_id", "view", "position", "object_category"]]
    on_objects = swapped.merge(cells, on=["image_id", "view", "position"]).dropna(subset="object_category")
    key = ["image_id", "question", "object_category"]
    by_swap = on_objects.groupby(key)["change"].max()
    by_removal = removed.groupby(key)["fall"].max()
    both = pd.concat([by_swap, by_removal], axis=1, join="inner").reset_index()
    rows = []
    for (image_id, _), own in both.groupby(["image_id", "question"]):
        if len(own) > 1 and own["fall"].max() >= NEEDED:
            hit = float(own["change"].idxmax() == own["fall"].idxmax())
            rows.append({"image_id": image_id, "hit": hit, "chance": 1 / len(own)})
    return pd.DataFrame(rows)


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
