"""Compare first-token distributions: top-1 probability, divergence of two runs and its influence, entropy.

What reads distributions takes logits of shape ``(..., n_vocab)`` and returns float64 of shape ``(...)``; logarithms are
natural, so divergences and entropies are in nats.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch

from rcblib.records import ParameterError

FORMS = ("released", "textbook")


def _check_logits(parameter: str, logits: object) -> None:
    """Raise unless `logits` is a floating-point tensor whose every row has a finite maximum."""
    accepted = "a floating-point tensor (..., n_vocab), not empty"
    if not isinstance(logits, torch.Tensor):
        raise ParameterError(parameter, type(logits).__name__, accepted)
    if not logits.is_floating_point() or logits.ndim < 1 or logits.numel() == 0:
        raise ParameterError(parameter, f"{logits.dtype} {tuple(logits.shape)}", accepted)
    if not torch.isfinite(logits.amax(-1)).all():
        raise ParameterError(
            parameter, "NaN, +inf, or a row of -inf only", "finite values or -inf, one finite a row"
        )


def _check_n_candidates(n_candidates: object) -> None:
    if not isinstance(n_candidates, Integral) or n_candidates < 1:
        raise ParameterError("n_candidates", n_candidates, "an integer of at least 1")


def top1_probability(logits: torch.Tensor, n_candidates: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the most probable token and its probability after renormalising over the largest logits.

    Parameters
    ----------
    logits : torch.Tensor
        ``(..., n_vocab)`` first-token logits; -inf means probability 0.
    n_candidates : int
        Size of the head vocabulary; all tokens where the vocabulary has fewer.

    Returns
    -------
    probability : torch.Tensor
        ``(...)`` float64 in [1 / n_candidates, 1]; higher = surer.
    token_id : torch.Tensor
        ``(...)`` int64; the lowest id among equal largest logits.

    Raises
    ------
    ParameterError
        If `logits` has NaN, +inf or a row without a finite value, or `n_candidates` is below 1.

    Notes
    -----
    Source: token-centric analysis; the released script's softmax over the 50 largest logits. It reproduces on
    purpose that the probability is larger than that over the full vocabulary.
    Differs: computed in float64.
    """
    _check_logits("logits", logits)
    _check_n_candidates(n_candidates)
    head = logits.topk(min(n_candidates, logits.shape[-1]), dim=-1).values.double()
    return (head[..., 0] - head.logsumexp(-1)).exp(), logits.argmax(-1)


def divergence(
    intact: torch.Tensor, ablated: torch.Tensor, n_candidates: int = 10, form: str = "released"
) -> torch.Tensor:
    """Measure how far the first-token distribution moves when part of the visual input is replaced.

    Both runs are renormalised over the intact run's largest logits, giving P (intact) and Q (ablated) with
    mean M = (P + Q) / 2; probability that moves to other tokens is invisible.

    Parameters
    ----------
    intact, ablated : torch.Tensor
        ``(..., n_vocab)`` logits of the two runs; their leading shapes broadcast.
    n_candidates : int
        Number of candidates; all tokens where the vocabulary has fewer. Among logits that tie for the last
        place `torch.topk` decides.
    form : {"released", "textbook"}
        ``released``: (KL(M||P) + KL(M||Q)) / 2 divided by the number of candidates; no upper bound, and tiny
        negative values can occur by rounding. All published thresholds are for this form.
        ``textbook``: Jensen-Shannon divergence (KL(P||M) + KL(Q||M)) / 2, from 0 to ln 2.

    Returns
    -------
    torch.Tensor
        ``(...)`` float64, nats; higher = the replaced part matters more.

    Raises
    ------
    ParameterError
        If the form is unknown, the shapes do not match, a value is NaN or +inf, all candidates of a run are
        -inf, or `n_candidates` is below 1.

    Notes
    -----
    Source: context-centric analysis, cascaded leave-one-out; the released script's divergence. Its swapped KL
    directions and its mean over candidates are reproduced on purpose, and so is what follows from them: a
    candidate of logit -inf in one run gives +inf, in both runs NaN. The textbook form counts 0 for such a
    candidate's absent side and stays finite.
    Differs: computed in float64, so equal distributions give 0 to about 1e-16 instead of 1e-9.
    """
    if form not in FORMS:
        raise ParameterError("form", form, f"one of {FORMS}")
    _check_n_candidates(n_candidates)
    _check_logits("intact", intact)
    _check_logits("ablated", ablated)
    try:
        shape = torch.broadcast_shapes(intact.shape, ablated.shape)
    except RuntimeError:
        shape = None
    if shape is None or intact.shape[-1] != ablated.shape[-1]:
        raise ParameterError(
            "ablated", tuple(ablated.shape), f"n_vocab and leading shape to go with {tuple(intact.shape)}"
        )

    top = intact.topk(min(n_candidates, intact.shape[-1]), dim=-1)
    candidates = top.indices.expand(*shape[:-1], -1)
    gathered = ablated.expand(shape).gather(-1, candidates)
    if (gathered == -math.inf).all(-1).any():
        raise ParameterError(
            "ablated", "-inf at every candidate of the intact run", "one finite candidate at least"
        )
    log_p = top.values.double().log_softmax(-1).expand(gathered.shape)
    log_q = gathered.double().log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    if form == "released":
        m = log_m.exp()
        return (m * (log_m - log_p) + m * (log_m - log_q)).mean(-1) / 2
    return (_relative_entropy(log_p, log_m) + _relative_entropy(log_q, log_m)) / 2


def _relative_entropy(log_p: torch.Tensor, log_m: torch.Tensor) -> torch.Tensor:
    """Sum ``p * (log p - log m)`` over the last dimension, 0 where p is 0."""
    terms = log_p.exp() * (log_p - log_m)
    return terms.masked_fill(log_p == -math.inf, 0.0).sum(-1)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Compute the entropy of the softmax over all tokens.

    Parameters
    ----------
    logits : torch.Tensor
        ``(..., n_vocab)`` first-token logits; -inf means probability 0.

    Returns
    -------
    torch.Tensor
        ``(...)`` float64 in [0, ln n_vocab], nats; higher = less sure.

    Raises
    ------
    ParameterError
        If `logits` has NaN, +inf or a row without a finite value.
    """
    _check_logits("logits", logits)
    log_p = logits.double().log_softmax(-1)
    return -(log_p.exp() * log_p).masked_fill(log_p == -math.inf, 0.0).sum(-1)


def combined_influence(region: Any, global_: Any, k_region: float, k_global: float) -> Any:
    """Combine the divergences of both levels into one influence: ``k_region * region + k_global * global_``.

    Parameters
    ----------
    region, global_ : numpy.ndarray or torch.Tensor
        Divergences of any one shape, in nats.
    k_region, k_global : float
        Weights, at least 0.

    Returns
    -------
    numpy.ndarray or torch.Tensor
        Of that shape; higher = the token matters more.

    Notes
    -----
    Source: section 4 of the paper.
    """
    return k_region * region + k_global * global_
