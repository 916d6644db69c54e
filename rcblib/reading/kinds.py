"""Say of which kind the signals are that are set against the truth, and which of each kind is best."""

from __future__ import annotations

from collections.abc import Sequence

from rcblib.pruners.every import kind_of
from rcblib.reading.labels import method_label
from rcblib.reading.truth import ORACLE, candidate_label

CONTROLS, SAID = "controls", "by answers to probing"

_KINDS = {
    "pixel": "by pixels",
    "cls": "by [CLS]",
    "attention": "by text-to-image attention",
    "received": "by states of the encoder",
    "token": "by the token itself",
}
"""Kinds of candidates by the first word of their names."""


def candidate_kind(name: str) -> str:
    """Return what a candidate of `with_candidates` is made of, as words that follow "best of 5"."""
    if name in (ORACLE, "random_numbers"):
        return CONTROLS
    if name == "token_predicted" or name.startswith("score_codebook_"):
        return "made from probing"
    if name.startswith("score_"):
        kind = kind_of(method_label(name.removeprefix("score_")))
        of_methods = {"inside the LLM": f"methods {kind}", "made from probing": kind, CONTROLS: CONTROLS}
        return of_methods.get(kind, f"methods by {kind}")
    return _KINDS.get(name.partition("_")[0], SAID)


def leading_of_kinds(ordered: Sequence[str], named: Sequence[str] = ()) -> dict[str, str]:
    """Choose of candidates, best first, the best of each kind, all controls and those that are named.

    Returns
    -------
    dict
        Candidates in their order, each to a label of two lines: what it is, and of how many it is the best.
    """
    kinds: dict[str, list[str]] = {}
    for name in ordered:
        kinds.setdefault(candidate_kind(name), []).append(name)
    labels = {}
    for name in ordered:
        kind = candidate_kind(name)
        own = kinds[kind]
        if kind == CONTROLS:
            labels[name] = f"{candidate_label(name)}\n(control)"
        elif name == own[0] and len(own) > 1:
            labels[name] = f"{candidate_label(name)}\n(best of {len(own)} {kind})"
        elif name == own[0] or name in named:
            labels[name] = f"{candidate_label(name)}\n({kind})"
    return labels
