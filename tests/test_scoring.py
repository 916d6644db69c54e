import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcblib.records import CodebookError, ParameterError
from rcblib.tensors import scoring
from rcblib.tensors.scoring import (
    RULES,
    UnitPrototypes,
    calibrate_max_similarity,
    keep_indices,
    redundancy_scores,
)

TOKENS = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
PROTOTYPES = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
HALF_ROOT = 0.5**0.5


def random_tensor(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_max_cosine_of_known_rows():
    scores = redundancy_scores(TOKENS, PROTOTYPES)
    torch.testing.assert_close(scores, torch.tensor([1.0, 1.0, HALF_ROOT, 0.0, 0.0]))


def test_softmax_rules_of_known_rows():
    similarity = torch.tensor([[1.0, 0.0], [0.0, 1.0], [HALF_ROOT, HALF_ROOT], [-1.0, 0.0], [0.0, 0.0]])
    over_prototypes = similarity.exp() / similarity.exp().sum(1, keepdim=True)
    over_tokens = similarity.exp() / similarity.exp().sum(0, keepdim=True)
    torch.testing.assert_close(
        redundancy_scores(TOKENS, PROTOTYPES, "single_softmax"), over_prototypes.max(1).values
    )
    torch.testing.assert_close(
        redundancy_scores(TOKENS, PROTOTYPES, "double_softmax"), (over_prototypes * over_tokens).max(1).values
    )


@pytest.mark.parametrize("rule", RULES)
def test_every_image_is_scored_on_its_own(rule):
    tokens, prototypes = random_tensor(0, 2, 3, 20, 8), random_tensor(1, 5, 8)
    scores = redundancy_scores(tokens, prototypes, rule)
    assert scores.shape == (2, 3, 20)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(scores[i, j], redundancy_scores(tokens[i, j], prototypes, rule))


@pytest.mark.parametrize("rule", RULES)
def test_lengths_of_rows_are_irrelevant(rule):
    tokens, prototypes = random_tensor(2, 20, 8), random_tensor(3, 5, 8)
    stretched = redundancy_scores(tokens * random_tensor(4, 20, 1).exp(), prototypes * 7, rule)
    torch.testing.assert_close(stretched, redundancy_scores(tokens, prototypes, rule))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(dtype):
    tokens, prototypes = random_tensor(5, 30, 64).to(dtype), random_tensor(6, 9, 64).half()
    exact = redundancy_scores(tokens.float(), prototypes.float())
    scores = redundancy_scores(tokens, prototypes)
    assert scores.dtype == dtype
    torch.testing.assert_close(scores, exact.to(dtype), atol=0, rtol=0)
    for rule in ("double_softmax", "single_softmax"):
        assert redundancy_scores(tokens, prototypes, rule).dtype == torch.float32


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 6), st.sampled_from(RULES))
def test_scores_follow_their_tokens_and_ignore_the_order_of_prototypes(seed, n_tokens, n_prototypes, rule):
    tokens, prototypes = random_tensor(seed, n_tokens, 8), random_tensor(seed + 1, n_prototypes, 8)
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.randperm(n_tokens, generator=generator)
    other_order = torch.randperm(n_prototypes, generator=generator)
    scores = redundancy_scores(tokens, prototypes, rule)
    torch.testing.assert_close(
        redundancy_scores(tokens[shuffle], prototypes[other_order], rule), scores[shuffle]
    )
    low = -1 if rule == "max_cosine" else 0
    assert (scores >= low - 1e-6).all()
    assert (scores <= 1 + 1e-6).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_more_prototypes_never_lower_the_largest_cosine(seed, n_prototypes):
    tokens, prototypes = random_tensor(seed, 12, 8), random_tensor(seed + 1, n_prototypes + 1, 8)
    fewer = redundancy_scores(tokens, prototypes[:-1])
    assert (redundancy_scores(tokens, prototypes) >= fewer - 1e-6).all()


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(2),
        torch.zeros(0, 2),
        torch.zeros(3, 2, dtype=torch.long),
        torch.full((3, 2), math.nan),
        [[0.0]],
    ],
)
def test_bad_tokens_are_refused(tokens):
    with pytest.raises(ParameterError, match="^tokens: got"):
        redundancy_scores(tokens, PROTOTYPES)


@pytest.mark.parametrize(
    "prototypes", [torch.zeros(2), torch.zeros(0, 2), torch.zeros(4, 3), torch.full((3, 2), math.inf), None]
)
def test_bad_prototypes_are_refused(prototypes):
    with pytest.raises(CodebookError, match="^prototypes: got"):
        redundancy_scores(TOKENS, prototypes)


