"""Exact nearest points by whichever way they are searched."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcblib.tensors import neighbours
from rcblib.tensors.neighbours import LazyRows, diameter, exact_distances, nearest


class Counted(LazyRows):
    """A matrix that counts what is read of it at once."""

    def __init__(self, points):
        self._points, self.most = points, 0
        self.shape, self.dtype, self.device = points.shape, points.dtype, points.device

    def __getitem__(self, rows):
        read = self._points[rows]
        self.most = max(self.most, len(read))
        return read


@pytest.fixture
def small_blocks(monkeypatch):
    """Search few points as if they were many: by products, in blocks that do not divide their number."""
    monkeypatch.setattr(neighbours, "DIRECT_POINTS", 0)
    monkeypatch.setattr(neighbours, "N_ROWS", 37)
    monkeypatch.setattr(neighbours, "MOST_NUMBERS", 37 * 23)


def drawn(n, d, seed=0, kind="normal"):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    if kind == "far away":  # digits that a product in float32 loses
        points = points.double() + 1e5
    if kind == "copies":
        points = points[torch.randint(max(n // 6, 1), (n,), generator=generator)]
    if kind == "nearly copies":  # which only differences tell apart
        points = points[torch.arange(n) // 60].double() + 1e-9 * points
    if kind == "of many lengths":
        points = points * 10 ** (6 * torch.rand(n, 1, generator=generator) - 3)
    return points


KINDS = ["normal", "far away", "copies", "nearly copies", "of many lengths"]


def literal(points):
    return exact_distances(points.double(), points.double())


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_those_of_all_distances(kind, small_blocks):
    points = drawn(190, 12, kind=kind)
    distances = literal(points)
    found = nearest(points, k=5, n_near=9)
    assert torch.equal(found.distances[:, :5], distances.topk(5, largest=False).values)
    assert torch.equal(found.distances, distances.gather(1, found.indices))
    assert (found.distances.diff(dim=1) >= 0).all()
    left_out = distances.scatter(1, found.indices, math.inf).amin(1)
    assert (found.reach <= left_out).all()
    assert (found.farthest >= distances.amax(1)).all()
    assert diameter(points, found) == distances.max()


@pytest.mark.parametrize("kind", KINDS)
def test_only_allowed_points_are_neighbours(kind, small_blocks):
    points, rows = drawn(120, 6, seed=1, kind=kind), torch.tensor([0, 3, 50, 119])
    value = torch.rand(120, generator=torch.Generator().manual_seed(2))
    value[3] = value.max() + 1  # none is allowed
    found = nearest(points, 1, 4, rows, lambda rows, columns: value[None, columns] > value[rows, None])
    expected = literal(points)[rows].masked_fill(value[None, :] <= value[rows, None], math.inf).amin(1)
    assert torch.equal(found.distances[:, 0], expected)
    assert found.distances[1].isinf().all()


def test_all_points_may_be_neighbours(small_blocks):
    points = drawn(30, 4)
    found = nearest(points, 30, 50)
    assert torch.equal(found.distances, literal(points).sort(dim=1).values)
    assert found.reach.isinf().all()


def ways(points):
    return [(type(way).__name__, way.dtype) for way in neighbours._searches(points)]


def test_a_product_is_searched_only_where_it_can_be_trusted(small_blocks):
    points = drawn(60, 8)
    products = [("_Products", torch.float32), ("_Products", torch.float64)]
    differences = ("_Differences", torch.float64)
    assert ways(points) == [*products, differences]
    assert ways(points * 1e25) == [products[1], differences]  # their squares are no numbers in float32
    assert ways(points.double() * 1e200) == [differences]
    usual = nearest(points, 5, 9)
    torch.set_float32_matmul_precision("medium")
    try:
        assert ways(points) == [products[1], differences]
        assert torch.equal(nearest(points, 5, 9).distances, usual.distances)
    finally:
        torch.set_float32_matmul_precision("highest")
    large = points * 1e25
    assert torch.equal(nearest(large, 5, 9).distances[:, :5], literal(large).topk(5, largest=False).values)


def test_few_points_are_not_searched_by_products():
    assert ways(drawn(neighbours.DIRECT_POINTS, 2)) == [("_Differences", torch.float64)]


def test_rows_that_are_read_in_parts_give_the_same(small_blocks):
    points = drawn(200, 8)
    lazy = Counted(points)
    for a, b in zip(nearest(points, 5, 9), nearest(lazy, 5, 9), strict=True):
        assert torch.equal(a, b)
    assert lazy.most <= 37 * 23 // 8


@given(st.integers(0, 2**32 - 1), st.integers(2, 90), st.integers(1, 9), st.sampled_from(KINDS), st.data())
def test_neither_blocks_nor_order_matter(seed, n, d, kind, data):
    points = drawn(n, d, seed, kind)
    k = data.draw(st.integers(1, n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "DIRECT_POINTS", 0)
        patch.setattr(neighbours, "N_ROWS", data.draw(st.integers(1, n)))
        patch.setattr(neighbours, "MOST_NUMBERS", data.draw(st.integers(1, 2 * n * d)))
        found = nearest(points[order], k, min(n, k + 3))
    assert torch.equal(found.distances[:, :k], literal(points).sort(dim=1).values[order][:, :k])
