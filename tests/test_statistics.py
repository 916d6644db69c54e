"""Check intervals, correlations and areas against known answers and against direct resampling."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import roc_auc_score

from rcblib.reading import statistics
from rcblib.reading.column_means import mean_intervals
from rcblib.reading.statistics import (
    Estimate,
    kendall,
    mean_interval,
    mean_of_ratios,
    mean_table,
    paired_ratio,
    roc_auc,
    spearman,
)
from rcblib.records import ParameterError


@pytest.fixture
def generator():
    return np.random.default_rng(7)


def clustered_sample(seed, n_clusters=30, n_each=12):
    """Draw x, y and a label that share a strong effect of their cluster, rounded so that ties occur."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(n_clusters), n_each)
    effect = rng.normal(size=n_clusters)[clusters]
    x = np.round(effect + rng.normal(size=clusters.size), 1)
    y = np.round(effect + rng.normal(size=clusters.size), 1)
    return x, y, (y + rng.normal(size=clusters.size)) > 0, clusters


def resample_rows(clusters, counts):
    """Return the row numbers of a sample that holds cluster c counts[c] times."""
    return np.concatenate([np.tile(np.flatnonzero(clusters == c), int(k)) for c, k in enumerate(counts) if k])


def test_mean_of_known_values(generator):
    estimate = mean_interval([1.0, 2.0, 3.0, 4.0], generator=generator)
    assert estimate.value == 2.5
    assert 1.0 <= estimate.low < 2.5 < estimate.high <= 4.0
    assert (estimate.n, estimate.n_clusters) == (4, 4)


def test_mean_of_a_constant_has_an_interval_of_width_zero(generator):
    estimate = mean_interval([3.0] * 6, [0, 0, 1, 1, 2, 2], generator=generator)
    assert (estimate.value, estimate.low, estimate.high) == (3.0, 3.0, 3.0)


def test_one_cluster_leaves_nothing_to_resample(generator):
    estimate = mean_interval([0.0, 1.0, 5.0], [9, 9, 9], generator=generator)
    assert estimate.low == estimate.high == estimate.value == 2.0
    assert estimate.n_clusters == 1


