"""Check budgets by hand and against the released arithmetic, and what the registry says of its methods."""

from dataclasses import dataclass, field

import pytest
import torch

from rcblib.codebook.codebook import Codebook
from rcblib.pruners import (
    PRUNERS,
    Budget,
    CodebookPruner,
    Pruner,
    RandomPruner,
    find_method,
    read_pruner,
    register,
    registry,
)
from rcblib.pruners.registry import Method
from rcblib.records import ParameterError, VisualView
from rcblib.tensors.scoring import RULES, keep_indices, redundancy_scores

SCORES = torch.tensor([0.5, 0.1, 0.9, 0.5, 0.3])


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (Budget(retain_ratio=0.4), [0, 2]),  # the earlier of two that tie
        (Budget(retain_ratio=0.5), [0, 2]),  # 2.5 rounds to 2, half to even
        (Budget(retain_ratio=0.7), [0, 2, 3, 4]),  # 3.5 rounds to 4
        (Budget(retain_ratio=0.0), []),
        (Budget(retain_ratio=1.0), [0, 1, 2, 3, 4]),
        (Budget(retain_ratio=0.4, drops_ties=True), [2]),  # three go, and what ties with the best of them
        (Budget(count=1), [2]),
        (Budget(count=9), [0, 1, 2, 3, 4]),
        (Budget(cut_off=0.5), [2]),  # strictly above
        (Budget(cut_off=-1.0), [0, 1, 2, 3, 4]),
        (Budget(adaptive=lambda scores: int((scores > scores.mean()).sum())), [0, 2, 3]),
    ],
)
def test_budgets_by_hand(budget, kept):
    assert budget.keep(SCORES).tolist() == kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of retain_ratio, count, cut_off, adaptive"),
        ({"retain_ratio": 0.5, "count": 3}, "budget: got 'retain_ratio=0.5, count=3"),
        ({"retain_ratio": 1.1}, "retain_ratio: got 1.1"),
        ({"count": -1}, "count: got -1"),
    ],
)
def test_budgets_are_checked(given, message):
    with pytest.raises(ParameterError, match=message):
        Budget(**given)


@pytest.mark.parametrize("budget", [Budget(retain_ratio=0.5), Budget(count=1), Budget(cut_off=0.0)], ids=str)
def test_scores_must_be_finite(budget):
    with pytest.raises(ParameterError, match="scores: got 'NaN or infinity"):
        budget.keep(torch.tensor([0.1, float("nan")]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_codebook_keeps_exactly_what_the_released_arithmetic_keeps(rule, dtype):
    """With ties, which half precision has many of; -scores turns the order round without rounding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(60, 8, generator=generator).repeat(2, 1).to(dtype)
    codebook = Codebook(torch.randn(5, 8, generator=generator))
    scores = redundancy_scores(tokens, codebook.prototypes, rule)
    budgets = [{"retain_ratio": ratio} for ratio in (0.1, 0.35, 0.5, 0.9)]
    budgets += [{"max_similarity": cut} for cut in (0.1, 0.45, float(scores.median()))] * (
        rule == "max_cosine"
    )
    for budget in budgets:
        kept = CodebookPruner(codebook, rule, **budget).select((VisualView(tokens, (1, 120)),))
        assert kept.tolist() == keep_indices(scores, rule=rule, **budget).tolist()


def test_every_registered_method_says_what_it_is():
    assert list(PRUNERS)[:5] == ["all", "codebook", "random", "cls_most", "cls_least"]
    for name, method in PRUNERS.items():
        assert method.name == name and method.label and method.kind.__doc__
        assert not method.settings.keys() & method.parameters.keys()
    assert PRUNERS["cls_least"].needs == {"cls_similarity"}
    assert find_method("none") is PRUNERS["all"]
    assert len({method.label for method in PRUNERS.values()}) == len(PRUNERS)


def test_one_line_of_text_makes_a_pruner():
    method, settings = read_pruner("random: retain_ratio=0.2, seed=3,scope=image")
    assert method.make(settings) == RandomPruner(0.2, 3, scope="image")
    assert read_pruner("none")[0].make() == PRUNERS["all"].make({})


def test_a_codebook_takes_the_rule_of_a_family_unless_one_or_a_cut_off_is_given():
    method, book = PRUNERS["codebook"], Codebook(torch.ones(1, 2))
    rule = {
        family: method.make({"codebook": book, "retain_ratio": 0.5}, family=family).rule
        for family in ("llava", "llava_onevision", "other")
    }
    assert rule == {"llava": "max_cosine", "llava_onevision": "double_softmax", "other": "max_cosine"}
    cut = method.make({"codebook": book, "max_similarity": 0.5}, family="llava_onevision")
    assert cut.rule == "max_cosine"


def test_names_are_taken_once():
    with pytest.raises(
        ParameterError, match="name: got 'random'; accepted: a name that is free; RandomPruner has"
    ):
        register("random", CodebookPruner)
    for name in ("none", "two words", ""):
        with pytest.raises(ParameterError, match="name: got"):
            register(name, RandomPruner)
    assert register("random", RandomPruner, "random tokens", "the release's baseline") is RandomPruner


def test_a_method_of_another_module_does_not_take_a_name(monkeypatch):
    """One defined anew where it was, as in a notebook's cell that is run again, does."""

    def made(module):
        return dataclass(frozen=True)(type("RandomPruner", (Pruner,), {"__module__": module}))

    monkeypatch.setattr(registry, "PRUNERS", dict(PRUNERS))
    with pytest.raises(ParameterError, match="name: got 'random'; accepted: a name that is free"):
        register("random", made("__main__"))
    register("mine", made("__main__"))
    again = made("__main__")
    register("mine", again)
    assert registry.PRUNERS["mine"].kind is again


def test_fixed_settings_are_parameters():
    with pytest.raises(ParameterError, match="typo: got 3; accepted: parameters of RandomPruner: .*seed"):
        register("seeded", RandomPruner, typo=3)
    with pytest.raises(
        ParameterError, match="retain_ratio: got 0.5; accepted: parameters of AllTokens: position"
    ):
        register("half", PRUNERS["all"].kind, retain_ratio=0.5)
    assert not {"seeded", "half"} & PRUNERS.keys()


@dataclass(frozen=True)
class Layered(Pruner):
    """Have a default that is made for each."""

    layers: tuple[int, ...] = field(default_factory=lambda: (1, 2))


def test_a_default_that_is_made_need_not_be_given():
    method = Method("layered", Layered, "layered")
    assert method.parameters["layers"] == (1, 2)
    assert method.make() == Layered()
    assert method.make({"layers": [3]}).layers == (3,)


def test_pruners_are_frozen_and_compare_by_their_settings():
    pruner = RandomPruner(0.2, 3)
    with pytest.raises(AttributeError):
        pruner.seed = 4
    assert pruner == RandomPruner(0.2, 3) and hash(pruner) == hash(RandomPruner(0.2, 3))
    assert (pruner.kept, pruner.kept_by_view, pruner.n_tokens, pruner.n_retained) == ([], [], [], [])
