import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcblib.records import ParameterError
from rcblib.tensors import clustering, neighbours
from rcblib.tensors.clustering import NOISE_SCALE, dpc_knn
from rcblib.tensors.neighbours import exact_distances


def blobs(n_blobs, n_each, d=8, seed=0):
    """Draw separated groups; return points in random order and the group of each."""
    generator = torch.Generator().manual_seed(seed)
    middles = 12 * torch.randn(n_blobs, d, generator=generator)
    groups = torch.arange(n_blobs).repeat_interleave(n_each)
    order = torch.randperm(len(groups), generator=generator)
    points = middles[groups] + 0.1 * torch.randn(len(groups), d, generator=generator)
    return points[order], groups[order]


def same_partition(a, b):
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(3)])
@pytest.mark.parametrize("n_blobs", [2, 8])
def test_separated_blobs_are_found(n_blobs, generator):
    points, groups = blobs(n_blobs, 20)
    labels = dpc_knn(points, n_blobs, generator=generator)
    assert labels.dtype == torch.int64
    assert same_partition(labels, groups)


def test_quantities_of_points_on_a_line():
    points = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    found = dpc_knn(points, 2, k=2, return_details=True)
    density = torch.tensor([-0.5, -0.5, -2.0, -24.5]).double().exp()
    torch.testing.assert_close(found.density, density)
    torch.testing.assert_close(found.distance, torch.tensor([10.0, 10.0, 2.0, 7.0]).double())
    torch.testing.assert_close(found.score, found.density * found.distance)
    # The two densest points tie; the earlier comes first, and each keeps its own cluster.
    assert found.centres.tolist() == [0, 1]
    assert found.labels.tolist() == [0, 1, 1, 1]


def test_distances_are_scaled_by_the_root_of_the_width():
    points = torch.zeros(2, 16)
    points[1] = 3.0
    found = dpc_knn(points, 1, k=2, return_details=True)
    torch.testing.assert_close(found.distance, torch.full((2,), 3.0).double())
    torch.testing.assert_close(found.density, torch.full((2,), math.exp(-4.5)).double())


def test_details_agree_with_the_labels():
    points, _ = blobs(5, 12)
    found = dpc_knn(points, 9, generator=torch.Generator().manual_seed(0), return_details=True)
    assert (found.labels == dpc_knn(points, 9, generator=torch.Generator().manual_seed(0))).all()
    assert found.labels[found.centres].tolist() == list(range(9))
    assert (found.score[found.centres].diff() <= 0).all()
    assert found.score[found.centres].min() >= found.score.sort().values[-9]
    rest = torch.ones(len(points), dtype=torch.bool)
    rest[found.centres] = False
    nearest = torch.cdist(points, points[found.centres]).argmin(-1)
    assert (found.labels[rest] == nearest[rest]).all()


def test_noise_is_the_generators_draw():
    points, _ = blobs(3, 10)
    quiet = dpc_knn(points, 3, return_details=True)
    noisy = dpc_knn(points, 3, generator=torch.Generator().manual_seed(7), return_details=True)
    draw = torch.rand(30, generator=torch.Generator().manual_seed(7)).double()
    torch.testing.assert_close(noisy.density - quiet.density, NOISE_SCALE * draw, atol=1e-15, rtol=1e-8)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    dpc_knn(blobs(3, 10)[0], 3, generator=torch.Generator().manual_seed(7))
    assert (torch.get_rng_state() == state).all()


def test_identical_points_still_give_non_empty_clusters():
    found = dpc_knn(torch.ones(12, 4), 5, return_details=True)
    assert (found.density == 1).all()
    assert (found.distance == 0).all()
    assert set(found.labels.tolist()) == set(range(5))


def test_limits_of_the_counts():
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert (dpc_knn(points, 1) == 0).all()
    assert sorted(dpc_knn(points, 6, k=6).tolist()) == list(range(6))
    assert dpc_knn(points[:1], 1, k=1).tolist() == [0]


@pytest.mark.parametrize("n_near", [1, 6, 1000])
def test_how_many_neighbours_are_looked_at_first_changes_nothing(n_near, monkeypatch):
    points, _ = blobs(6, 25)
    usual = dpc_knn(points, 10, return_details=True)
    monkeypatch.setattr(clustering, "N_NEAR", n_near)
    for a, b in zip(usual, dpc_knn(points, 10, return_details=True), strict=True):
        assert torch.equal(a, b)


def test_copies_of_a_point_are_at_distance_zero():
    points = 100 + torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    found = dpc_knn(points.repeat(5, 1), 10, return_details=True)
    assert (found.density == 1).all()


