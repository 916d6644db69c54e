"""Guess from pixels alone which tokens lie on objects: what any measure of a token has to beat."""

from __future__ import annotations

import numpy as np

from rcblib.data.coverage import patch_overlaps
from rcblib.records import ParameterError

PIXEL_SIGNALS = (
    "pixel_median_distance",
    "pixel_contrast",
    "pixel_edges",
    "pixel_saturation",
    "pixel_centre",
)
"""Names of `pixel_signals`."""


def pixel_signals(picture: np.ndarray, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Measure simple properties of the patches of a picture; higher = rather an object.

    Parameters
    ----------
    picture : numpy.ndarray
        ``(height, width, 3)`` in [0, 1], as the vision encoder sees it.
    grid : tuple of int
        ``(rows, columns)`` of patches.

    Returns
    -------
    dict of numpy.ndarray
        ``(n_patches,)`` each, in raster order: ``pixel_median_distance``, mean distance of a patch's colours from the
        picture's median colour; ``pixel_contrast``, standard deviation of brightness inside the patch; ``pixel_edges``,
        mean size of the gradient of brightness; ``pixel_saturation``, mean difference of the largest and the smallest
        colour channel; ``pixel_centre``, minus the patch's distance from the middle of the picture, sides being 1 long.

    Raises
    ------
    ParameterError
        If the picture is of another shape, or smaller than the grid.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or min(np.divide(picture.shape[:2], grid)) < 1:
        raise ParameterError("picture", picture.shape, f"(height, width, 3), at least {grid} pixels")
    height, width = picture.shape[:2]
    rows = patch_overlaps(height, grid[0], 0, height)
    columns = patch_overlaps(width, grid[1], 0, width)

    def mean(values: np.ndarray) -> np.ndarray:
        return (rows @ values @ columns.T).reshape(-1)

    picture = picture.astype(float)
    distance = np.linalg.norm(picture - np.median(picture.reshape(-1, 3), axis=0), axis=2)
    brightness = picture.mean(2)
    edges = np.hypot(*np.gradient(brightness)) if min(height, width) > 1 else np.zeros((height, width))
    variance = mean(brightness**2) - mean(brightness) ** 2
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in grid)
    measured = (
        mean(distance),
        np.sqrt(variance.clip(0)),
        mean(edges),
        mean(picture.max(2) - picture.min(2)),
        -np.hypot(y[:, None], x).reshape(-1),
    )
    return dict(zip(PIXEL_SIGNALS, measured, strict=True))