@pytest.mark.parametrize("rule", RULES)
def test_prototypes_that_are_held_score_as_those_that_are_given(rule):
    tokens, prototypes = random_tensor(0, 2, 20, 8), random_tensor(1, 5, 8)
    held = UnitPrototypes(prototypes)
    with torch.inference_mode():
        first = redundancy_scores(tokens, held, rule)
    again = redundancy_scores(tokens.clone().requires_grad_(), held, rule)
    again.sum().backward()
    assert torch.equal(first, redundancy_scores(tokens, prototypes, rule)) and torch.equal(first, again)
    assert held.like(tokens) is held.like(tokens[0]) is not held.like(tokens.double())
    with pytest.raises(CodebookError, match="got width 8; accepted: the tokens' width, 7"):
        redundancy_scores(tokens[..., :7], held, rule)


@pytest.mark.parametrize("most", [1, 40, 100])
def test_the_largest_cosine_is_the_same_block_by_block(monkeypatch, most):
    tokens, prototypes = random_tensor(0, 2, 20, 8), random_tensor(1, 33, 8)
    whole = redundancy_scores(tokens, prototypes)
    monkeypatch.setattr(scoring, "MOST_COSINES", most)
    torch.testing.assert_close(redundancy_scores(tokens, prototypes), whole, rtol=0, atol=1e-6)


def test_an_unknown_rule_is_refused():
    with pytest.raises(
        ParameterError, match="^rule: got 'max'; accepted: one of .*max_cosine.*single_softmax"
    ):
        redundancy_scores(TOKENS, PROTOTYPES, "max")
    with pytest.raises(ParameterError, match="^rule: got 'max'"):
        keep_indices(torch.zeros(3), retain_ratio=0.5, rule="max")


