"""Compare every arithmetic path with the same formula written out in numpy's float64."""

import math

import numpy as np
import pytest
import torch

from rcblib.codebook.criterion import CodebookCriterion
from rcblib.tensors.clustering import dpc_knn
from rcblib.tensors.divergence import combined_influence, divergence, entropy, top1_probability
from rcblib.tensors.geometry import cosine_to_cls
from rcblib.tensors.scoring import RULES, calibrate_max_similarity, keep_indices, redundancy_scores

N_VOCAB = 300
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def logits(seed, n=40, dtype=torch.float32):
    return (8 * torch.randn(n, N_VOCAB, generator=torch.Generator().manual_seed(seed))).to(dtype)


def exact(tensor):
    """Return numbers as they are stored, in float64."""
    return tensor.double().numpy()


def softmax(values, axis=-1):
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def candidates(intact, ablated, n):
    """Return both runs renormalised over the intact run's largest logits."""
    order = np.argsort(-intact, axis=-1, kind="stable")[:, :n]
    return (softmax(np.take_along_axis(values, order, -1)) for values in (intact, ablated))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probability_and_entropy_of_the_first_word(dtype):
    given = logits(0, dtype=dtype)
    probability, token = top1_probability(given, 50)
    head = np.sort(exact(given), axis=-1)[:, -50:]
    np.testing.assert_allclose(probability, softmax(head)[:, -1], rtol=1e-13)
    assert token.tolist() == exact(given).argmax(-1).tolist()
    p = softmax(exact(given))
    np.testing.assert_allclose(entropy(given), -(p * np.log(p)).sum(-1), rtol=1e-12)


@pytest.mark.parametrize("n", [1, 10, N_VOCAB])
def test_both_forms_of_the_divergence(n):
    intact, ablated = logits(1), logits(1) + 0.5 * logits(2)
    p, q = candidates(exact(intact), exact(ablated), n)
    m = (p + q) / 2
    released = (m * np.log(m / p) + m * np.log(m / q)).mean(-1) / 2
    textbook = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
    np.testing.assert_allclose(divergence(intact, ablated, n), released, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(divergence(intact, ablated, n, "textbook"), textbook, rtol=1e-10, atol=1e-15)
    assert n == 1 or (released > 1e-6).any()


def test_the_influence_and_the_criterion():
    region, global_, top1 = (np.random.default_rng(i).random(5000, dtype=np.float32) / 100 for i in range(3))
    expected = 1.5 * region.astype(np.float64) + 16.0 * global_.astype(np.float64)
    criterion = CodebookCriterion(tau_p=0.005, tau_jsd=0.08, k_region=1.5, k_global=16.0)
    assert (criterion.influence(region, global_) == expected).all()
    assert (criterion.influence(torch.tensor(region), torch.tensor(global_)) == expected).all()
    assert (combined_influence(region.astype(float), global_.astype(float), 1.5, 16.0) == expected).all()
    low = (top1.astype(np.float64) < 0.005) & (expected < 0.08)
    assert (criterion.low_information(top1, region, global_) == low).all() and 0 < low.sum() < 5000


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(400, 48, generator=generator), torch.randn(60, 48, generator=generator)


def written_scores(tokens, prototypes, rule):
    tokens, prototypes = exact(tokens), exact(prototypes)
    cosines = (tokens / np.linalg.norm(tokens, axis=1, keepdims=True)) @ (
        prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    ).T
    if rule == "max_cosine":
        return cosines.max(1)
    weight = softmax(cosines, 1) * (softmax(cosines, 0) if rule == "double_softmax" else 1)
    return weight.max(1)


def written_choice(scores, rule, cut=None, ratio=None):
    """Keep what is below a cut-off, the lowest share, or, by a softmax rule, what is below the last that is dropped."""
    if cut is not None:
        return np.flatnonzero(scores < cut)
    if rule == "max_cosine":
        return np.sort(np.argsort(scores, kind="stable")[: round(len(scores) * ratio)])
    return np.flatnonzero(scores < np.sort(scores)[::-1][round(len(scores) * (1 - ratio)) - 1])


@pytest.mark.parametrize("rule", RULES)
def test_scores_of_tokens(features, rule):
    tokens, prototypes = features
    expected = written_scores(tokens, prototypes, rule)
    np.testing.assert_allclose(redundancy_scores(tokens.double(), prototypes, rule), expected, rtol=1e-12)
    np.testing.assert_allclose(redundancy_scores(tokens, prototypes, rule), expected, rtol=5e-6, atol=1e-7)
    for dtype, limit in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        half = tokens.to(dtype)  # what is left is the rounding of the result
        expected = written_scores(half, prototypes, rule)
        np.testing.assert_allclose(exact(redundancy_scores(half, prototypes, rule)), expected, rtol=limit)


@pytest.mark.parametrize(
    ("rule", "budget"),
    [
        ("max_cosine", {"cut": 0.3}),
        *((rule, {"ratio": ratio}) for rule in RULES for ratio in (0.1, 0.5, 0.9)),
    ],
)
def test_what_the_four_rules_keep(features, rule, budget):
    expected = written_choice(written_scores(*features, rule), rule, **budget)
    names = {"cut": "max_similarity", "ratio": "retain_ratio"}
    named = {names[name]: value for name, value in budget.items()}
    for tokens in (features[0], features[0].double()):
        kept = keep_indices(redundancy_scores(tokens, features[1], rule), rule=rule, **named)
        assert kept.tolist() == expected.tolist()
    assert 0 < len(expected) < 400


def test_a_calibrated_cut_off_lies_between_two_scores(features):
    scores = written_scores(*features, "max_cosine")
    below, above = np.sort(scores)[99:101]
    given = [redundancy_scores(features[0], features[1])]
    assert calibrate_max_similarity(given, 0.25) == pytest.approx((below + above) / 2, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distances_densities_and_clusters(features, dtype):
    points = features[0][:150].to(dtype)
    x, k, n_clusters = exact(points), 5, 12
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)) / math.sqrt(x.shape[1])
    density = np.exp(-(np.sort(distances, axis=1)[:, :k] ** 2).mean(1))
    distance = np.array([
        min(distances[i][density > density[i]], default=distances.max()) for i in range(len(x))
    ])  # fmt: skip
    centres = np.argsort(-density * distance, kind="stable")[:n_clusters]
    labels = distances[:, centres].argmin(1)
    labels[centres] = np.arange(n_clusters)
    found = dpc_knn(points, n_clusters, k, return_details=True)
    np.testing.assert_allclose(found.density, density, rtol=1e-12)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)
    np.testing.assert_allclose(found.score, density * distance, rtol=1e-12)
    assert found.centres.tolist() == centres.tolist() and found.labels.tolist() == labels.tolist()


def test_distances_of_many_points_lose_nothing():
    points = torch.randn(4200, 16, generator=torch.Generator().manual_seed(4))
    found = dpc_knn(points, 10, return_details=True)
    x = exact(points)
    rows = [0, 1000, 4199]
    distances = np.sqrt(((x[rows, None] - x[None]) ** 2).sum(-1)) / 4
    density = np.exp(-(np.sort(distances, axis=1)[:, :5] ** 2).mean(1))
    np.testing.assert_allclose(found.density[rows], density, rtol=1e-12)


def test_the_similarity_to_cls():
    hidden = torch.randn(37, 24, generator=torch.Generator().manual_seed(5))
    x = exact(hidden)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine_to_cls(hidden), unit[1:] @ unit[0], rtol=0, atol=5e-7)
