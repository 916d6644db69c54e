"""Check the linear probe from background tokens to objects elsewhere."""

import numpy as np
import pytest
import tiny
from test_evaluate_known import sample_with

from rcblib.evaluate.mixing import LAYERS, BackgroundTokens, background_tokens, patch_colors, probe_background
from rcblib.mllm import adapter_for
from rcblib.reading.statistics import roc_auc
from rcblib.records import ParameterError


@pytest.fixture(scope="module")
def adapter():
    return adapter_for(*tiny.tiny_llava())


def test_background_is_what_no_object_touches_or_is_next_to(adapter):
    sample = sample_with(1, 7, 8)
    found = background_tokens(adapter, [sample, sample_with(2, 35)], distance=1, n_each=36)
    rows, columns = np.divmod(np.arange(36), 6)
    far = ~((rows <= 2) & (columns <= 3))
    assert (found.image == 0).sum() == far.sum() and (found.image == 1).sum() == 32
    view = adapter.encode([sample.image], ("hidden_states",))[0].views[0]
    np.testing.assert_allclose(found.features["connector"][: far.sum()], view.tokens.numpy()[far], rtol=1e-5)
    states = view.signals["hidden_states"].numpy()[far]
    np.testing.assert_allclose(found.features["encoder"][: far.sum()], states, rtol=1e-5)
    assert found.categories == ("cat",) and found.present.all()
    touching = background_tokens(adapter, [sample], distance=0, n_each=36)
    assert len(touching.image) == 34
    assert len(background_tokens(adapter, [sample], n_each=5).image) == 5
    with pytest.raises(ParameterError, match="distance: got 9"):
        background_tokens(adapter, [sample], distance=9)


def test_patch_colors_are_means_and_deviations():
    picture = np.zeros((4, 4, 3))
    picture[:2, :2, 0] = [[0, 1], [0, 1]]
    found = patch_colors(picture, (2, 2))
    np.testing.assert_allclose(found[0], [0.5, 0, 0, 0.5, 0, 0])
    assert (found[1:] == 0).all()


def made_up(n_images, seed):
    """Background tokens whose states hold what is elsewhere, and whose colours do not."""
    rng = np.random.default_rng(seed)
    present = rng.random((n_images, 3)) < 0.4
    image = np.repeat(np.arange(n_images), 6)
    told = present[image] + rng.normal(0, 1, (len(image), 3))
    noise = rng.normal(0, 1, (len(image), 6))
    features = {"encoder": np.hstack([told, noise]), "connector": noise[:, :3], "pixels": noise[:, 3:]}
    return BackgroundTokens(features, image, present, ("a", "b", "c"))


def test_a_probe_finds_what_is_there_and_nothing_where_nothing_is():
    found = probe_background(made_up(120, 0), made_up(80, 1))
    assert set(found["layer"]) == set(LAYERS) and len(found) == 4 * 80 * 3
    areas = {
        layer: roc_auc(
            rows["score"],
            rows["present"],
            rows["image_id"],
            strata=rows["category"],
            generator=np.random.default_rng(0),
        )
        for layer, rows in found.groupby("layer")
    }
    assert areas["encoder"].low > 0.8
    for nothing in ("connector", "pixels", "shuffled"):
        assert areas[nothing].low < 0.55
    with pytest.raises(ParameterError, match="test"):
        probe_background(made_up(20, 0), BackgroundTokens({}, np.array([0]), np.ones((1, 1), bool), ("a",)))