def test_cut_off_keeps_what_is_strictly_below():
    scores = torch.tensor([0.6, 0.2, 0.59, 0.61, -0.3])
    assert keep_indices(scores, max_similarity=0.6).tolist() == [1, 2, 4]
    assert keep_indices(scores, max_similarity=-0.3).tolist() == []
    assert keep_indices(scores, max_similarity=1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cut_off_is_rounded_to_the_dtype_of_the_scores(dtype):
    """0.9 in float16 is 0.8999: a score of 0.9 in that dtype equals the cut-off and is dropped."""
    scores = torch.tensor([0.9, 0.5], dtype=dtype)
    assert keep_indices(scores, max_similarity=0.9).tolist() == [1]


@pytest.mark.parametrize(
    ("ratio", "n_kept"), [(0, 0), (0.125, 4), (0.375, 14), (0.5, 18), (1, 36), (1.0, 36)]
)
def test_fixed_count_rounds_half_to_even(ratio, n_kept):
    scores = random_tensor(0, 36)
    kept = keep_indices(scores, retain_ratio=ratio)
    assert kept.tolist() == sorted(scores.argsort()[:n_kept].tolist())


def test_fixed_count_takes_the_earlier_of_equal_scores():
    scores = torch.tensor([0.5, 0.1, 0.5, 0.5, 0.9, 0.5])
    assert keep_indices(scores, retain_ratio=0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", ["double_softmax", "single_softmax"])
@pytest.mark.parametrize(
    ("ratio", "n_kept"), [(0, 0), (0.125, 4), (0.375, 14), (0.875, 32), (0.99, 36), (1, 36)]
)
def test_softmax_rules_round_the_number_dropped(rule, ratio, n_kept):
    scores = random_tensor(0, 36).sigmoid()
    kept = keep_indices(scores, retain_ratio=ratio, rule=rule)
    assert kept.tolist() == sorted(scores.argsort()[:n_kept].tolist())


def test_softmax_rules_drop_all_that_tie_at_the_cut():
    scores = torch.tensor([0.5, 0.1, 0.5, 0.5, 0.9, 0.2])
    assert keep_indices(scores, retain_ratio=0.5, rule="double_softmax").tolist() == [1, 5]
    assert keep_indices(torch.ones(6), retain_ratio=0.5, rule="single_softmax").tolist() == []
    assert keep_indices(torch.ones(6), retain_ratio=1, rule="single_softmax").tolist() == list(range(6))


SCORES = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=40).map(torch.tensor)
FRACTIONS = st.floats(0, 1)


@given(SCORES, FRACTIONS, st.sampled_from(RULES))
def test_kept_positions_ascend_and_are_the_least_redundant(scores, ratio, rule):
    kept = keep_indices(scores, retain_ratio=ratio, rule=rule)
    assert kept.dtype == torch.int64
    assert (kept.diff() > 0).all()
    dropped = torch.ones(len(scores), dtype=torch.bool)
    dropped[kept] = False
    if len(kept) and dropped.any():
        assert scores[kept].max() <= scores[dropped].min()
    n_most = (
        round(len(scores) * ratio) if rule == "max_cosine" else len(scores) - round(len(scores) * (1 - ratio))
    )
    assert len(kept) == n_most if rule == "max_cosine" else len(kept) <= n_most


@given(SCORES, st.floats(-1, 1), st.floats(-1, 1))
def test_a_higher_cut_off_keeps_at_least_as_much(scores, one, other):
    fewer, more = (keep_indices(scores, max_similarity=cut).tolist() for cut in sorted((one, other)))
    assert set(fewer) <= set(more)
    assert fewer == sorted(fewer)


@given(SCORES, FRACTIONS, FRACTIONS, st.sampled_from(RULES))
def test_a_higher_share_keeps_at_least_as_much(scores, one, other, rule):
    fewer, more = (keep_indices(scores, retain_ratio=r, rule=rule).tolist() for r in sorted((one, other)))
    assert set(fewer) <= set(more)


@pytest.mark.parametrize("budget", [{}, {"max_similarity": 0.5, "retain_ratio": 0.5}])
def test_both_or_no_budget_is_refused(budget):
    with pytest.raises(ParameterError, match="^budget: got .*; accepted: exactly one of"):
        keep_indices(torch.zeros(4), **budget)


@pytest.mark.parametrize(
    "budget",
    [
        {"retain_ratio": 1.01},
        {"retain_ratio": -0.1},
        {"retain_ratio": math.nan},
        {"retain_ratio": "0.5"},
        {"max_similarity": 1.5},
        {"max_similarity": -1.5},
        {"max_similarity": math.nan},
        {"max_similarity": "0.45"},
    ],
)
def test_budgets_out_of_range_are_refused(budget):
    (parameter,) = budget
    with pytest.raises(ParameterError, match=f"^{parameter}: got .*; accepted: a number from"):
        keep_indices(torch.zeros(4), **budget)


@pytest.mark.parametrize("rule", ["double_softmax", "single_softmax"])
def test_a_cosine_cut_off_does_not_go_with_softmax_rules(rule):
    with pytest.raises(ParameterError, match=f"^max_similarity: got 0.5; accepted: None for rule '{rule}'"):
        keep_indices(torch.zeros(4), max_similarity=0.5, rule=rule)


@pytest.mark.parametrize(
    "scores",
    [
        torch.zeros(2, 4),
        torch.zeros(0),
        torch.tensor(0.0),
        torch.tensor([0, 1]),
        torch.tensor([0.0, math.nan]),
        [0.5],
    ],
)
def test_bad_scores_are_refused(scores):
    with pytest.raises(ParameterError, match="^scores: got"):
        keep_indices(scores, retain_ratio=0.5)


def test_calibration_of_known_scores():
    scores = [torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([0.2, 0.6, 0.8, 0.4])]
    assert calibrate_max_similarity(scores, 0.25) == pytest.approx(0.3)  # 0.1 and 0.2 of eight stay
    assert calibrate_max_similarity(scores, 0.3) == pytest.approx(0.45)  # 0.25 would be too few
    assert calibrate_max_similarity(scores, 0.999) == 1.0


def test_calibration_weighs_images_the_same():
    # Retaining the one token of the first image is half of what there is on average.
    scores = [torch.tensor([0.0]), torch.linspace(0.5, 0.9, 10)]
    assert calibrate_max_similarity(scores, 0.5) == pytest.approx(0.25)


def test_calibration_keeps_equal_scores_together():
    cut = calibrate_max_similarity([torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0])], 0.3)
    assert cut == pytest.approx(0.75)


@pytest.mark.parametrize("retain_ratio", [0.05, 0.2, 0.5, 0.9])
def test_calibrated_cut_off_retains_the_share(retain_ratio):
    scores = [random_tensor(seed, 144).tanh() for seed in range(12)]
    cut = calibrate_max_similarity(scores, retain_ratio)
    kept = [len(keep_indices(each, max_similarity=cut)) / 144 for each in scores]
    assert sum(kept) / 12 == pytest.approx(retain_ratio, abs=1 / (12 * 144))


def test_calibration_needs_scores_and_a_share():
    for scores, share in [([], 0.2), ([torch.zeros(0)], 0.2), ([torch.ones(3)], 0), ([torch.ones(3)], 1)]:
        with pytest.raises(ParameterError):
            calibrate_max_similarity(scores, share)
    with pytest.raises(ParameterError, match="scores"):
        calibrate_max_similarity([torch.tensor([math.nan, 1.0])], 0.5)
