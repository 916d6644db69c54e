"""Compare every published pruner with a slow transcription of its rule, on random tensors; some by hand."""

import published_rules as rules
import pytest
import torch

from rcblib.pruners import PRUNERS
from rcblib.pruners.holov import allotted
from rcblib.records import VisualView

SIZES = [(36, 0.4), (49, 0.3), (60, 0.75), (64, 0.1)]
seeds = pytest.mark.parametrize(("n", "ratio", "seed"), [(*size, seed) for seed, size in enumerate(SIZES)])


def random_view(n, seed, width=12):
    """Return a view with tokens and all signals, attention positive and adding up to less than 1."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    signals = {
        "cls_attention": drawn(n).softmax(0) * 0.9,
        "received_attention": drawn(n).softmax(0),
        "keys": drawn(n, 5),
        "hidden_states": drawn(n, 10),
    }
    return VisualView(drawn(n, width), (1, n), signals)


def kept(name, view, **settings):
    reduced = PRUNERS[name].make(settings).reduce((view,))
    reduced.check(view.n_tokens, view.tokens.shape[1], name)
    return reduced.positions.tolist()


@seeds
@pytest.mark.parametrize("name", ["cls_attention", "received_attention"])
def test_attention(name, n, ratio, seed):
    view = random_view(n, seed)
    assert kept(name, view, retain_ratio=ratio) == sorted(
        rules.ranked(view.signals[name])[: round(n * ratio)]
    )


@seeds
def test_divprune(n, ratio, seed):
    view = random_view(n, seed)
    assert kept("divprune", view, retain_ratio=ratio) == rules.divprune(view.tokens, round(n * ratio))


@seeds
@pytest.mark.parametrize("name", ["vispruner", "vispruner_received"])
@pytest.mark.parametrize("important", [0.5, 0.0, 1.0])
def test_vispruner(name, important, n, ratio, seed):
    view = random_view(n, seed)
    attention = view.signals["received_attention" if name.endswith("received") else "cls_attention"]
    expected = rules.vispruner(attention, view.signals["hidden_states"], round(n * ratio), important)
    assert kept(name, view, retain_ratio=ratio, important_ratio=important) == expected
    assert len(expected) == round(n * ratio)


@seeds
def test_holov(n, ratio, seed):
    view = random_view(n, seed)
    counts, segments = rules.holov(view.tokens, view.signals["cls_attention"], round(n * ratio))
    given = kept("holov", view, retain_ratio=ratio)
    n_more = 0
    for count, members in zip(counts, segments, strict=True):
        own = [i for i in given if i in members]
        order = sorted(members, key=lambda i: -float(view.signals["cls_attention"][i]))
        assert sorted(own) == sorted(order[: len(own)]) and len(own) >= min(count, len(members))
        n_more += len(own) - min(count, len(members))
    # What the code feeds as zeros, as segments are given more than they hold, is here the next segments'.
    assert n_more == sum(
        max(count - len(members), 0) for count, members in zip(counts, segments, strict=True)
    )
    assert len(given) == round(n * ratio)


def test_holov_by_hand():
    """Weights 1, 2, 5 of 8: of 4 tokens 0.5, 1 and 2.5, hence 0, 1, 2 and one more for the largest."""
    assert allotted(torch.tensor([1.0, 2.0, 5.0]), [4, 4, 4], 4) == [0, 1, 3]
    assert allotted(torch.tensor([1.0, 2.0, 5.0]), [4, 4, 2], 4) == [0, 2, 2]  # no room for the third


def test_strided_by_hand():
    view = random_view(10, 0)
    assert kept("strided", view, retain_ratio=0.3) == [0, 3, 6]
    assert kept("strided", view, retain_ratio=1.0) == list(range(10))
    assert kept("strided", view, retain_ratio=0.0) == []


def test_pooled_by_hand():
    """Three by three tokens in blocks of two by two: four tokens, two, two and one."""
    tokens = torch.arange(9.0)[:, None] * torch.tensor([1.0, 10.0])
    reduced = PRUNERS["pooled"].make().reduce((VisualView(tokens, (3, 3)),))
    assert reduced.positions.tolist() == [0, 2, 6, 8] and reduced.sizes.tolist() == [4, 2, 2, 1]
    assert reduced.rows.tolist() == [[2, 20], [3.5, 35], [6.5, 65], [8, 80]]
    several = PRUNERS["pooled"].make().reduce((VisualView(tokens, (3, 3)), VisualView(tokens[:4], (2, 2))))
    assert several.positions.tolist() == [0, 2, 6, 8, 9] and several.rows[-1].tolist() == [1.5, 15]


def test_divprune_by_hand():
    """On a circle the tokens at 0, 10, 90 and 180 degrees: 180 is farthest from its neighbour, then 0, then 90."""
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 190.0]))
    view = VisualView(torch.stack([angles.cos(), angles.sin()], 1), (1, 4))
    assert kept("divprune", view, retain_ratio=0.25) == [3]
    assert kept("divprune", view, retain_ratio=0.5) == [1, 3]
    assert kept("divprune", view, retain_ratio=0.75) == [1, 2, 3]


def test_copies_are_not_chosen_twice():
    view = VisualView(torch.ones(6, 4), (2, 3))
    assert len(kept("divprune", view, retain_ratio=0.5)) == 3


def test_vispruner_by_hand():
    """The first two are most attended; of the rest the third is like the fourth, and goes."""
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1.1], [1, 1], [-1, 1]])
    attention = torch.tensor([0.3, 0.2, 0.1, 0.09, 0.08, 0.07])
    view = VisualView(features, (2, 3), {"cls_attention": attention, "hidden_states": features})
    assert kept("vispruner", view, retain_ratio=5 / 6, important_ratio=0.4) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("value", [-0.1, 1.5, "much"])
def test_shares_are_checked(value):
    with pytest.raises(ValueError, match="important_ratio|validation|valid number") as error:
        PRUNERS["vispruner"].make({"retain_ratio": 0.5, "important_ratio": value})
    assert "\n" not in str(error.value)
