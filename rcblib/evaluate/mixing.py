"""Ask whether background tokens know of objects elsewhere: a linear probe on what encoder and connector make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import binary_dilation
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rcblib.data.base import AnySample
from rcblib.data.coverage import patch_overlaps
from rcblib.data.samples import load_pictures
from rcblib.evaluate.interventions import coverage_of
from rcblib.mllm import Adapter
from rcblib.probe.pictures import view_pictures
from rcblib.records import ParameterError
from rcblib.tensors.checks import check_integer

ENCODER, CONNECTOR, PIXELS, SHUFFLED = "encoder", "connector", "pixels", "shuffled"

LAYERS = {
    ENCODER: "vision encoder",
    CONNECTOR: "after the connector",
    PIXELS: "colours of the same patches",
    SHUFFLED: "vision encoder, other images' objects",
}
"""What is read from, in words; the last two are controls that know nothing of what is elsewhere."""


@dataclass(frozen=True)
class BackgroundTokens:
    """Hold background tokens of some images.

    Attributes
    ----------
    features : dict
        Of `LAYERS` but the last to ``(n_tokens, d)`` float32: hidden states before the connector, tokens after it, and
        mean and standard deviation of each patch's colours.
    image : numpy.ndarray
        ``(n_tokens,)`` number of the image that each is of.
    present : numpy.ndarray
        ``(n_images, n_categories)`` bool: what is in each image, elsewhere.
    categories : tuple of str
        In alphabetical order.
    """

    features: dict[str, np.ndarray]
    image: np.ndarray
    present: np.ndarray
    categories: tuple[str, ...]


@torch.no_grad()
def background_tokens(
    adapter: Adapter,
    samples: Sequence[AnySample],
    distance: int = 1,
    n_each: int = 16,
    *,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> BackgroundTokens:
    """Gather tokens on which, and next to which, no object lies.

    Parameters
    ----------
    adapter : Adapter
        With its processor; its vision encoder gives hidden states.
    samples : sequence of Sample
        Single images with masks.
    distance : int
        Cells, in every direction, between a token and the next that an object touches.
    n_each : int
        Tokens of an image at most, drawn among its whole view.
    categories : sequence of str, optional
        By default those of these samples.
    seed : int
        Of the draw.

    Raises
    ------
    ParameterError
        If the encoder gives no hidden states, a sample has no masks, or no image has such a token.
    """
    check_integer("distance", distance, 0)
    check_integer("n_each", n_each, 1)
    if "hidden_states" not in adapter.offers:
        accepted = "one whose vision encoder gives the states that its connector reads"
        raise ParameterError("model", f"family {adapter.family!r}", accepted)
    found: dict[str, list[np.ndarray]] = {ENCODER: [], CONNECTOR: [], PIXELS: []}
    image, rng = [], np.random.default_rng(seed)
    reach = np.ones((2 * distance + 1,) * 2, dtype=bool)
    for number, sample in enumerate(samples):
        pictures = load_pictures(sample)
        view = adapter.encode(pictures, ("hidden_states",))[0].views[0]
        touched = coverage_of(adapter, sample, view).numpy().reshape(view.grid) > 0
        free = np.flatnonzero(~binary_dilation(touched, reach))
        chosen = np.sort(rng.permutation(free)[:n_each])
        shown = view_pictures(adapter.processor, pictures[0])[0]
        found[ENCODER].append(view.signals["hidden_states"][chosen].float().numpy())
        found[CONNECTOR].append(view.tokens[chosen].float().cpu().numpy())
        found[PIXELS].append(patch_colors(shown, view.grid)[chosen])
        image += [number] * len(chosen)
    if not image:
        raise ParameterError("distance", distance, "a distance that some token has from every object")
    names = {item.category for sample in samples for item in sample.objects}
    listed = tuple(sorted(names) if categories is None else categories)
    present = np.array(
        [[name in {o.category for o in sample.objects} for name in listed] for sample in samples]
    )
    return BackgroundTokens(
        {k: np.concatenate(v) for k, v in found.items()}, np.array(image), present, listed
    )


def patch_colors(picture: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return mean and standard deviation of the colours of each patch, ``(n_patches, 6)``, in raster order."""
    height, width = picture.shape[:2]
    rows, columns = patch_overlaps(height, grid[0], 0, height), patch_overlaps(width, grid[1], 0, width)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([(rows @ values[..., k] @ columns.T).reshape(-1) for k in range(3)], axis=1)

    picture = picture.astype(float)
    average = mean(picture)
    return np.concatenate([average, np.sqrt((mean(picture**2) - average**2).clip(0))], axis=1)


def probe_background(
    train: BackgroundTokens, test: BackgroundTokens, penalty: float = 100.0, seed: int = 0
) -> pd.DataFrame:
    """Fit a linear probe for the objects elsewhere on some images, and apply it to others.

    Parameters
    ----------
    train, test : BackgroundTokens
        Of different images; categories in the same order.
    penalty : float
        Of ridge regression on standardised features, one output a category. Above 0.
    seed : int
        Of the control that learns other images' objects.

    Returns
    -------
    pandas.DataFrame
        One row an image, category and one of `LAYERS`: ``layer``, ``image_id`` (number of the test image),
        ``category``, ``score`` (mean over the image's background tokens; higher = rather there), ``present``.
        `rcblib.reading.statistics.roc_auc` with categories as strata says what the probe knows.

    Raises
    ------
    ParameterError
        If categories differ.
    """
    if train.categories != test.categories:
        raise ParameterError("test", f"{len(test.categories)} other categories", "the categories of train")
    shuffled = train.present[np.random.default_rng(seed).permutation(len(train.present))]
    images, inverse = np.unique(test.image, return_inverse=True)
    tables = []
    for layer in LAYERS:
        source = ENCODER if layer == SHUFFLED else layer
        labels = (shuffled if layer == SHUFFLED else train.present)[train.image]
        model = make_pipeline(StandardScaler(), Ridge(alpha=penalty))
        model.fit(train.features[source], labels.astype(float))
        said = model.predict(test.features[source]).reshape(len(test.image), -1)
        sums = np.zeros((len(images), said.shape[1]))
        np.add.at(sums, inverse, said)
        means = sums / np.bincount(inverse)[:, None]
        cells = {
            "layer": layer,
            "image_id": np.repeat(images, len(test.categories)),
            "category": np.tile(test.categories, len(images)),
            "score": means.ravel(),
            "present": test.present[images].ravel(),
        }
        tables.append(pd.DataFrame(cells))
    return pd.concat(tables, ignore_index=True)
