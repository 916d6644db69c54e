"""Draw scores anew over seeds and images, with intervals that stay proper where every score is the same.

Scores lie in [0, 1]. A resample gives every image a random weight (the Bayesian bootstrap: exponential, so Dirichlet
when normalised), and every task two made-up images more, one all right and one all wrong, with weights of a gamma
distribution of shape 1/2. For one right-or-wrong question an image the drawn means are exactly Jeffreys' posterior,
Beta(k + 1/2, n - k + 1/2), whose intervals cover about as often as they say, also at 0 of n and n of n (Brown, Cai and
DasGupta 2001); a resampling of whole images, as `rcblib.reading.statistics` does it, would give [1, 1] there. The same
weights serve every quantity over the same images, so whatever is computed from several means (a ratio, a difference, a
score corrected for guessing) is drawn along as a whole.

Seeds are drawn first and images second. Every seed sees the same images, so a resample's weights of images are common
to its seeds (Owen 2007); with one seed the images alone vary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from rcblib.reading.statistics import Estimate
from rcblib.records import ParameterError

_PRIOR = 0.5  # Jeffreys': shape of the weights of the two made-up images


@dataclass(frozen=True)
class Draws:
    """Hold the mean scores of some quantities by task, on the sample and on resamples of it.

    Attributes
    ----------
    tasks : tuple of str
        In order of first appearance.
    means : Mapping
        Name of a quantity to ``(1 + n_resamples, n_tasks)`` mean scores, the first row those of the sample.
    counts : tuple of int
        Rows of each task, of the first quantity.
    n_images : int
        Images of all.
    """

    tasks: tuple[str, ...]
    means: Mapping[str, np.ndarray]
    counts: tuple[int, ...]
    n_images: int

    def __getitem__(self, name: str) -> np.ndarray:
        return self.means[name]

    def estimate(self, values: np.ndarray, task: str | None = None, level: float = 0.95) -> Estimate:
        """Turn what was computed from the means, ``(1 + n_resamples,)``, into an estimate; NaN draws are left out.

        Its `n` counts the rows of a task, or of all.
        """
        n = sum(self.counts) if task is None else self.counts[self.tasks.index(task)]
        return estimate_of(values, n, self.n_images, level)


def estimate_of(values: np.ndarray, n: int, n_images: int, level: float = 0.95) -> Estimate:
    """Take the first of some values as the estimate and the others as draws around it.

    The interval holds the estimate itself, which lies at its end where a share is 0 or 1.
    """
    value, draws = float(values[0]), values[1:][~np.isnan(values[1:])]
    if np.isnan(value) or not len(draws):
        return Estimate(math.nan, math.nan, math.nan, n, n_images, level)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), n, n_images, level, draws)


def draw_means(
    quantities: Mapping[str, pd.DataFrame],
    *,
    generator: np.random.Generator,
    n_resamples: int = 4000,
) -> Draws:
    """Draw the mean scores of some quantities, task by task, over seeds and images.

    Parameters
    ----------
    quantities : Mapping
        Name to a frame with ``image_id``, ``task``, ``score`` in [0, 1] and, where something was drawn or trained more
        than once, ``seed``. Every one has rows of every task. Quantities with the same seeds share their draws.
    generator : numpy.random.Generator
        Source of the draws.
    n_resamples : int
        Draws.

    Returns
    -------
    Draws

    Raises
    ------
    ParameterError
        If a column is missing, a score lies outside [0, 1] or is NaN, or a quantity has other tasks than the first.
    """
    if not isinstance(generator, np.random.Generator):
        raise ParameterError("generator", generator, "a numpy.random.Generator")
    first = next(iter(quantities.values()), pd.DataFrame())
    for name, frame in quantities.items():
        missing = [column for column in ("image_id", "task", "score") if column not in frame.columns]
        if missing or frame.empty:
            raise ParameterError(name, missing or "no rows", "rows with image_id, task and score")
        if not frame["score"].between(0, 1).all():
            raise ParameterError(name, float(frame["score"].max()), "scores in [0, 1], none of them NaN")
        if set(frame["task"]) != set(first["task"]):
            raise ParameterError(name, sorted(set(frame["task"])), f"the tasks {sorted(set(first['task']))}")
    tasks = pd.Index(first["task"].unique())
    images = pd.Index(pd.concat([frame["image_id"] for frame in quantities.values()]).unique())
    weights = np.vstack([np.ones(len(images)), generator.exponential(size=(n_resamples, len(images)))])
    by_seed: dict[tuple, np.ndarray] = {}
    means = {}
    for name, frame in quantities.items():
        seeds = tuple(frame["seed"].dropna().unique()) if "seed" in frame else ()
        if seeds not in by_seed:
            by_seed[seeds] = _seed_weights(max(1, len(seeds)), n_resamples, generator)
        codes = pd.Index(seeds).get_indexer(frame["seed"]) if seeds else np.zeros(len(frame), dtype=int)
        if (codes < 0).any():
            raise ParameterError(name, "rows with and without a seed", "a seed for every row or for none")
        means[name] = _weighted_means(
            (codes, tasks.get_indexer(frame["task"]), images.get_indexer(frame["image_id"])),
            (len(seeds) or 1, len(tasks), len(images)),
            frame["score"].to_numpy(float),
            weights,
            by_seed[seeds],
            generator,
        )
    counts = first["task"].value_counts()
    return Draws(tuple(tasks), means, tuple(int(counts[task]) for task in tasks), len(images))


def share(
    values: Sequence[float],
    images: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    generator: np.random.Generator,
    n_resamples: int = 4000,
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean of some scores in [0, 1]; 5 of 5 gives [0.62, 1], not [1, 1].

    Parameters
    ----------
    values : sequence of float
        ``(n,)``.
    images, seeds : sequence, optional
        ``(n,)`` image and seed of each; without, each value is of its own image, and there is one seed.
    generator, n_resamples, level
        As in `draw_means`; nominal coverage in (0, 1).
    """
    frame = pd.DataFrame({"score": np.asarray(values, dtype=float), "task": ""})
    frame["image_id"] = np.arange(len(frame)) if images is None else np.asarray(images)
    if seeds is not None:
        frame["seed"] = np.asarray(seeds)
    draws = draw_means({"values": frame}, generator=generator, n_resamples=n_resamples)
    return draws.estimate(draws["values"][:, 0], level=level)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values of several tests by Holm's step-down rule, which needs no independence.

    Returns
    -------
    numpy.ndarray
        ``(n_tests,)`` in the order given; the family-wise error is at most α where those up to α are rejected.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def n_for_half_width(values: Sequence[float], half_width: float = 0.03, level: float = 0.95) -> int:
    """Say how many images it takes for an interval of a mean of plus and minus a half-width.

    Parameters
    ----------
    values : sequence of float
        Scores, or differences of scores, of a pilot, one an image; or of a share p, ``[1] * k + [0] * (n - k)``.
    half_width : float
        Above 0, in the unit of the values.
    level : float
        Nominal coverage.

    Returns
    -------
    int
        By the normal approximation: 0.83 right takes 603 images for 0.03.
    """
    if not half_width > 0:
        raise ParameterError("half_width", half_width, "a number above 0")
    return math.ceil((norm.ppf((1 + level) / 2) * np.std(values) / half_width) ** 2)


