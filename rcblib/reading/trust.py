"""Say how far the truth of redundancy agrees with itself: over questions, answers, interventions and trainings.

Tables are the parts of `rcblib.evaluate.truth.measure_truth`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rcblib.reading.statistics import Estimate, mean_interval, spearman
from rcblib.reading.truth import NEEDED
from rcblib.records import ParameterError

PLACE = ["image_id", "view", "position"]
"""Columns that tell a token from the others."""

MEASURED = ("swap_fall", "swap_change", "removal_fall")
"""Columns of what interventions do, which differs between trainings."""


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
    swapped = swapped.assign(change=swapped["fall"].abs())
    numbers = swapped.drop_duplicates(["image_id", "question"])
    half = numbers.set_index(["image_id", "question"]).groupby("image_id").cumcount() % 2
    swapped = swapped.join(half.rename("half"), on=["image_id", "question"])
    over_questions = {}
    for name in ("fall", "change"):
        halves = swapped.pivot_table(index=PLACE, columns="half", values=name).dropna().reset_index()
        if 1 in halves:
            over_questions[name] = spearman(halves[0], halves[1], halves["image_id"], generator=generator)
    differ = swapped.iloc[:0]
    if "own_fall" in swapped:
        differ = swapped[swapped["own_fall"].notna() & (swapped["fall"] != swapped["own_fall"])]
    over_answers = None
    if len(differ):
        labels = differ.groupby(["image_id", "question"]).ngroup()
        over_answers = spearman(differ["fall"], differ["own_fall"], labels, generator=generator)
    columns = [c for c in ("object_coverage", *MEASURED) if c in tokens]
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
    cells = tokens[[*PLACE, "object_category"]]
    on_objects = swapped.merge(cells, on=PLACE).dropna(subset="object_category")
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


def over_trainings(
    tokens: pd.DataFrame, other: pd.DataFrame, *, generator: np.random.Generator
) -> dict[str, tuple[Estimate, Estimate]]:
    """Compare the truths of a model's tokens with those of another training of it, on the images that both have.

    Parameters
    ----------
    tokens, other : pandas.DataFrame
        Parts ``"tokens"`` of two tables; those without a donor may be missing.
    generator : numpy.random.Generator
        Of the bootstrap over images.

    Returns
    -------
    dict
        Each of `MEASURED` that both have to two rank correlations inside images: of the same tokens, and of tokens at
        the same place of different images, which is what place alone gives.

    Raises
    ------
    ParameterError
        If there are fewer than two images that both have.
    """
    columns = [name for name in MEASURED if name in tokens and name in other]
    shared = [i for i in tokens["image_id"].unique() if i in set(other["image_id"])]
    if len(shared) < 2:
        raise ParameterError("other", f"{len(shared)} of the images", "at least two that both trainings have")
    following = dict(zip(shared, np.roll(shared, -1), strict=True))
    own = tokens.loc[tokens["image_id"].isin(shared), [*PLACE, *columns]]
    found = {}
    for name in columns:
        pair = []
        for images in (own["image_id"], own["image_id"].map(following)):
            placed = own[[*PLACE, name]].assign(image_id=images)
            both = placed.merge(other[[*PLACE, name]], on=PLACE, suffixes=(" one", " other")).dropna()
            one, two = (both[f"{name} {which}"] for which in ("one", "other"))
            pair.append(spearman(one, two, both["image_id"], generator=generator))
        found[name] = (pair[0], pair[1])
    return found
