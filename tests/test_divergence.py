import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcblib.records import ParameterError
from rcblib.tensors.divergence import combined_influence, divergence, entropy, top1_probability

P = torch.tensor([0.9, 0.1]).log()
Q = torch.tensor([0.5, 0.5]).log()
INF = math.inf


def random_logits(seed, *shape, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_both_forms_on_a_known_pair():
    assert divergence(P, Q).item() == pytest.approx(0.0590, abs=5e-5)
    assert divergence(P, Q, form="textbook").item() == pytest.approx(0.1017, abs=5e-5)


def test_forms_follow_their_definitions():
    p, q = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    m = (p + q) / 2
    released = ((m * (m / p).log()).mean() + (m * (m / q).log()).mean()) / 2
    textbook = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    torch.testing.assert_close(divergence(p.log(), q.log()), released)
    torch.testing.assert_close(divergence(p.log(), q.log(), form="textbook"), textbook)


@pytest.mark.parametrize("form", ["released", "textbook"])
def test_equal_distributions_do_not_diverge(form):
    logits = random_logits(0, 5, 100)
    shifted = logits.double() + 7
    torch.testing.assert_close(
        divergence(logits, shifted, form=form), torch.zeros(5).double(), atol=1e-14, rtol=0
    )


def test_candidates_are_those_of_the_intact_run():
    intact = torch.tensor([5.0, 4.0, 0.0, 0.0])
    ablated = torch.tensor([5.0, 4.0, 90.0, 0.0])
    assert divergence(intact, ablated, n_candidates=2).item() == pytest.approx(0, abs=1e-14)
    assert divergence(ablated, intact, n_candidates=2).item() > 1


def test_released_form_has_no_bound_and_textbook_has():
    intact, ablated = torch.tensor([400.0, 0.0]), torch.tensor([0.0, 400.0])
    assert divergence(intact, ablated).item() == pytest.approx(100 - math.log(2) / 2, rel=1e-9)
    assert divergence(intact, ablated, form="textbook").item() == pytest.approx(math.log(2), rel=1e-9)


def test_candidates_of_probability_zero():
    intact = torch.tensor([2.0, 1.0, -INF])
    ablated = torch.tensor([2.0, -INF, -INF])
    assert divergence(intact, ablated, n_candidates=2).item() == INF
    assert divergence(intact, ablated, n_candidates=3).isnan()
    textbook = divergence(intact, ablated, n_candidates=2, form="textbook")
    assert 0 < textbook.item() < math.log(2)
    torch.testing.assert_close(divergence(intact, ablated, n_candidates=3, form="textbook"), textbook)


def test_leading_shapes_are_kept_and_broadcast():
    intact, ablated = random_logits(1, 2, 3, 40), random_logits(2, 2, 3, 40)
    together = divergence(intact, ablated)
    assert together.shape == (2, 3)
    assert together.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(
                together[i, j], divergence(intact[i, j], ablated[i, j]), rtol=0, atol=0
            )
    one_to_all = divergence(intact[0, 0], ablated)
    torch.testing.assert_close(one_to_all[1, 2], divergence(intact[0, 0], ablated[1, 2]), rtol=0, atol=0)


def test_half_precision_logits_are_compared_as_their_values():
    intact, ablated = random_logits(3, 4, 60).bfloat16(), random_logits(4, 4, 60).bfloat16()
    widened = divergence(intact.double(), ablated.double(), n_candidates=60)
    torch.testing.assert_close(divergence(intact, ablated, n_candidates=60), widened)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0.01, 60))
def test_textbook_form_is_symmetric_and_bounded_on_shared_candidates(seed, n_vocab, scale):
    a, b = random_logits(seed, 2, n_vocab, scale=scale)
    forward = divergence(a, b, n_candidates=n_vocab, form="textbook").item()
    backward = divergence(b, a, n_candidates=n_vocab, form="textbook").item()
    assert forward == pytest.approx(backward, abs=1e-12)
    assert -1e-12 <= forward <= math.log(2) + 1e-12


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_values_do_not_depend_on_the_order_of_the_vocabulary(seed, n_vocab):
    a, b = random_logits(seed, 2, n_vocab)
    shuffle = torch.randperm(n_vocab, generator=torch.Generator().manual_seed(seed))
    for form in ("released", "textbook"):
        torch.testing.assert_close(divergence(a[shuffle], b[shuffle], 5, form), divergence(a, b, 5, form))
    probability, token_id = top1_probability(a, 5)
    shuffled_probability, shuffled_id = top1_probability(a[shuffle], 5)
    torch.testing.assert_close(shuffled_probability, probability)
    assert shuffle[shuffled_id] == token_id


