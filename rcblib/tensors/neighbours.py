"""Find the nearest points of many, block by block: searched by matrix products, decided by differences."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

MOST_NUMBERS = 2**21
"""Most numbers of one kind that are held at once: 16 MiB of float64, which a CPU's cache may hold."""

N_ROWS = 2048
"""Rows that are searched at once; points are read once for each so many."""

OFF_CPU = 32
"""How many times as much is held at once on a GPU, where launches cost time and no cache is to be filled."""

DIRECT_POINTS = 256
"""Up to so many points differences take no longer than a matrix product that has to be confirmed."""


class LazyRows(ABC):
    """Stand in for a matrix of points that is read in parts, such as one that memory cannot hold.

    Attributes
    ----------
    shape : tuple of int
        ``(n_points, d)``.
    dtype : torch.dtype
        Floating point.
    device : torch.device
        Of what is read.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Read some rows, by a slice or by their numbers, as ``(n_rows, d)``."""

    def __len__(self) -> int:
        return self.shape[0]


Points = torch.Tensor | LazyRows


class Nearest(NamedTuple):
    """Hold nearest points of some rows.

    Attributes
    ----------
    distances : torch.Tensor
        ``(n_rows, n_near)`` float64 Euclidean distances in ascending order; infinite where fewer points are allowed.
    indices : torch.Tensor
        ``(n_rows, n_near)`` int64 numbers of these points.
    reach : torch.Tensor
        ``(n_rows,)`` float64; no point that is left out is nearer than this.
    farthest : torch.Tensor
        ``(n_rows,)`` float64; no point at all is farther than this.
    """

    distances: torch.Tensor
    indices: torch.Tensor
    reach: torch.Tensor
    farthest: torch.Tensor


def nearest(
    points: Points,
    k: int,
    n_near: int,
    rows: torch.Tensor | None = None,
    allowed: Callable[[torch.Tensor, slice], torch.Tensor] | None = None,
) -> Nearest:
    """Find the nearest points of some rows, a row itself among them.

    Parameters
    ----------
    points : torch.Tensor or LazyRows
        ``(n_points, d)``, finite.
    k : int
        Neighbours of a row that must be its nearest; the others, up to `n_near`, are near.
    n_near : int
        Neighbours that are looked at more closely, at least `k`.
    rows : torch.Tensor, optional
        ``(n_rows,)`` int64 numbers of the points whose neighbours are asked for; all by default.
    allowed : callable, optional
        Told row numbers ``(n,)`` and a slice of m points, says which points may be neighbours, ``(n, m)`` bool.

    Returns
    -------
    Nearest
        Exact: distances are float64 differences, which depend neither on blocks nor on the order of points.

    Notes
    -----
    A matrix product bounds the squared distances from below (`_Products`). The `n_near` lowest bounds are replaced by
    distances; a row whose k-th is below all other bounds is done. The rest is searched again in float64, and what is
    still open, such as dozens of points that differ by rounding only, by differences to all points. So float32 costs no
    exactness. Time grows with ``n_rows * n_points * d``; memory beyond the results is bounded.
    """
    n_points = len(points)
    n_near = min(n_near, n_points)
    rows = torch.arange(n_points, device=points.device) if rows is None else rows
    found = Nearest(
        torch.empty(len(rows), n_near, dtype=torch.float64, device=points.device),
        torch.empty(len(rows), n_near, dtype=torch.long, device=points.device),
        *torch.empty(2, len(rows), dtype=torch.float64, device=points.device),
    )
    left = torch.arange(len(rows), device=points.device)
    for way in _searches(points):
        still_open = []
        for part in left.split(N_ROWS):
            block = _search(points, way, rows[part], n_near, allowed)
            for whole, own in zip(found, block, strict=True):
                whole[part] = own
            still_open.append(part[~(block.distances[:, k - 1] <= block.reach)])
        left = torch.cat(still_open) if still_open else left
        if not len(left):
            break
    return found


def diameter(points: Points, found: Nearest) -> float:
    """Return the largest distance of all, given what `nearest` found for all rows."""
    order = found.farthest.argsort(descending=True)
    largest = 0.0
    for part in order.split(16):  # nearly always the first of them
        if largest >= found.farthest[part[0]]:
            break
        rows = points[part].double()
        for _, others in blocks(points, len(rows)):
            largest = max(largest, exact_distances(rows, others).max().item())
    return largest