def test_mean_interval_agrees_with_the_normal_approximation(generator):
    values = np.random.default_rng(0).normal(2.0, 1.0, size=2000)
    estimate = mean_interval(values, generator=generator, n_resamples=4000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_clusters_widen_the_interval_when_members_repeat_each_other(generator):
    values = np.random.default_rng(1).normal(size=40)
    repeated, clusters = np.repeat(values, 25), np.repeat(np.arange(40), 25)
    alone = mean_interval(repeated, generator=generator)
    grouped = mean_interval(repeated, clusters, generator=generator)
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(5.0, rel=0.15)  # sqrt(25) times as wide


def test_mean_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    n_hits = 0
    for _ in range(200):
        effects = rng.normal(size=60)
        values = np.repeat(effects, 5) + rng.normal(size=300)
        estimate = mean_interval(values, np.repeat(np.arange(60), 5), generator=rng, n_resamples=400)
        n_hits += estimate.low <= 0.0 <= estimate.high
    assert 0.89 <= n_hits / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval_and_labels_may_be_text():
    values, labels = [1.0, 2.0, 4.0, 8.0], ["a", "b", "a", "c"]
    first = mean_interval(values, labels, generator=np.random.default_rng(5))
    second = mean_interval(values, labels, generator=np.random.default_rng(5))
    assert first == second
    assert first.n_clusters == 3


def test_blocks_do_not_change_the_result(monkeypatch):
    x, _, labels, clusters = clustered_sample(2)
    whole = roc_auc(x, labels, clusters, generator=np.random.default_rng(5), n_resamples=50)
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", 1000)
    pieces = roc_auc(x, labels, clusters, generator=np.random.default_rng(5), n_resamples=50)
    assert pieces.value == whole.value
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_columns_on_the_same_draws_have_the_interval_that_each_has_alone(monkeypatch):
    monkeypatch.setattr(statistics, "_BLOCK_ELEMENTS", 600)  # several blocks
    values = np.random.default_rng(3).normal(size=(40, 3)) * [1, 0, 50]
    together = mean_intervals(values, generator=np.random.default_rng(1))
    for column, estimate in zip(values.T, together, strict=True):
        alone = mean_interval(column, generator=np.random.default_rng(1))
        assert (estimate.n, estimate.n_clusters, estimate.level) == (40, 40, 0.95)
        known = [alone.value, alone.low, alone.high]
        np.testing.assert_allclose(
            [estimate.value, estimate.low, estimate.high], known, rtol=1e-12, atol=1e-12
        )
    for wrong in (values[:, 0], values[:0], np.full((2, 2), np.nan)):
        with pytest.raises(ParameterError, match="values"):
            mean_intervals(wrong, generator=np.random.default_rng(1))


def test_mean_table_is_tidy_and_sorted(generator):
    frame = pd.DataFrame(
        {"task": ["b", "a", "a", "b"], "image_id": [1, 1, 2, 2], "score": [1.0, 0.0, 1.0, 1.0]}
    )
    table = mean_table(frame, "score", ["task"], "image_id", generator=generator)
    assert list(table.columns) == ["task", "mean", "low", "high", "n", "n_clusters"]
    assert table["task"].tolist() == ["a", "b"]
    assert table["mean"].tolist() == [0.5, 1.0]
    assert table["n_clusters"].tolist() == [2, 2]


def test_mean_table_names_a_missing_column(generator):
    with pytest.raises(ParameterError, match="column: got 'scores'; accepted: one of \\['score'\\]"):
        mean_table(pd.DataFrame({"score": [1.0]}), "scores", ["score"], generator=generator)


def test_paired_ratio_of_known_means(generator):
    estimate = paired_ratio([1, 1, 0, 1], [1, 1, 1, 1], generator=generator)
    assert estimate.value == 0.75
    assert 0.0 <= estimate.low <= 0.75 <= estimate.high <= 1.0


def test_paired_ratio_to_zero_is_undefined(generator):
    estimate = paired_ratio([1.0, 0.0], [0.0, 0.0], generator=generator)
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_mean_of_ratios_weighs_groups_the_same(generator):
    first, second = [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]
    estimate = mean_of_ratios(first, second, ["a", "a", "a", "a", "b"], generator=generator)
    assert estimate.value == pytest.approx((0.25 + 1.0) / 2)
    assert (estimate.n, estimate.n_clusters) == (5, 5)


def test_mean_of_ratios_of_one_group_is_the_paired_ratio():
    first, second, clusters = [1.0, 0, 1, 1, 0, 1], [1.0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 2, 2]
    one = paired_ratio(first, second, clusters, generator=np.random.default_rng(3))
    other = mean_of_ratios(first, second, [7] * 6, clusters, generator=np.random.default_rng(3))
    assert one == other


def test_mean_of_ratios_draws_whole_clusters_across_groups(generator):
    # Each cluster has one item in either group, and their ratios cancel: every resample has a mean of 0.5.
    first, groups, clusters = [1, 0, 0, 1] * 5, ["a", "b"] * 10, np.repeat(np.arange(10), 2)
    estimate = mean_of_ratios(first, [1] * 20, groups, clusters, generator=generator)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_mean_of_ratios_needs_a_score_in_every_group(generator):
    estimate = mean_of_ratios([1, 1, 1], [1, 1, 0], ["a", "a", "b"], generator=generator)
    assert np.isnan(estimate.value)
    with pytest.raises(ParameterError, match="groups"):
        mean_of_ratios([1, 1], [1, 1], ["a"], generator=generator)


REFERENCES = pytest.mark.parametrize(
    ("correlation", "reference"), [(spearman, spearmanr), (kendall, kendalltau)], ids=["spearman", "kendall"]
)


@pytest.mark.parametrize("correlation", [spearman, kendall])
def test_perfect_and_reversed_order(correlation, generator):
    x, images = np.arange(20.0), np.repeat([0, 1], 10)
    assert correlation(x, x**3, images, generator=generator).value == pytest.approx(1.0)
    estimate = correlation(x, -np.exp(x), images, generator=generator)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((-1.0, -1.0, -1.0))


@REFERENCES
def test_correlation_with_ties_equals_scipy(correlation, reference, generator):
    x, y, _, _ = clustered_sample(0)
    estimate = correlation(x, y, np.zeros(len(x)), generator=generator, n_resamples=20)
    assert estimate.value == pytest.approx(reference(x, y).statistic, abs=1e-12)
    assert (estimate.n, estimate.n_clusters) == (len(x), 1)


@REFERENCES
def test_correlation_is_the_mean_over_images(correlation, reference, generator):
    x, y, _, clusters = clustered_sample(6)
    estimate = correlation(x, y, clusters, generator=generator, n_resamples=200)
    expected = np.mean([reference(x[clusters == c], y[clusters == c]).statistic for c in range(30)])
    assert estimate.value == pytest.approx(expected, abs=1e-12)
    assert estimate.n_clusters == 30
    assert estimate.low < estimate.value < estimate.high
    # The shared effect of the cluster raises the coefficient of all pairs together only.
    assert estimate.value < reference(x, y).statistic - 0.2


@REFERENCES
def test_interval_equals_one_made_from_literal_resamples(correlation, reference):
    x, y, _, clusters = clustered_sample(1, n_clusters=12, n_each=6)
    estimate = correlation(x, y, clusters, generator=np.random.default_rng(11), n_resamples=40)
    of_image = np.array([reference(x[clusters == c], y[clusters == c]).statistic for c in range(12)])
    counts = np.random.default_rng(11).multinomial(12, np.full(12, 1 / 12), size=40)
    values = [np.repeat(of_image, drawn).mean() for drawn in counts]
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)


