"""Check how far a signal can be relied on against signals of which it is known."""

import numpy as np
import pandas as pd
import pytest

from rcblib.reading.reliability import reliability


def made_up(n_images=40, n_tokens=36, n_chosen=6, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"image_id": np.repeat(np.arange(n_images), n_tokens), "view": 0})
    value = rng.random(len(frame))
    rank = pd.Series(value).groupby(frame["image_id"]).rank(ascending=False)
    frame = frame.assign(perfect=value, reversed=-value, random=rng.random(len(frame)))
    return frame, rank <= n_chosen


@pytest.mark.parametrize("n_chosen", [6, 24])
def test_perfect_random_and_reversed_signals_are_told_apart_at_any_density(n_chosen):
    frame, chosen = made_up(n_chosen=n_chosen)
    for name, expected, area in (("perfect", 1, 1.0), ("random", 0, 0.5), ("reversed", -1, 0.0)):
        found = reliability(frame, chosen, name, generator=np.random.default_rng(1))
        assert found.reliability.value == pytest.approx(expected, abs=0.15)
        assert found.area.value == pytest.approx(area, abs=0.03)
        assert found.is_inverted == (name == "reversed")
        assert found.random == pytest.approx(0.5)
        assert found.best == pytest.approx(max(0, n_chosen - 18) / n_chosen)
        assert found.reversed == pytest.approx(min(n_chosen, 18) / n_chosen)
        if name == "perfect":
            assert found.low_share.value == pytest.approx(found.best)
        assert found.reliability.low <= found.reliability.value <= found.reliability.high
    result = found.as_result()
    assert result["inverted"] and result["low_share"] == found.low_share.value
    assert {"value", "n", "interval", "random", "best", "reversed", "area_interval"} <= set(result)


def test_a_cls_is_compared_inside_its_own_tile():
    frame, chosen = made_up()
    frame["view"] = np.tile(np.repeat([0, 1], 18), 40)
    by_view = frame["perfect"].groupby([frame["image_id"], frame["view"]]).rank(ascending=False) <= 3
    shifted = frame["perfect"] + 10 * frame["view"]
    offset = frame.assign(cls_similarity=shifted, other=shifted)
    inside = reliability(offset, by_view, "cls_similarity", generator=np.random.default_rng(1))
    assert (inside.reliability.value, inside.area.value) == (1.0, 1.0)
    across = reliability(offset, by_view, "other", generator=np.random.default_rng(1))
    assert across.reliability.value == pytest.approx(
        0, abs=0.01
    )  # one tile in the upper half, one in the lower


def test_one_token_is_no_certainty():
    frame, _ = made_up(n_images=1)
    one = frame["perfect"] == frame["perfect"].max()
    found = reliability(frame, one, "perfect", generator=np.random.default_rng(1))
    assert found.low_share.value == 0
    assert found.low_share.high > 0.3
    assert reliability(frame, one & False, "perfect", generator=np.random.default_rng(1)) is None
    frame, _ = made_up(n_images=2)
    assert reliability(frame, frame["image_id"] == 0, "perfect", generator=np.random.default_rng(1)) is None
    assert reliability(frame, one | True, "perfect", generator=np.random.default_rng(1)) is None
