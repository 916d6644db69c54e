"""Cluster tokens by density peaks with k nearest neighbours (DPC-KNN)."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import torch

from rcblib.records import ParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable

NOISE_SCALE = 1e-6
"""Largest noise added to a density to break ties."""

N_NEAR = 32
"""Nearest points in which a denser one is looked for first."""

MAX_DISTANCES = 2**24
"""Most distances held at once (128 MiB); above about 4,000 points rows are computed block by block."""


class DensityPeaks(NamedTuple):
    """Hold a clustering together with the quantities it was decided by.

    Attributes
    ----------
    labels : torch.Tensor
        ``(n_points,)`` int64; cluster ``j`` is the one of ``centres[j]``.
    centres : torch.Tensor
        ``(n_clusters,)`` int64 indexes of the centres, by decreasing score.
    density : torch.Tensor
        ``(n_points,)`` float64 local densities, noise included; higher = more crowded.
    distance : torch.Tensor
        ``(n_points,)`` float64 distances to the nearest denser point, scaled by 1 / sqrt(d).
    score : torch.Tensor
        ``(n_points,)`` float64 ``density * distance``; higher = more of a centre.
    """

    labels: torch.Tensor
    centres: torch.Tensor
    density: torch.Tensor
    distance: torch.Tensor
    score: torch.Tensor


def dpc_knn(
    points: torch.Tensor,
    n_clusters: int,
    k: int = 5,
    generator: torch.Generator | None = None,
    return_details: bool = False,
) -> torch.Tensor | DensityPeaks:
    """Partition points by density peaks: centres are dense points that are far from denser ones.

    Distances are Euclidean divided by sqrt(d). The density of a point is exp(-mean of its `k` smallest
    squared distances), its own zero among them, so `k` = 5 looks at four others. A point without a denser one
    takes the largest distance of all as its distance. The `n_clusters` points of highest density times
    distance become centres (the lower index first where scores tie); every other point joins its nearest
    centre. No cluster is empty.

    Parameters
    ----------
    points : torch.Tensor
        ``(n_points, d)``.
    n_clusters : int
        Number of clusters, at most ``n_points``.
    k : int
        Neighbours that make the density, the point itself included, at most ``n_points``.
    generator : torch.Generator, optional
        Draws ``torch.rand(n_points)``; 1e-6 of it is added to the densities, which decides between (nearly)
        identical points and, where points lie so far apart that densities fall below 1e-6, everything.
        ``None``: no noise.
    return_details : bool
        Whether to return centres, density, distance and score as well.

    Returns
    -------
    torch.Tensor or DensityPeaks
        ``(n_points,)`` int64 labels from 0 to ``n_clusters - 1``, numbered by decreasing score of their
        centre; with `return_details` a `DensityPeaks` that holds them and the rest.

    Raises
    ------
    ParameterError
        If the shape differs, a value is not finite, there are more clusters or neighbours than points, or the
        generator is none of torch's.

    Notes
    -----
    Source: Du, Ding & Jia (2016), in the form used for tokens by TCFormer and Chat-UniVi; stage 1 and 2 of
    the released codebook script. The point among its own neighbours and equal densities not being "denser"
    are as there.
    Differs: distances are computed in float64, up to about 4,000 points by direct differences and above that
    through a matrix product, whose error is about 1e-8 of the points' length; the original's float32 product
    reports up to 1e-2 between a point and itself. Noise comes from a generator that is passed in. Time grows
    with ``n_points**2 * d``; memory beyond a float64 copy of the points stays bounded.
    """
    _check(points, n_clusters, k, generator)
    points = points.detach().double()
    n_points = points.shape[0]

    n_near = min(n_points, max(k, N_NEAR))
    near = torch.empty(n_points, n_near, dtype=torch.float64, device=points.device)
    near_points = torch.empty(n_points, n_near, dtype=torch.long, device=points.device)
    largest = 0.0
    is_exact = n_points**2 <= MAX_DISTANCES
    for rows, distances in _distance_blocks(points, points, is_exact):
        near[rows], near_points[rows] = distances.topk(n_near, dim=-1, largest=False)
        largest = max(largest, distances.max().item())
    density = (-near[:, :k].square().mean(-1)).exp()
    if generator is not None:
        noise = torch.rand(n_points, generator=generator, device=generator.device)
        density += NOISE_SCALE * noise.to(density)

    # Nearly all points have a denser one among the nearest; only for the others all are looked at again.
    not_denser = density[near_points] <= density[:, None]
    distance = near.masked_fill_(not_denser, math.inf).amin(-1)
    far = distance.isinf().nonzero().flatten()
    for rows, distances in _distance_blocks(points[far], points, is_exact):
        not_denser = density[None, :] <= density[far[rows], None]
        distance[far[rows]] = distances.masked_fill_(not_denser, math.inf).amin(-1)
    distance.clamp_(max=largest)

    score = density * distance
    centres = score.argsort(descending=True, stable=True)[:n_clusters]
    is_exact = n_points * n_clusters <= MAX_DISTANCES
    to_centres = _distance_blocks(points, points[centres], is_exact)
    labels = torch.cat([distances.argmin(-1) for _, distances in to_centres])
    labels[centres] = torch.arange(n_clusters, device=labels.device)
    return DensityPeaks(labels, centres, density, distance, score) if return_details else labels


def _distance_blocks(
    points: torch.Tensor, others: torch.Tensor, is_exact: bool
) -> Iterable[tuple[slice, torch.Tensor]]:
    """Yield rows of the ``(n_points, n_others)`` scaled distances, few enough at once to bound memory.

    Differences are exact (0 between copies of a point) but slow; many distances go through a matrix product.
    """
    mode = "donot_use_mm_for_euclid_dist" if is_exact else "use_mm_for_euclid_dist"
    n_rows = max(1, MAX_DISTANCES // len(others))
    for start in range(0, len(points), n_rows):
        rows = slice(start, min(start + n_rows, len(points)))
        yield rows, torch.cdist(points[rows], others, compute_mode=mode).div_(math.sqrt(points.shape[1]))


def _check(points: object, n_clusters: object, k: object, generator: object) -> None:
    """Raise a `ParameterError` for the first parameter of `dpc_knn` that cannot be used."""
    accepted = "a floating-point tensor (n_points, d), not empty"
    if not isinstance(points, torch.Tensor):
        raise ParameterError("points", type(points).__name__, accepted)
    if points.ndim != 2 or not points.is_floating_point() or points.numel() == 0:
        raise ParameterError("points", f"{points.dtype} {tuple(points.shape)}", accepted)
    if not torch.isfinite(points).all():
        raise ParameterError("points", "NaN or infinity among its values", "finite values")
    for parameter, value in (("n_clusters", n_clusters), ("k", k)):
        if not isinstance(value, Integral) or not 1 <= value <= points.shape[0]:
            raise ParameterError(
                parameter, value, f"an integer from 1 to the number of points, {points.shape[0]}"
            )
    if not isinstance(generator, torch.Generator | None):
        raise ParameterError("generator", type(generator).__name__, "a torch.Generator or None")