def test_correlation_leaves_out_constant_images(generator):
    x = np.array([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])
    estimate = spearman(x, [3.0, 2.0, 1.0, 1.0, 2.0, 3.0], [0, 0, 0, 1, 1, 1], generator=generator)
    assert estimate.value == pytest.approx(-1.0)
    assert (estimate.n, estimate.n_clusters) == (3, 1)


@pytest.mark.parametrize("correlation", [spearman, kendall])
def test_correlation_with_a_constant_is_undefined(correlation, generator):
    estimate = correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0, 0, 0], generator=generator)
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_area_known_answers(generator):
    labels = [0, 0, 1, 1]
    assert roc_auc([0.1, 0.4, 0.35, 0.8], labels, generator=generator).value == 0.75
    assert roc_auc([1, 2, 3, 4], labels, generator=generator).value == 1.0
    assert roc_auc([4, 3, 2, 1], labels, generator=generator).value == 0.0
    assert roc_auc([7, 7, 7, 7], labels, generator=generator).value == 0.5


def test_area_with_ties_equals_scikit_learn_on_literal_resamples():
    x, _, labels, clusters = clustered_sample(8, n_clusters=15, n_each=8)
    estimate = roc_auc(x, labels, clusters, generator=np.random.default_rng(2), n_resamples=50)
    assert estimate.value == pytest.approx(roc_auc_score(labels, x), abs=1e-12)
    rng = np.random.default_rng(2)
    values = []
    for counts in rng.multinomial(15, np.full(15, 1 / 15), size=50):
        rows = resample_rows(clusters, counts)
        values.append(roc_auc_score(labels[rows], x[rows]))
    assert (estimate.low, estimate.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)


