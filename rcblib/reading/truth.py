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

from rcblib.evaluate.ranks import has_side
from rcblib.evaluate.token_scores import REPEATED
from rcblib.reading.column_means import mean_intervals
from rcblib.reading.labels import NAMES, label_of, method_label
from rcblib.reading.signals import most_influential, with_mean_attention
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


@dataclass(frozen=True)
class Ranked:
    """Hold the places of scores from the highest down, made once for however many truths they are set against.

    Attributes
    ----------
    order : numpy.ndarray
        ``(n, k)`` rows of each column, by falling score.
    starts, ends : numpy.ndarray
        ``(n, k)`` places, along `order`, of the first and last score that is equal to the one there.
    """

    order: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Ranked:
        """Rank ``(n, k)`` scores."""
        order = np.argsort(-scores, axis=0, kind="stable")
        ranked = np.take_along_axis(scores, order, axis=0)
        places = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)
        differs = ranked[:-1] != ranked[1:]
        edge = np.ones((min(1, len(scores)), scores.shape[1]), dtype=bool)
        starts = np.maximum.accumulate(np.where(np.concatenate([edge, differs]), places, 0))
        last = np.where(np.concatenate([differs, edge]), places, len(scores))
        ends = np.minimum.accumulate(last[::-1])[::-1]
        return cls(order, starts, ends)

    def columns(self, chosen: Sequence[int]) -> Ranked:
        """Return the places of some columns."""
        return Ranked(self.order[:, chosen], self.starts[:, chosen], self.ends[:, chosen])

    def measures(self, positive: np.ndarray, among: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Measure how the scores rank the rows that are positive.

        Parameters
        ----------
        positive : numpy.ndarray
            ``(n,)`` booleans.
        among : numpy.ndarray, optional
            ``(n,)`` booleans: rows that are compared at all, by default all.

        Returns
        -------
        dict
            ``"area"`` under the ROC curve, ties counted half, ``"precision"`` (average precision, equal scores taken
            together) and ``"reversed_precision"``, that of the reversed scores: ``(k,)`` each; NaN where all or none
            are positive, of precisions where none is.
        """
        known = np.ones(len(positive), dtype=bool) if among is None else among
        is_hit, is_miss = positive & known, ~positive & known
        n_hits, n_misses = int(is_hit.sum()), int(is_miss.sum())
        nowhere = np.full(self.order.shape[1], math.nan)
        if not n_hits:
            return {"area": nowhere, "precision": nowhere, "reversed_precision": nowhere}
        hits, misses = is_hit[self.order], is_miss[self.order]
        above, until = self._counts(hits)
        misses_above, misses_until = self._counts(misses)
        below, rest = n_hits - above, n_misses - misses_above  # of the reversed scores, equal ones with them
        area = (misses * (above + until)).sum(0) / (2 * n_hits * n_misses) if n_misses else nowhere
        with np.errstate(invalid="ignore"):  # a row that is not compared may come before all others
            precision = np.where(hits, until / (until + misses_until), 0.0).sum(0) / n_hits
            turned = np.where(hits, below / (below + rest), 0.0).sum(0) / n_hits
        return {"area": area, "precision": precision, "reversed_precision": turned}

    def _counts(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count, at each place, those above its equals, and those down to the last of them."""
        counted = np.concatenate([np.zeros_like(which[:1], dtype=int), which.cumsum(0)])
        return tuple(np.take_along_axis(counted, at, axis=0) for at in (self.starts, self.ends + 1))


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
    return _measured("area", scores, positive)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the average precision, equal scores taken together; NaN where none is positive.

    Parameters and returns are those of `area`.

    Notes
    -----
    Source: as ``sklearn.metrics.average_precision_score``, with which a test holds it equal; a tenth of its time.
    """
    return _measured("precision", scores, positive)


def _measured(name: str, scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    found = Ranked.of(scores.reshape(len(scores), -1)).measures(positive)[name]
    return found.reshape(scores.shape[1:])[()]


class RankedViews:
    """Rank every candidate in each view of an image once, for all truths.

    Parameters
    ----------
    tokens, candidates
        As `with_candidates` returns them.
    """

    def __init__(self, tokens: pd.DataFrame, candidates: Sequence[str]):
        self._candidates = list(candidates)
        numbers = tokens[self._candidates].to_numpy(float)
        groups = tokens.groupby(["image_id", "view"], sort=False).indices
        self._index = tokens.index
        self._views = [
            (image_id, tokens["background"].iloc[at[0]], at, Ranked.of(numbers[at]))
            for (image_id, _), at in groups.items()
        ]

    def values(
        self, positive: pd.Series, among: pd.Series | None = None, followed: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Measure candidates on every image, all or those that are followed; as `image_values` returns it."""
        names = self._candidates if followed is None else list(followed)
        chosen = [self._candidates.index(name) for name in names]
        own = positive.reindex(self._index).to_numpy(bool)
        compared = None if among is None else among.reindex(self._index).to_numpy(bool)
        known, found = [], []
        for image_id, background, at, ranked in self._views:
            truth, rows = own[at], None if compared is None else compared[at]
            within = truth if rows is None else truth[rows]
            if within.all() or not within.any():
                continue
            ranked = ranked if followed is None else ranked.columns(chosen)
            found.append(ranked.measures(truth, rows) | {"prevalence": np.full(len(names), within.mean())})
            known.append((image_id, background))
        keys = ["image_id", "background", "signal"]
        measures = ["area", "precision", "prevalence", "reversed_precision"]
        if not found:
            return pd.DataFrame(columns=[*keys, *measures])
        images, backgrounds = (
            np.repeat(np.array(own, dtype=object), len(names)) for own in zip(*known, strict=True)
        )
        cells = {"image_id": images, "background": backgrounds, "signal": names * len(found)}
        cells |= {name: np.concatenate([each[name] for each in found]) for name in measures}
        table = pd.DataFrame(cells).infer_objects()
        return table.groupby(keys, sort=False, as_index=False).mean()


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
    return RankedViews(tokens, candidates).values(positive, among)


def summarize(values: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Average `image_values` over images; the intervals of all signals are of the same draws of images.

    Returns
    -------
    pandas.DataFrame
        One row a signal, best first: ``signal``, ``value`` (area), ``low``, ``high``, ``precision``, ``precision_low``,
        ``precision_high``, ``prevalence``, ``reversed_precision``, ``n_images``.
    """
    if values.empty:
        raise ParameterError("values", "no image", "an image with needed tokens and others")
    names, n_images = list(values["signal"].unique()), values["image_id"].nunique()
    wide = values.set_index(["image_id", "signal"]).unstack()
    areas, precisions = (wide[column][names].to_numpy() for column in ("area", "precision"))
    estimates = mean_intervals(np.concatenate([areas, precisions], axis=1), generator=generator)
    others = {name: wide[name][names].to_numpy().mean(0) for name in ("prevalence", "reversed_precision")}
    rows = []
    for number, name in enumerate(names):
        of_area, of_precision = estimates[number], estimates[len(names) + number]
        rows.append(
            {"signal": name, "value": of_area.value, "low": of_area.low, "high": of_area.high}
            | {"precision": of_precision.value, "precision_low": of_precision.low}
            | {"precision_high": of_precision.high, "prevalence": others["prevalence"][number]}
            | {"reversed_precision": others["reversed_precision"][number], "n_images": n_images}
        )
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
    tables, ranked = [], RankedViews(tokens, candidates)
    for name, positive in (positives(tokens) if truths is None else truths).items():
        whole = ranked.values(positive)
        groups, followed = {("all", "all"): whole}, list(candidates if followed is None else followed)
        for level, own in whole[whole["signal"].isin(followed)].groupby("background"):
            groups["background", str(level)] = own
        for level, (low, high) in SIZES.items():
            fits = (tokens["object_share"] >= low) & (tokens["object_share"] < high)
            groups["size", level] = ranked.values(positive, ~positive | fits, followed)
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
