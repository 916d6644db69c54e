"""Published scores with random tokens, and curves beside them."""

import pandas as pd
import pytest

from rcblib.reading.published import LLAVA_15, compare_falls, published_curve, published_random_tokens


def test_every_published_number_has_a_source_and_is_a_share():
    table = published_random_tokens()
    assert table.notna().all(axis=None)
    assert table["source"].str.fullmatch(r"arXiv:\d{4}\.\d{5}").all()
    assert (
        table["retained"].between(0, 1, inclusive="neither").all() and table["relative"].between(0.5, 1).all()
    )
    assert not table.duplicated(["model", "n_kept", "benchmark"]).any()


def test_the_mean_over_benchmarks_with_the_least_and_the_most():
    curve = published_curve(published_random_tokens()).set_index(["method", "retained"])
    point = curve.loc[LLAVA_15, 0.25]
    assert point["mean"] == pytest.approx(0.939, abs=5e-4) and point["n"] == 6
    assert point["low"] == pytest.approx(51.7 / 58.2) and point["high"] == pytest.approx(67.8 / 69.5)
    assert curve.loc[("GLaMM", 0.5), "mean"] == pytest.approx(72.0 / 79.5)


def curve(*points: tuple[float, float, float]) -> pd.DataFrame:
    table = pd.DataFrame(points, columns=["retained", "low", "high"])
    return table.assign(mean=(table["low"] + table["high"]) / 2)


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        (curve((0.2, 0.95, 1.0), (0.35, 0.96, 1.0)), "no faster"),
        (curve((0.2, 0.5, 0.6), (0.35, 0.7, 0.8)), "faster"),
        (curve((0.2, 0.8, 0.99), (0.35, 0.9, 1.0)), "undecided"),
        (curve((0.35, 0.95, 1.0)), "undecided"),  # more tokens than theirs cannot say that fewer suffice
        (curve((0.2, 0.5, 0.6)), "undecided"),
    ],
)
def test_falls_are_compared_at_no_fewer_or_no_more_tokens(own, verdict):
    assert compare_falls(own, curve((0.25, 0.94, 0.94))) == verdict