def test_area_ignores_resamples_of_one_class(generator):
    estimate = roc_auc([1.0, 2.0], [False, True], generator=generator, n_resamples=50)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_area_inside_strata_compares_only_pairs_of_one_stratum(generator):
    # Inside both strata the positives are lower; the stratum of high scores has more positives.
    scores = [1, 2, 3, 11, 12, 13, 14]
    labels = [True, False, False, True, True, True, False]
    strata = ["low"] * 3 + ["high"] * 4
    assert roc_auc(scores, labels, generator=generator).value == pytest.approx(6 / 12)
    assert roc_auc(scores, labels, generator=generator, strata=strata).value == 0.0
    assert roc_auc([1, 1, 2, 9, 9, 9, 9], labels, generator=generator, strata=strata).value == pytest.approx(
        2 / 5
    )


def test_area_inside_strata_is_the_mean_weighted_by_pairs(generator):
    rng = np.random.default_rng(3)
    n = 120
    scores, labels, strata = rng.integers(0, 9, n), rng.random(n) < 0.4, rng.integers(0, 4, n)
    clusters = np.arange(n) // 10
    n_pairs = [labels[strata == s].sum() * (~labels[strata == s]).sum() for s in range(4)]
    areas = [roc_auc_score(labels[strata == s], scores[strata == s]) for s in range(4)]
    estimate = roc_auc(scores, labels, clusters, generator=generator, strata=strata, n_resamples=50)
    assert estimate.value == pytest.approx(np.average(areas, weights=n_pairs), abs=1e-12)
    assert estimate.low < estimate.value < estimate.high
    one = roc_auc(scores, labels, generator=generator, strata=np.zeros(n), n_resamples=5)
    assert one.value == roc_auc(scores, labels, generator=generator, n_resamples=5).value


def test_area_without_a_pair_in_any_stratum_is_undefined(generator):
    estimate = roc_auc([1.0, 2.0], [False, True], generator=generator, strata=[0, 1])
    assert np.isnan(estimate.value)
    with pytest.raises(ParameterError, match="strata"):
        roc_auc([1.0, 2.0], [False, True], generator=generator, strata=[0])


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0], [0, 1, 2], [0, 1]])
def test_area_refuses_labels_it_cannot_use(labels, generator):
    with pytest.raises(ParameterError, match="labels"):
        roc_auc([1.0, 2.0, 3.0], labels, generator=generator)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_reversing_the_scores_mirrors_the_area(rows):
    scores, labels = np.array([s for s, _ in rows], float), [label for _, label in rows]
    forward = roc_auc(scores, labels, generator=np.random.default_rng(0), n_resamples=5)
    backward = roc_auc(-scores, labels, generator=np.random.default_rng(0), n_resamples=5)
    assert forward.value + backward.value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(values=[]), "values"),
        (dict(values=[1.0, np.nan]), "1 of 2 values not finite"),
        (dict(values=[1.0], clusters=[1, 2]), "clusters"),
        (dict(values=[1.0], level=1.0), "level: got 1.0"),
        (dict(values=[1.0], n_resamples=0), "n_resamples: got 0"),
        (dict(values=[1.0], generator=3), "generator: got 3"),
    ],
)
def test_bad_arguments_are_named(arguments, message, generator):
    with pytest.raises(ParameterError, match=message):
        mean_interval(**{"generator": generator, **arguments})


def test_pairs_must_match(generator):
    with pytest.raises(ParameterError, match="second: got '3 values'; accepted: as many as first: 2"):
        paired_ratio([1.0, 2.0], [1.0, 2.0, 3.0], generator=generator)


def test_estimate_reads_well_and_goes_to_json():
    estimate = Estimate(0.8714, 0.8423, 0.897, 100, 10)
    assert str(estimate) == "0.871 [0.842, 0.897]"
    assert estimate.as_result() == {
        "value": 0.8714,
        "n": 100,
        "interval": [0.8423, 0.897],
        "n_clusters": 10,
        "level": 0.95,
    }
    undefined = Estimate(np.nan, np.nan, np.nan, 100, 10).as_result()
    assert (undefined["value"], undefined["interval"]) == (None, None)