def _seed_weights(n_seeds: int, n_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Return ``(1 + n_resamples, n_seeds)`` weights that sum to 1.

    Weights of a Dirichlet distribution spread a mean of n by sd / sqrt(n + 1) with the sample's own sd. With two or
    three seeds that is much too little, so their distance from 1 / n is stretched to sd / sqrt(n - 1), which is
    unbiased.
    """
    even = np.full((1, n_seeds), 1 / n_seeds)
    if n_seeds == 1:
        return np.ones((1 + n_resamples, 1))
    drawn = generator.dirichlet(np.ones(n_seeds), size=n_resamples)
    return np.vstack([even, even + math.sqrt((n_seeds + 1) / (n_seeds - 1)) * (drawn - even)])


def _weighted_means(
    places: tuple[np.ndarray, np.ndarray, np.ndarray],
    shape: tuple[int, int, int],
    scores: np.ndarray,
    weights: np.ndarray,
    seed_weights: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Return ``(1 + n_resamples, n_tasks)`` from scores at (seed, task, image)."""
    n_seeds, n_tasks, n_images = shape
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, places, scores)
    np.add.at(counts, places, 1)
    per_image = counts.sum((0, 2)) / np.maximum((counts > 0).sum((0, 2)), 1)  # (n_tasks,)
    prior = generator.gamma(_PRIOR, size=(2, len(weights), n_tasks)) * per_image
    prior[:, 0] = 0  # the sample as it is
    above, below = (
        (weights @ each.reshape(-1, n_images).T).reshape(-1, n_seeds, n_tasks) for each in (sums, counts)
    )
    means = (above + prior[0][:, None]) / (below + prior.sum(0)[:, None])
    return np.clip(np.einsum("bst,bs->bt", means, seed_weights), 0, 1)
