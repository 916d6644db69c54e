"""Cluster tokens by density peaks with k nearest neighbours (DPC-KNN)."""

from __future__ import annotations

import math
from numbers import Integral
from typing import NamedTuple

import torch

from rcblib.records import ParameterError
from rcblib.tensors.neighbours import Points, blocks, diameter, exact_distances, nearest

NOISE_SCALE = 1e-6
"""Largest noise added to a density to break ties."""

N_NEAR = 16
"""Nearest points in which a denser one is looked for first."""

N_DENSER = 8
"""Denser points that are looked at more closely where none of the nearest is denser."""


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
    points: Points,
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
    points : torch.Tensor or LazyRows
        ``(n_points, d)``, in memory or read in parts.
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
    Differs: distances are differences in float64, also among many points, whose neighbours are found by products in
    float32 (`rcblib.tensors.neighbours`); the original's float32 product reports up to 1e-2 between a point and itself.
    So labels are those of all distances at once, whatever the blocks; points that tie exactly, such as copies without
    noise, are told apart by their order. Noise comes from a generator that is passed in. Time grows with
    ``n_points**2 * d``; memory beyond the points is some blocks, and half a kilobyte a point.
    """
    _check(points, n_clusters, k, generator)
    points = points.detach() if isinstance(points, torch.Tensor) else points
    n_points, scale = len(points), math.sqrt(points.shape[1])

    near = nearest(points, k, max(k, N_NEAR))
    density = (-(near.distances[:, :k] / scale).square().mean(-1)).exp()
    if generator is not None:
        noise = torch.rand(n_points, generator=generator, device=generator.device)
        density += NOISE_SCALE * noise.to(density)

    # Nearly all points have a denser one among their nearest; only for the others all are looked at again.
    not_denser = density[near.indices] <= density[:, None]
    distance = near.distances.masked_fill(not_denser, math.inf).amin(-1)
    far = (distance > near.reach).nonzero().flatten()
    if len(far):
        denser = nearest(
            points,
            1,
            N_DENSER,
            far,
            allowed=lambda rows, columns: density[None, columns] > density[rows, None],
        )
        distance[far] = denser.distances[:, 0]
    distance.clamp_(max=diameter(points, near)).div_(scale)

    score = density * distance
    centres = score.argsort(descending=True, stable=True)[:n_clusters]
    middles = points[centres].double()
    to_centres = (exact_distances(rows, middles) for _, rows in blocks(points, n_clusters))
    labels = torch.cat([distances.argmin(-1) for distances in to_centres])
    labels[centres] = torch.arange(n_clusters, device=labels.device)
    return DensityPeaks(labels, centres, density, distance, score) if return_details else labels


def _check(points: object, n_clusters: object, k: object, generator: object) -> None:
    """Raise a `ParameterError` for the first parameter of `dpc_knn` that cannot be used."""
    accepted = "a floating-point tensor (n_points, d), not empty"
    if not isinstance(points, Points):
        raise ParameterError("points", type(points).__name__, accepted)
    if len(points.shape) != 2 or not points.dtype.is_floating_point or 0 in points.shape:
        raise ParameterError("points", f"{points.dtype} {tuple(points.shape)}", accepted)
    if not all(block.isfinite().all() for _, block in blocks(points)):
        raise ParameterError("points", "NaN or infinity among its values", "finite values")
    for parameter, value in (("n_clusters", n_clusters), ("k", k)):
        if not isinstance(value, Integral) or not 1 <= value <= points.shape[0]:
            raise ParameterError(
                parameter, value, f"an integer from 1 to the number of points, {points.shape[0]}"
            )
    if not isinstance(generator, torch.Generator | None):
        raise ParameterError("generator", type(generator).__name__, "a torch.Generator or None")
