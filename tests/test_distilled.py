"""Check the pruner that is distilled from probing: its choice by hand, its fit by scikit-learn's, its files."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.linear_model import Ridge
from sklearn.preprocessing import normalize

from rcblib.codebook.pooling import ProbedImage
from rcblib.codebook.scorer import Scorer, fit_scorer, load_scorer
from rcblib.pruners import PRUNERS
from rcblib.pruners.distilled import DistilledPruner, places_of, spread_by_quality
from rcblib.records import ParameterError, VisualView

TOKENS = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
QUALITY = torch.tensor([0.8, 0.9, 0.5, 0.3])
"""Of four tokens in a row."""


@pytest.mark.parametrize(
    "spread, order",
    [
        (0, [1, 0, 2, 3]),  # by quality
        (1, [1, 0, 3, 2]),  # 0.8 x 1, then 0.3 x 2 is more than 0.5 x 1
        (2, [1, 3, 0, 2]),  # 0.3 x 4 is more than 0.8 x 1, then that more than 0.5 x 1
    ],
)
def test_tokens_are_chosen_by_quality_and_distance_as_worked_out_by_hand(spread, order):
    places = places_of((VisualView(TOKENS, (1, 4)),))
    assert places.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    for n_kept in range(5):
        assert spread_by_quality(QUALITY, places, n_kept, spread).tolist() == order[:n_kept]


def test_grids_that_share_a_budget_stand_apart():
    view = VisualView(TOKENS, (2, 2))
    assert places_of((view, view)).tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [4, 0], [4, 1], [5, 0], [5, 1]
    ]  # fmt: skip


def test_heads_are_weighted_and_what_they_say_decides():
    scorer = Scorer(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 0.0]))
    assert torch.allclose(scorer.predict(TOKENS)[1], torch.tensor([1.0, 0.0]))
    views = (VisualView(TOKENS[[0, 2]], (1, 2)),)
    for weight, first in ((0.0, 0), (0.4, 0), (0.6, 1), (1.0, 1)):
        pruner = DistilledPruner(scorer=scorer, retain_ratio=0.5, influence_weight=weight, spread=0)
        assert pruner.select(views).tolist() == [first]


def probed(n_images=6, n_tokens=40, width=5):
    """Return images whose tokens' signals follow one direction each, a little disturbed."""
    generator = np.random.default_rng(0)
    images, tokens, signals = [], [], []
    for i in range(n_images):
        rows = generator.normal(size=(n_tokens, width))
        unit = normalize(rows)
        noise = generator.normal(scale=0.02, size=(2, n_tokens))
        top1 = np.clip(0.5 + 0.4 * unit[:, 0] + noise[0], 0, 1)
        region = np.exp(unit[:, 1] + noise[1])
        values = (top1, region, np.zeros(n_tokens))
        images.append(ProbedImage(i, lambda rows=rows: torch.tensor(rows), np.arange(n_tokens), values))
        tokens.append(unit)
        signals.append(np.stack([top1, region], axis=1))
    return images, np.concatenate(tokens), np.concatenate(signals)


def test_the_fit_is_ridge_regression_on_ranks_and_tells_what_was_planted():
    images, unit, signals = probed()
    scorer = fit_scorer(images, penalty=0.01, family="llava", metadata={"model": "planted"})
    ranks = rankdata(signals, axis=0) / len(signals)
    alpha = 0.01 * len(unit) * unit.var(0).sum() / unit.shape[1]
    theirs = Ridge(alpha=alpha).fit(unit, ranks)
    assert np.allclose(scorer.weights.numpy(), theirs.coef_, atol=1e-5)
    assert np.allclose(scorer.offsets.numpy(), theirs.intercept_, atol=1e-5)
    assert min(scorer.metadata["correlation"].values()) > 0.95
    assert scorer.weights.abs().argmax(1).tolist() == [0, 1]
    with pytest.raises(ParameterError, match="images: got 1; accepted: at least two"):
        fit_scorer(images[:1])
    with pytest.raises(ParameterError, match="penalty: got 0; accepted: more than 0"):
        fit_scorer(images, penalty=0)


def test_a_scorer_is_read_as_it_was_written_and_what_is_wrong_is_refused(tmp_path):
    scorer = fit_scorer(probed()[0], family="llava", metadata={"model": "planted"})
    folder = scorer.save_pretrained(tmp_path / "own")
    same = load_scorer(folder)
    assert same == scorer and hash(same) == hash(scorer)
    card = (folder / "README.md").read_text()
    assert "planted" in card and "240 probed tokens of" in card
    with pytest.raises(
        ParameterError, match="scorer: got 'weights of width 5'; accepted: the model's width, 8"
    ):
        same.check_fits("llava", 8)
    with pytest.raises(ParameterError, match="scorer: got .one of family"):
        same.check_fits("llava_next", 5)
    with pytest.raises(
        ParameterError, match="scorer: got 'nobody'; accepted: a folder with scorer.safetensors"
    ):
        load_scorer("nobody")
    (folder / "scorer.safetensors").write_bytes(b"damaged")
    with pytest.raises(ParameterError, match="accepted: a whole scorer.safetensors"):
        load_scorer(folder)
    with pytest.raises(ParameterError, match="weights: got"):
        Scorer(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ParameterError, match="weights: got 'NaN or infinite"):
        Scorer(torch.full((2, 4), torch.nan), torch.zeros(2))


@pytest.mark.parametrize("name, value", [("influence_weight", 1.5), ("spread", -1.0)])
def test_settings_out_of_range_are_refused(name, value):
    settings = {"scorer": Scorer(torch.zeros(2, 2), torch.zeros(2)), "retain_ratio": 0.5, name: value}
    with pytest.raises(ParameterError, match=f"{name}: got {value}"):
        PRUNERS["distilled"].make(settings)
