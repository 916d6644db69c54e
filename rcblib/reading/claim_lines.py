"""Write verdicts for readers: of each claim one line a model, with its gates and controls, and each rule beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from rcblib.reading.claims import Claim, Rule
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
        in the order of `settings_of`, one where all are the same; ``verdict`` and ``why``. The numbers of a claim on
        pruning are scores on test images, means over the tasks that pass G1: ``codebook``, ``random``, ``oracle``,
        ``unpruned``, ``guessing``; where methods are compared, ``best other`` names the one that the codebook is
        compared with. Those of a claim on a signal are its ``reliability`` and the ``low share`` that this
        is made of, with what random numbers, a perfect signal (oracle) and a reversed one would get for the latter in
        one column; ``unpruned`` and ``guessing`` are those of the gates, on validation images.
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
    numbers = claim_numbers(each, claim)
    found = _found(each, claim)
    written = {name: joined(values) for name, values in numbers.items()}
    if is_on_pruning(claim):
        rivals = list(dict.fromkeys(filter(None, (result.get("against") for result in found))))
        return ({"best other": " · ".join(rivals)} if rivals else {}) | written
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
    """Write numbers beside each other, one where all are the same."""
    texts = [NOTHING if value is None else f"{value:.2f}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "\u202f·\u202f".join(texts)


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