def test_half_precision_and_gradients_are_accepted():
    points, groups = blobs(4, 15)
    assert same_partition(dpc_knn(points.half(), 4), groups)
    labels = dpc_knn(points.requires_grad_(), 4, return_details=True)
    assert not labels.score.requires_grad


@given(st.integers(0, 2**32 - 1), st.integers(5, 40), st.integers(1, 6), st.data())
def test_labels_are_in_range_and_no_cluster_is_empty(seed, n_points, d, data):
    n_clusters = data.draw(st.integers(1, n_points))
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n_points, d, generator=generator).round(decimals=data.draw(st.integers(0, 3)))
    labels = dpc_knn(points, n_clusters, generator=generator if seed % 2 else None)
    assert labels.shape == (n_points,)
    assert set(labels.tolist()) == set(range(n_clusters))


def with_copies(seed, n_points, n_copies):
    """Draw points of which some are copies of others; of none as many as make a density."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n_points, 4, generator=generator).repeat(n_copies, 1)
    return points[torch.randperm(len(points), generator=generator)[: max(n_points, 5)]]


@given(st.integers(0, 2**32 - 1), st.integers(5, 40), st.integers(1, 4), st.integers(1, 5))
def test_clusters_do_not_depend_on_the_order_of_points(seed, n_points, n_copies, n_clusters):
    # Without noise, and but for ties: where n_copies is 1 no two points tie, else copies change places.
    points = with_copies(seed, n_points, n_copies)
    shuffle = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    labels, shuffled = dpc_knn(points, n_clusters), dpc_knn(points[shuffle], n_clusters)
    if n_copies == 1:
        assert torch.equal(shuffled, labels[shuffle])
    partitions = [
        sorted(sorted(map(tuple, given[found == number].tolist())) for number in range(n_clusters))
        for given, found in ((points, labels), (points[shuffle], shuffled))
    ]
    assert partitions[0] == partitions[1]


@given(st.integers(0, 2**32 - 1), st.integers(5, 60), st.integers(1, 12), st.integers(1, 5), st.data())
def test_blocks_change_no_bit_of_anything(seed, n_points, n_copies, n_clusters, data):
    points = with_copies(seed, n_points, n_copies)
    noise = torch.Generator().manual_seed(seed) if seed % 2 else None
    whole = dpc_knn(points, n_clusters, generator=noise and noise.clone_state(), return_details=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "DIRECT_POINTS", 0)
        patch.setattr(neighbours, "N_ROWS", data.draw(st.integers(1, n_points)))
        patch.setattr(neighbours, "MOST_NUMBERS", data.draw(st.integers(1, 8 * n_points)))
        patch.setattr(clustering, "N_NEAR", data.draw(st.integers(1, 40)))
        patch.setattr(clustering, "N_DENSER", data.draw(st.integers(1, 9)))
        blocked = dpc_knn(points, n_clusters, generator=noise, return_details=True)
    for a, b in zip(whole, blocked, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_many_points_have_the_labels_of_the_plain_form(precision):
    # More than are clustered without products, in every precision that these may have.
    points = blobs(40, 50, d=24)[0]
    distances = exact_distances(points.double(), points.double()) / math.sqrt(24)
    density = (-distances.topk(5, largest=False).values.square().mean(-1)).exp()
    to_denser = distances.masked_fill(density[None, :] <= density[:, None], math.inf).amin(-1)
    score = density * to_denser.clamp(max=distances.max())
    centres = score.argsort(descending=True, stable=True)[:48]
    labels = distances[:, centres].argmin(-1)
    labels[centres] = torch.arange(48)
    torch.set_float32_matmul_precision(precision)
    try:
        found = dpc_knn(points, 48, return_details=True)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(points) > neighbours.DIRECT_POINTS
    assert torch.equal(found.density, density) and torch.equal(found.score, score)
    assert torch.equal(found.labels, labels)


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"points": torch.zeros(6)}, "points"),
        ({"points": torch.zeros(1, 6, 2)}, "points"),
        ({"points": torch.zeros(0, 2)}, "points"),
        ({"points": torch.zeros(6, 2, dtype=torch.long)}, "points"),
        ({"points": torch.full((6, 2), float("nan"))}, "points"),
        ({"points": [[0.0, 1.0]] * 6}, "points"),
        ({"n_clusters": 7}, "n_clusters"),
        ({"n_clusters": 0}, "n_clusters"),
        ({"n_clusters": 2.0}, "n_clusters"),
        ({"k": 7}, "k"),
        ({"k": 0}, "k"),
        ({"generator": 0}, "generator"),
    ],
)
def test_bad_inputs_are_refused(changes, parameter):
    arguments = {"points": torch.zeros(6, 2), "n_clusters": 2, **changes}
    with pytest.raises(ParameterError, match=f"^{parameter}: got"):
        dpc_knn(**arguments)