def blocks(points: Points, n_others: int = 1) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield points in float64 block by block, few enough at once to hold their distances to `n_others` points."""
    n_rows = max(1, _at_once(points) // max(points.shape[1], n_others))
    for start in range(0, len(points), n_rows):
        rows = slice(start, min(start + n_rows, len(points)))
        yield rows, points[rows].double()


def _at_once(points: Points) -> int:
    return MOST_NUMBERS * (1 if points.device.type == "cpu" else OFF_CPU)


def exact_distances(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return Euclidean distances by differences, 0 between copies of a point; ``(..., n_rows, n_others)``."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def _searches(points: Points) -> Iterator[_Products | _Differences]:
    """Yield ways to search, each for the rows that the one before has left open."""
    if len(points) > DIRECT_POINTS:
        centre = sum(block.sum(0) for _, block in blocks(points)) / len(points)
        dtypes = [torch.float64]
        if torch.get_float32_matmul_precision() == "highest":  # else products may be of fewer digits
            dtypes.insert(0, torch.float32)
        for dtype in dtypes:
            products = _Products(points, centre, dtype)
            if products.is_safe:
                yield products
    yield _Differences(points)


def _search(
    points: Points,
    way: _Products | _Differences,
    rows: torch.Tensor,
    n_near: int,
    allowed: Callable[[torch.Tensor, slice], torch.Tensor] | None,
) -> Nearest:
    """Search all points for the nearest of a block of rows."""
    n_points, width = len(points), max(1, _at_once(points) // max(N_ROWS, points.shape[1]))
    width = min(width, n_points)
    prepared = way.rows(rows)
    # The best so far stand before each tile: one selection merges both.
    values = torch.full((len(rows), n_near + width), math.inf, dtype=way.dtype, device=points.device)
    indices = torch.zeros(len(rows), n_near, dtype=torch.long, device=points.device)
    farthest = torch.full((len(rows),), -math.inf, dtype=way.dtype, device=points.device)
    for start in range(0, n_points, width):
        columns = slice(start, min(start + width, n_points))
        end = n_near + columns.stop - start
        tile = values[:, n_near:end]
        way.fill(prepared, columns, tile)
        farthest = torch.maximum(farthest, tile.amax(1))
        if allowed:
            tile.masked_fill_(~allowed(rows, columns), math.inf)
        values[:, :n_near], places = values[:, :end].topk(n_near, largest=False)
        known = indices.gather(1, places.clamp(max=n_near - 1))
        indices = torch.where(places < n_near, known, places - n_near + start)
    found = way.confirmed(rows, values[:, :n_near].double(), indices, farthest.double())
    return found._replace(reach=torch.full_like(found.reach, math.inf)) if n_near == n_points else found


class _Differences:
    """Compute every distance by differences."""

    dtype = torch.float64

    def __init__(self, points: Points):
        self._points = points

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        return self._points[rows].double()

    def fill(self, rows: torch.Tensor, columns: slice, tile: torch.Tensor) -> None:
        tile.copy_(exact_distances(rows, self._points[columns].double()))

    def confirmed(
        self, rows: torch.Tensor, values: torch.Tensor, indices: torch.Tensor, farthest: torch.Tensor
    ) -> Nearest:
        return Nearest(values, indices, values[:, -1], farthest)


class _Products:
    """Bound squared distances from below through one matrix product.

    Of centred points x and y, |x - y|² = |x|² + |y|² - 2 x·y. What rounding adds to that, and to the difference that
    it is compared with, is below slack (|x| + |y|)² <= 2 slack (|x|² + |y|²), in whichever order sums are taken: norms
    that are smaller by that share give a lower bound for every pair.
    """

    def __init__(self, points: Points, centre: torch.Tensor, dtype: torch.dtype):
        self._points, self._centre, self.dtype = points, centre, dtype
        d, limits = points.shape[1], torch.finfo(dtype)
        self._slack = (d / 4 + 4) * limits.eps + (d / 2 + 2) * torch.finfo(torch.float64).eps
        squares = [self._centred(block).double().square().sum(-1) for _, block in blocks(points)]
        self._squares = torch.cat(squares)
        self.is_safe = self._squares.max().item() < limits.max / 8
        self._norms = (self._squares * (1 - 2 * self._slack) - d * limits.tiny).to(dtype)

    def _centred(self, points: torch.Tensor) -> torch.Tensor:
        return (points.double() - self._centre).to(self.dtype)

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        return self._centred(self._points[rows]).mul_(-2)

    def fill(self, rows: torch.Tensor, columns: slice, tile: torch.Tensor) -> None:
        """Write the bounds less what all of a row have in common."""
        others = self._centred(self._points[columns])
        with torch.autocast(tile.device.type, enabled=False):
            torch.addmm(self._norms[columns], rows, others.T, out=tile)

    def confirmed(
        self, rows: torch.Tensor, values: torch.Tensor, indices: torch.Tensor, farthest: torch.Tensor
    ) -> Nearest:
        """Replace the lowest bounds by distances, in ascending order."""
        own = self._norms[rows].double()
        reach = (values[:, -1] + own).clamp_min_(0).sqrt_()
        most = 4 * self._slack * (self._squares[rows] + self._squares.max())
        distances = torch.empty_like(values)
        n_at_once = max(1, _at_once(self._points) // (indices.shape[1] * self._points.shape[1]))
        for some in torch.arange(len(rows), device=rows.device).split(n_at_once):
            others = self._points[indices[some].flatten()].double().unflatten(0, (len(some), -1))
            distances[some] = exact_distances(self._points[rows[some]].double()[:, None], others)[:, 0]
        distances, order = distances.masked_fill_(values.isinf(), math.inf).sort(dim=1)
        farthest = (farthest + own + most).clamp_min_(0).sqrt_()
        return Nearest(distances, indices.gather(1, order), reach, farthest)
