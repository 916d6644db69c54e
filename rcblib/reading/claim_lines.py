"""Write verdicts for readers: of each claim one line a model, with its gates and controls, and each rule beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from rcblib.reading.claims import Claim, Rule, combine
from rcblib.reading.gate_results import FAILED, MARKS, gate_states
from rcblib.reading.verdicts import GATES_STAGE, Evidence, source_name

NOTHING = "–"


def settings_of(claim: Claim) -> list[str]:
    """Say what the numbers on a claim's lines are for, in their order: budgets, samples, or kinds of tokens."""
    return [
        _said(rule.result)[1]
        if rule.retain_ratio is None
        else " ".join(filter(None, (rule.data.replace("images", ""), f"{rule.retain_ratio:.0%}")))
        for rule in _settings(claim)
    ]


def claim_lines(evidence: Iterable[Evidence], claim: Claim, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Write a claim's verdict on each model on one line, with everything that it has to be read beside.

    Parameters
    ----------
    evidence : iterable of Evidence
        Weighed. Those on which nothing was measured for the claim, not even its gates, have no line, unless there was a
        reason beforehand.
    claim : Claim
        Whose lines.
    verdicts : pandas.DataFrame
        From `rcblib.reading.verdicts.verdict_table`.

    Returns
    -------
    pandas.DataFrame
        Text, by name of model: ``gates``, those of the claim with a mark for passed, failed and not measured; numbers
        in the order of `settings_of`; ``verdict`` and ``why``. The numbers of a claim on pruning are scores on test
        images, means over the tasks that pass G1: ``codebook``, ``random``, ``oracle``, and, once for each kind of
        samples, ``unpruned`` and ``guessing``; where methods are compared, ``best other`` names the best of them and
        the share of rows, and ``minus best other`` is the difference in relative score from it. Those of a claim on a
        signal are its ``reliability`` and the ``low share`` that this is made of, with what random numbers, a perfect
        signal (oracle) and a reversed one would get for the latter in one column; ``unpruned`` and ``guessing`` are
        those of the gates, on validation images.
    """
    of_claim = verdicts[verdicts["claim"] == claim.name].drop_duplicates("model").set_index("model")
    lines = {}
    for each in evidence:
        found = of_claim.loc[each.model]
        if not (_measured(each, claim) or found["verdict"] != "not measured"):
            continue
        lines[each.model] = {
            "gates": _gates(each, claim),
            **_numbers(each, claim),
            "verdict": found["verdict"],
            "why": found["why"] or NOTHING,
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("model")


def claim_numbers(each: Evidence, claim: Claim) -> dict[str, list[float | None]]:
    """Return the numbers of a claim's line, each once for every entry of `settings_of`; ``None`` where not measured.

    Parameters
    ----------
    each : Evidence
        Weighed.
    claim : Claim
        Whose numbers.

    Returns
    -------
    dict
        Of a claim on pruning the scores ``codebook``, ``random``, ``oracle``, ``unpruned`` and ``guessing``, 0 to 1.
        Of a claim on a signal its ``reliability``, its ``low share``, and the shares that ``random`` numbers, a perfect
        signal (``oracle``) and a ``reversed`` one would get, 0 to 1; the last two are scores of the gates there.
    """
    settings = _settings(claim)

    def numbers(name: str, source: str = "") -> list[float | None]:
        return [
            each.results.get(source_name(source or claim.source, rule.data), {})
            .get(name.format(end=f"retain_{(rule.retain_ratio or 0) * 100:g}"), {})
            .get("value")
            for rule in settings
        ]

    if is_on_pruning(claim):
        return {
            "codebook": numbers("score_{end}"),
            "random": numbers("score_random_{end}"),
            "oracle": numbers("score_oracle_{end}"),
            "unpruned": numbers("score_unpruned"),
            "guessing": numbers("score_guessing"),
        }
    found = _found(each, claim)
    stored = {"reliability": "value", "low share": "low_share"}
    stored |= {"random": "random", "oracle": "best", "reversed": "reversed"}
    return {name: [result.get(key) for result in found] for name, key in stored.items()} | {
        "unpruned": numbers("score_unpruned", GATES_STAGE),
        "guessing": numbers("score_guessing", GATES_STAGE),
    }


def is_on_pruning(claim: Claim) -> bool:
    """Tell whether a claim is about budgets of tokens, rather than about a signal."""
    return claim.rules[0].retain_ratio is not None


def said_numbers(each: Evidence, claim: Claim) -> dict[str, str]:
    """Write the numbers of `claim_numbers` in words: ``unpruned`` and ``guessing`` once for each kind of samples."""
    first = [rule.data for rule in _settings(claim)]
    once = [first.index(data) for data in dict.fromkeys(first)]
    return {
        name: joined([values[i] for i in once] if name in ("unpruned", "guessing") else values)
        for name, values in claim_numbers(each, claim).items()
    }


def relative_words(each: Evidence, claim: Claim) -> str:
    """Write the relative scores of a claim on pruning with their intervals, in the order of `settings_of`.

    Returns
    -------
    str
        Such as ``0.94 [0.90, 0.98] · 0.90 [0.85, 0.96]``; empty where the claim asks for none or none was measured.
    """
    found = [each for each in _found(each, claim) if each.get("interval")]
    if not found or not all(rule.result.startswith("relative") for rule in _settings(claim)):
        return ""
    ends = [f"{own['value']:.2f} [{own['interval'][0]:.2f}, {own['interval'][1]:.2f}]" for own in found]
    return " · ".join(ends)


def asked_words(each: Evidence, claim: Claim) -> str:
    """Write how many questions, or tokens, the numbers of a claim rest on: one number where all are the same."""
    n = dict.fromkeys(f"{found['n']:,}" for found in _found(each, claim) if found.get("n"))
    return "\u202f·\u202f".join(n)


def difference_words(each: Evidence, claim: Claim) -> str:
    """Say how far the codebook is from the best other method, in relative score, with the interval.

    Returns
    -------
    str
        Such as ``-0.12 [-0.29, +0.15] · -0.05 [-0.19, +0.17]``, once for each budget; once where all are taken at the
        same share of rows, so that they are one. Empty where no method was compared.
    """
    return " · ".join(
        dict.fromkeys(
            f"{found['value']:+.2f} [{found['interval'][0]:+.2f}, {found['interval'][1]:+.2f}]"
            for found in _compared(each, claim)
        )
    )


def rival_words(each: Evidence, claim: Claim) -> str:
    """Say from which method `difference_words` is, and at which share of the rows, such as ``SparseVLM at 21%``."""
    return " · ".join(
        dict.fromkeys(f"{found['against']} at {found['retained']:.0%}" for found in _compared(each, claim))
    )


def _compared(each: Evidence, claim: Claim) -> list[Mapping[str, Any]]:
    return [found for found in _found(each, claim) if found.get("against") and found.get("interval")]


def rules_alone(each: Evidence, claim: Claim) -> str:
    """Return what the rules of a claim would say of a model by their intervals, were there no gates."""
    return combine(
        [
            rule.judge(each.results.get(claim.source_of(rule), {}).get(rule.result, {}).get("interval"))
            for rule in claim.rules
        ]
    )


def failed_gates(each: Evidence, claim: Claim) -> list[str]:
    """Name the gates of a claim that failed on a model for any of its rules, such as ``["G4", "G5"]``."""
    states = [gate_states(each.gates, rule.retain_ratio, rule.data) for rule in claim.rules]
    return [gate for gate in claim.gates if any(state[gate][0] == FAILED for state in states)]


def rule_grid(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Lay what each rule measured, and its own verdict, out side by side: a row a rule, a column a model.

    Below the rules of a claim stands the verdict of the book before there were gates.
    """
    cells = {}
    for claim, rows in verdicts.groupby("claim", sort=False):
        for row in rows.to_dict("records"):
            cells[claim, _rule_words(row["result"], row["data"]), row["rule"], row["model"]] = _cell(row)
        for row in rows.to_dict("records"):
            cells[claim, "verdict before there were gates", "", row["model"]] = row["before"] or NOTHING
    names = ["claim", "measured", "claimed", "model"]
    grid = pd.Series(cells, index=pd.MultiIndex.from_tuples(cells, names=names)).unstack("model", sort=False)
    return grid.rename_axis(columns=None)


def _settings(claim: Claim) -> list[Rule]:
    """Return the first rule of each budget and kind of samples, or every rule where none is about a budget."""
    first: dict[tuple[object, ...], Rule] = {}
    for rule in claim.rules:
        kind = rule.result if rule.retain_ratio is None else ""
        first.setdefault((kind, rule.data, rule.retain_ratio), rule)
    return list(first.values())


def _measured(each: Evidence, claim: Claim) -> bool:
    sources = {claim.source_of(rule) for rule in claim.rules}
    sources |= {source_name(GATES_STAGE, rule.data) for rule in claim.rules}
    return any(each.results.get(source) for source in sources)


def _gates(each: Evidence, claim: Claim) -> str:
    states = [gate_states(each.gates, rule.retain_ratio, rule.data) for rule in _settings(claim)]
    marks = {gate: [MARKS[state[gate][0]] for state in states] for gate in claim.gates}
    return " ".join(gate + "".join(own if len(set(own)) > 1 else own[:1]) for gate, own in marks.items())


def _numbers(each: Evidence, claim: Claim) -> dict[str, str]:
    found = _found(each, claim)
    written = said_numbers(each, claim)
    if is_on_pruning(claim):
        compared = difference_words(each, claim)
        others = {"best other": rival_words(each, claim), "minus best other": compared}
        return (others if compared else {}) | written
    others = [written.pop(name) for name in ("random", "oracle", "reversed")]
    is_inverted = any(result.get("inverted") for result in found)
    return {
        "reliability": written["reliability"] + (" (inverted)" if is_inverted else ""),
        "low share": written["low share"],
        "random / oracle / reversed": NOTHING if set(others) == {NOTHING} else " / ".join(others),
        "unpruned": written["unpruned"],
        "guessing": written["guessing"],
    }


def _found(each: Evidence, claim: Claim) -> list[Mapping[str, Any]]:
    """Return what was measured for the rule of each setting."""
    return [each.results.get(claim.source_of(rule), {}).get(rule.result, {}) for rule in _settings(claim)]


def joined(values: Sequence[float | None]) -> str:
    """Write numbers beside each other, also where they are the same; one dash where none was measured."""
    texts = [NOTHING if value is None else f"{value:.2f}" for value in values]
    return NOTHING if set(texts) == {NOTHING} else "\u202f·\u202f".join(texts)


def _said(result: str) -> tuple[str, str]:
    """Split the name of a result into what is measured and what for: a share that is kept, or a kind of tokens."""
    kept = re.fullmatch(r"(.*)_retain_([\d.]+)", result)
    if kept:
        return kept[1].replace("_", " "), f"{kept[2]}%"
    what, _, of = result.partition("_for_")
    return what.replace("cls", "[CLS]").replace("_", " "), of


def _rule_words(result: str, data: str) -> str:
    what, of = _said(result)
    return ", ".join(filter(None, (what, of, data.replace("images", ""))))


def _cell(row: dict[str, object]) -> str:
    if pd.isna(row["value"]):
        return str(row["rule_verdict"])
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{interval}, n {row['n']:,.0f}: {row['rule_verdict']}"