def test_top1_probability_renormalises_over_the_head():
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    probability, token_id = top1_probability(logits, n_candidates=2)
    assert probability.item() == pytest.approx(5 / 7)
    assert token_id.item() == 0
    assert top1_probability(logits)[0].item() == pytest.approx(0.5)


def test_top1_of_flat_logits():
    probability, token_id = top1_probability(torch.zeros(2, 3, 1000))
    torch.testing.assert_close(probability, torch.full((2, 3), 0.02).double())
    assert (token_id == 0).all()


def test_top1_ignores_tokens_of_probability_zero():
    probability, token_id = top1_probability(torch.tensor([-INF, 3.0, -INF]))
    assert probability.item() == 1
    assert token_id.item() == 1


def test_entropy_of_known_distributions():
    logits = torch.stack([torch.zeros(8), torch.tensor([0.0] + [-INF] * 7)])
    torch.testing.assert_close(entropy(logits), torch.tensor([math.log(8), 0.0]).double())
    assert entropy(P).item() == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)), rel=1e-6)


@pytest.mark.parametrize(
    "logits",
    [
        torch.tensor([0.0, float("nan")]),
        torch.tensor([0.0, INF]),
        torch.tensor([-INF, -INF]),
        torch.tensor([1, 2]),
        torch.tensor(1.0),
        torch.zeros(0),
        torch.zeros(3, 0),
        [0.0, 1.0],
    ],
)
def test_bad_logits_are_refused(logits):
    with pytest.raises(ParameterError, match="^logits: got"):
        top1_probability(logits)
    with pytest.raises(ParameterError, match="^logits: got"):
        entropy(logits)
    with pytest.raises(ParameterError, match="^intact: got"):
        divergence(logits, torch.zeros(2))
    with pytest.raises(ParameterError, match="^ablated: got"):
        divergence(torch.zeros(2), logits)


@pytest.mark.parametrize("n_candidates", [0, -1, 2.0, "10", None])
def test_bad_candidate_counts_are_refused(n_candidates):
    with pytest.raises(ParameterError, match="^n_candidates: got"):
        divergence(P, Q, n_candidates)
    with pytest.raises(ParameterError, match="^n_candidates: got"):
        top1_probability(P, n_candidates)


def test_divergence_refuses_other_mistakes():
    with pytest.raises(ParameterError, match="^form: got 'jensen'; accepted: one of .*released.*textbook"):
        divergence(P, Q, form="jensen")
    with pytest.raises(ParameterError, match=r"^ablated: got \(3,\); accepted: n_vocab"):
        divergence(P, torch.zeros(3))
    with pytest.raises(ParameterError, match=r"^ablated: got \(1,\)"):
        divergence(P, torch.zeros(1))
    with pytest.raises(ParameterError, match=r"^ablated: got \(3, 2\)"):
        divergence(P.expand(4, 2), Q.expand(3, 2))
    with pytest.raises(ParameterError, match="^ablated: got '-inf at every candidate"):
        divergence(torch.tensor([1.0, 0.0, 9.0]), torch.tensor([1.0, 0.0, -INF]), n_candidates=1)


def test_combined_influence_weighs_both_levels():
    region, global_ = torch.tensor([0.5, 0.0]).double(), torch.tensor([0.25, -0.125]).double()
    assert combined_influence(region, global_, 1.0, 16.0).tolist() == [4.5, -2.0]
    found = combined_influence(region.numpy(), global_.numpy(), 2.0, 0.0)
    assert found.dtype == "float64" and found.tolist() == [1.0, 0.0]
