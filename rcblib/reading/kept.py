"""Say where the tokens lie that a method keeps: on objects, beside them, or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.ndimage import binary_dilation

from rcblib.records import ImageId, ParameterError

PLACES = ("on an object", "on its edge", "beside it", "elsewhere")
"""Where a patch lies: objects cover at least half of it, less, or none; then with an object next to it, or not."""


def places_of_patches(coverage: np.ndarray) -> np.ndarray:
    """Return ``(n_tokens,)`` numbers of `PLACES` in raster order, given ``(height, width)`` covered shares."""
    coverage = np.asarray(coverage, dtype=float)
    if coverage.ndim != 2 or not ((coverage >= 0) & (coverage <= 1 + 1e-6)).all():
        raise ParameterError("coverage", f"shape {coverage.shape}", "(height, width) shares in [0, 1]")
    touched = coverage > 0
    near = binary_dilation(touched, np.ones((3, 3)))
    return np.select([coverage >= 0.5, touched, near], [0, 1, 2], default=3).flatten()


def places_kept(
    coverage: Mapping[ImageId, np.ndarray], kept: Mapping[str, Mapping[ImageId, Sequence[int]]]
) -> pd.DataFrame:
    """Share out what each method keeps of some images over `PLACES`, beside what there is.

    Parameters
    ----------
    coverage : Mapping
        Image to ``(height, width)`` covered shares of its patches.
    kept : Mapping
        Method to image to positions kept, at least one of an image.

    Returns
    -------
    pandas.DataFrame
        One row a method and image, ``"all tokens"`` first: ``method``, ``image_id``, a column for each of `PLACES` with
        the share of the kept tokens there, and ``objects_kept``, the share of the patches on objects that is kept (NaN
        where there are none).
    """
    rows = []
    for method, images in [
        ("all tokens", {i: range(own.size) for i, own in coverage.items()}),
        *kept.items(),
    ]:
        for image_id, positions in images.items():
            places = places_of_patches(coverage[image_id])
            own = places[np.asarray(positions, dtype=int)]
            n_on = int((places == 0).sum())
            shares = dict(zip(PLACES, np.bincount(own, minlength=len(PLACES)) / len(own), strict=True))
            found = float((own == 0).sum() / n_on) if n_on else np.nan
            rows.append({"method": method, "image_id": image_id, **shares, "objects_kept": found})
    return pd.DataFrame(rows)


def lost_and_held(
    answers: pd.DataFrame, method: str, asked: float, reference: str = "all tokens"
) -> pd.DataFrame:
    """Tell, of questions that the unpruned model answers rightly, which a method at a budget gets wrong.

    Parameters
    ----------
    answers : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`, of one seed where the method draws.
    method : str
        The method.
    asked : float
        Its share.
    reference : str
        The unpruned model.

    Returns
    -------
    pandas.DataFrame
        ``image_id``, ``task``, ``subset``, ``question``, ``prediction`` of the method, ``said`` by the reference, and
        ``is_lost``.
    """
    keys = ["image_id", "task", "subset", "question"]
    chosen = answers[(answers["method"] == method) & np.isclose(answers["retain_ratio"].astype(float), asked)]
    whole = answers[(answers["method"] == reference) & (answers["score"] == 1)]
    both = whole[[*keys, "prediction"]].rename(columns={"prediction": "said"})
    both = both.merge(chosen[[*keys, "prediction", "score"]], on=keys, how="inner", validate="one_to_one")
    return both.assign(is_lost=both["score"] < 1).drop(columns="score")
