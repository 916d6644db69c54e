"""Check drawn means against Jeffreys' closed form, their coverage on known truths, Holm's rule and sample sizes."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from rcblib.reading.resampling import draw_means, holm, n_for_half_width, share
from rcblib.records import ParameterError


@pytest.fixture
def generator():
    return np.random.default_rng(3)


@pytest.mark.parametrize(("right", "n"), [(1, 1), (0, 1), (5, 5), (0, 20), (83, 100), (1, 30)])
def test_a_share_of_images_has_the_interval_of_jeffreys(right, n, generator):
    found = share([1] * right + [0] * (n - right), generator=generator, n_resamples=40_000)
    low, high = beta.ppf([0.025, 0.975], right + 0.5, n - right + 0.5)
    assert found.value == right / n
    # The estimate itself is part of the interval, as is usual with Jeffreys' at 0 and at n of n.
    assert found.low == pytest.approx(min(low, right / n), abs=0.01)
    assert found.high == pytest.approx(max(high, right / n), abs=0.01)
    assert found.low < found.high
    assert (found.n, found.n_clusters) == (n, n)


def test_answers_that_repeat_each_other_inside_an_image_count_as_one(generator):
    alone = share([1] * 6, generator=generator)
    repeated = share([1] * 60, np.repeat(np.arange(6), 10), generator=generator)
    assert repeated.low == pytest.approx(alone.low, abs=0.02)
    assert repeated.n == 60


@pytest.mark.parametrize(("n", "truth"), [(10, 0.95), (30, 0.98), (60, 0.5), (40, 0.1)])
def test_a_share_covers_the_truth_about_as_often_as_it_says(n, truth, generator):
    hits = []
    for _ in range(400):
        found = share(generator.random(n) < truth, generator=generator, n_resamples=400)
        hits.append(found.low <= truth <= found.high)
    assert 0.91 <= np.mean(hits) <= 1.0


def seeds_and_images(rng, n_seeds, n_images, of_seed, of_image):
    """Draw scores with effects of seed and of image, both about 0.5."""
    scores = 0.5 + of_seed * rng.normal(size=(n_seeds, 1)) + of_image * rng.normal(size=(1, n_images))
    scores = np.clip(scores + 0.05 * rng.normal(size=(n_seeds, n_images)), 0, 1)
    seed, image = np.indices(scores.shape)
    return scores.ravel(), image.ravel(), seed.ravel()


@pytest.mark.parametrize(("of_seed", "of_image"), [(0.0, 0.15), (0.06, 0.15), (0.06, 0.02)])
def test_seeds_and_images_both_widen_an_interval_as_they_should(of_seed, of_image, generator):
    hits = []
    for _ in range(300):
        scores, images, seeds = seeds_and_images(generator, 5, 40, of_seed, of_image)
        found = share(scores, images, seeds, generator=generator, n_resamples=400)
        hits.append(found.low <= 0.5 <= found.high)
    assert 0.85 <= np.mean(hits) <= 0.99  # five seeds have heavier tails than their draws


def test_one_seed_is_as_no_seed():
    scores = np.linspace(0, 1, 30)
    with_seed, without = (
        share(scores, seeds=seeds, generator=np.random.default_rng(1)) for seeds in ([7] * 30, None)
    )
    assert with_seed == without


def test_quantities_of_the_same_images_are_drawn_together(generator):
    frame = pd.DataFrame({"image_id": range(80), "task": "a", "score": generator.random(80)})
    lower = frame.assign(score=frame["score"] * 0.5)
    draws = draw_means({"all": frame, "half": lower}, generator=generator)
    ratio = draws.estimate((draws["half"] / draws["all"])[:, 0])
    apart = draws.estimate(draws["all"][:, 0])
    assert ratio.value == pytest.approx(0.5)
    assert ratio.high - ratio.low < 0.6 * (apart.high - apart.low)
    assert ratio.p_value(0.9) < 0.01 < ratio.p_value(0.5)


def test_tasks_stay_apart_in_the_order_given(generator):
    frame = pd.DataFrame({"image_id": [1, 1, 2, 2], "task": ["b", "a"] * 2, "score": [1, 0, 1, 0.5]})
    draws = draw_means({"x": frame}, generator=generator)
    assert draws.tasks == ("b", "a")
    assert draws["x"][0].tolist() == [1.0, 0.25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 1.5}, r"scores in \[0, 1\]"),
        ({"score": np.nan}, "none of them NaN"),
        ({"task": "other"}, "the tasks"),
        ({"seed": [0.0, np.nan]}, "a seed for every row or for none"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(change, message, generator):
    frame = pd.DataFrame({"image_id": [1, 2], "task": "a", "score": [0.0, 1.0]})
    with pytest.raises(ParameterError, match=message):
        draw_means({"x": frame, "y": frame.assign(**change)}, generator=generator)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_the_images_needed_for_a_half_width():
    assert n_for_half_width([1] * 83 + [0] * 17) == 603
    assert n_for_half_width([1, 0], half_width=0.05) == 385
    with pytest.raises(ParameterError, match="half_width"):
        n_for_half_width([1, 0], half_width=0)
