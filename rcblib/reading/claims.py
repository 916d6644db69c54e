"""Judge the paper's claims by rules written down beforehand: gates first, then an interval and a bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from rcblib.reading.gate_results import FAILED, GATES, NOT_MEASURED, PASSED, GateResult, gate_states
from rcblib.reading.resampling import holm
from rcblib.reading.statistics import Estimate
from rcblib.records import ParameterError

HOLDS, FAILS, UNDECIDED, UNMEASURED = "holds", "does not hold", "undecided", "not measured"
NOT_TESTABLE = "not testable here"

SIDES = ("above", "below")
DATA = ("images", "groups", "videos")

LEVEL = 0.05
"""Family-wise error of the verdicts of a page about one model."""


def interval_side(low: float, high: float, bound: float) -> str:
    """Say on which side of a bound an interval lies.

    Returns
    -------
    str
        ``"above"`` or ``"below"`` where the whole interval is, ``"undecided"`` where it contains the bound (its ends
        included) or an end is NaN.
    """
    if low > bound:
        return "above"
    return "below" if high < bound else UNDECIDED


@dataclass(frozen=True)
class Rule:
    """State what one result must satisfy.

    Attributes
    ----------
    result : str
        Name of the result among those of the claim's source.
    reads : str
        What the result measures, in words.
    side : {"above", "below"}
        On which side of the bound the claim expects it.
    bound : float
        Compared with the 95 % interval of the result.
    retain_ratio : float, optional
        Budget that the rule is about, for gates that depend on it.
    data : {"images", "groups", "videos"}
        Samples that the rule is about.

    Raises
    ------
    ParameterError
        On another side or kind of samples, or a bound that is no number.
    """

    result: str
    reads: str
    side: str
    bound: float
    retain_ratio: float | None = None
    data: str = "images"

    def __post_init__(self):
        if self.side not in SIDES:
            raise ParameterError(f"side of {self.result}", self.side, f"one of {SIDES}")
        if self.data not in DATA:
            raise ParameterError(f"data of {self.result}", self.data, f"one of {DATA}")
        if not isinstance(self.bound, Real) or isinstance(self.bound, bool):
            raise ParameterError(f"bound of {self.result}", self.bound, "a number")

    def judge(self, interval: Sequence[float] | None) -> str:
        """Compare an interval with the bound.

        Parameters
        ----------
        interval : sequence of float or None
            ``(low, high)``, ascending; ``None`` where the result is undefined or absent.

        Returns
        -------
        str
            ``"holds"`` where the whole interval lies on the claim's side of the bound, ``"does not hold"`` where
            it lies on the other, ``"undecided"`` where it contains the bound (its ends included), ``"not
            measured"`` without an interval.

        Raises
        ------
        ParameterError
            If the interval does not ascend.
        """
        if interval is None:
            return UNMEASURED
        low, high = interval
        if not low <= high:
            raise ParameterError(f"interval of {self.result}", list(interval), "[low, high], ascending")
        found = interval_side(low, high, self.bound)
        if found == UNDECIDED:
            return UNDECIDED
        return HOLDS if found == self.side else FAILS

    def result_of(self, estimate: Estimate) -> dict[str, Any]:
        """Return an estimate as a result, with the p-value of its draws against the bound."""
        p_value = estimate.p_value(self.bound)
        return estimate.as_result() | {"p_value": None if np.isnan(p_value) else p_value}


@dataclass(frozen=True)
class Claim:
    """Hold a claim of the paper with the gates that must pass and the rules that decide it.

    Attributes
    ----------
    name : str
        Short name, such as ``"C1"``.
    claim : str
        The claim in words.
    source : str
        What the rules read: a notebook's results, or a stage's answers.
    gates : tuple of str
        Which of `GATES` must pass before a rule is applied.
    rules : tuple of Rule
        At least one.
    before : Mapping
        The rules of the book before there were gates, and their verdicts by model, kept on record.
    """

    name: str
    claim: str
    source: str
    gates: tuple[str, ...]
    rules: tuple[Rule, ...]
    before: Mapping[str, Any] = field(default_factory=dict)

    def source_of(self, rule: Rule) -> str:
        """Name what a rule reads."""
        return source_name(self.source, rule.data)

    def judge_rule(
        self, rule: Rule, found: Mapping[str, Any], gates: Sequence[GateResult], declared: str = ""
    ) -> tuple[str, str]:
        """Judge one rule: by a declared reason, a missing result, a gate that fails or is missing, its interval.

        Returns
        -------
        verdict, why : str
        """
        if declared:
            return NOT_TESTABLE, declared
        states = gate_states(gates, rule.retain_ratio, rule.data)
        stopped = {name: states[name] for name in self.gates if states[name][0] != PASSED}
        verdict = rule.judge(found.get("interval"))
        if verdict == UNMEASURED:
            return UNMEASURED, found.get("why", "no result")
        failed = [f"{name}: {why}" for name, (state, why) in stopped.items() if state == FAILED]
        if failed:
            return NOT_TESTABLE, "; ".join(failed)
        missing = [f"{name}: {why}" for name, (state, why) in stopped.items() if state == NOT_MEASURED]
        if missing:
            return UNMEASURED, "; ".join(missing)
        return verdict, ""


def source_name(source: str, data: str) -> str:
    """Name what was measured on some samples: the source, for groups and videos with their name behind it."""
    return source if data == "images" else f"{source}_{data}"


def combine(verdicts: Sequence[str]) -> str:
    """Combine the verdicts of a claim's rules; one that fails decides, then one not testable, then one not measured."""
    if not verdicts:
        raise ParameterError("verdicts", [], "at least one")
    for verdict in (FAILS, NOT_TESTABLE, UNMEASURED, UNDECIDED):
        if verdict in verdicts:
            return verdict
    return HOLDS


def read_claims(content: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Turn the content of ``data/claims.yml`` into claims.

    Parameters
    ----------
    content : Mapping
        Name of a claim to ``claim``, ``source``, ``gates``, ``rules`` (each with ``result``, ``reads``, ``side`` and
        ``bound``, some with ``retain_ratio`` and ``data``) and ``before``.

    Returns
    -------
    list of Claim
        In the order given.

    Raises
    ------
    ParameterError
        On a missing or unknown entry, an unknown gate, a claim without rules, or a rule that cannot be applied.
    """
    claims = []
    for name, entry in content.items():
        _check_keys(name, entry, ("claim", "source", "gates", "rules", "before"))
        if not entry["rules"]:
            raise ParameterError(f"rules of {name}", entry["rules"], "at least one rule")
        unknown = sorted(set(entry["gates"]) - set(GATES))
        if unknown:
            raise ParameterError(f"gates of {name}", unknown, f"some of {', '.join(GATES)}")
        for rule in entry["rules"]:
            _check_keys(
                f"a rule of {name}", rule, ("result", "reads", "side", "bound"), ("retain_ratio", "data")
            )
        rules = tuple(Rule(**{**rule, "reads": rule["reads"].strip()}) for rule in entry["rules"])
        _check_keys(f"before of {name}", entry["before"], ("rules", "verdicts"))
        claims.append(
            Claim(
                name, entry["claim"].strip(), entry["source"], tuple(entry["gates"]), rules, entry["before"]
            )
        )
    return claims


def claims_table(
    claims: Sequence[Claim],
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    gates: Sequence[GateResult] = (),
    *,
    model: str = "",
    declared: Mapping[tuple[str, str], str] | None = None,
) -> pd.DataFrame:
    """Apply every rule to what was measured on a model, one row a rule.

    Parameters
    ----------
    claims : sequence of Claim
        From `read_claims`.
    results : Mapping
        Source to its results (name to ``value``, ``n``, ``interval``, and ``p_value``); a source that is absent
        measured nothing.
    gates : sequence of GateResult
        Of the model; a gate that is not among them was not measured.
    model : str
        Its name, for reasons that were declared beforehand.
    declared : Mapping, optional
        (model, claim) to the reason for which it cannot be tested.

    Returns
    -------
    pandas.DataFrame
        ``claim`` (short name), ``source``, ``result``, ``reads``, ``data``, ``retain_ratio``, ``rule`` (such as
        ``"above 0.9"``), ``value``, ``low``, ``high``, ``n``, ``n_images``, ``p_value`` (NaN where not measured),
        ``rule_verdict`` and ``rule_why`` of the rule alone; ``p_holm``, ``verdict`` and ``why`` of the whole claim,
        after Holm's correction over the claims that are decided; ``before``, the verdict by the earlier rules.
    """
    rows = []
    for claim in claims:
        reason = (declared or {}).get((model, claim.name), "")
        for rule in claim.rules:
            found = results.get(claim.source_of(rule), {}).get(rule.result, {})
            verdict, why = claim.judge_rule(rule, found, gates, reason)
            low, high = found.get("interval") or (None, None)
            rows.append(
                {
                    "claim": claim.name,
                    "source": claim.source_of(rule),
                    "result": rule.result,
                    "reads": rule.reads,
                    "data": rule.data,
                    "retain_ratio": rule.retain_ratio,
                    "rule": f"{rule.side} {rule.bound:g}",
                    "value": found.get("value"),
                    "low": low,
                    "high": high,
                    "n": found.get("n"),
                    "n_images": found.get("n_clusters"),
                    "p_value": found.get("p_value"),
                    "rule_verdict": verdict,
                    "rule_why": why,
                    "before": claim.before.get("verdicts", {}).get(model, ""),
                }
            )
    frame = pd.DataFrame(rows)
    numbers = ["retain_ratio", "value", "low", "high", "n", "n_images", "p_value"]
    return _with_verdicts(frame.astype(dict.fromkeys(numbers, float))) if rows else frame


def _with_verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the verdict of each claim to its rows."""
    by_claim = dict(list(frame.groupby("claim", sort=False)))
    verdicts = {name: combine(rows["rule_verdict"].tolist()) for name, rows in by_claim.items()}
    tested = {
        name: _p_value(by_claim[name], verdict)
        for name, verdict in verdicts.items()
        if verdict in (HOLDS, FAILS, UNDECIDED)
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    why = {}
    for name, rows in by_claim.items():
        deciding = rows[rows["rule_verdict"] == verdicts[name]]
        why[name] = _sum_up(deciding["rule_why"])
        if verdicts[name] in (HOLDS, FAILS) and adjusted[name] > LEVEL:
            why[name] = f"{verdicts[name]} by itself, not among {len(tested)} claims (p {adjusted[name]:.2f})"
            verdicts[name] = UNDECIDED
    return frame.assign(
        p_holm=frame["claim"].map(adjusted).astype(float),
        verdict=frame["claim"].map(verdicts),
        why=frame["claim"].map(why),
    )


def _sum_up(reasons: Iterable[str]) -> str:
    """Join the reasons of several rules, each once, and those of a gate behind its name."""
    by_gate: dict[str, dict[str, None]] = {}
    for reason in reasons:
        for part in filter(None, reason.split("; ")):
            gate, _, found = part.partition(": ") if part[:2] in GATES else (part, "", "")
            by_gate.setdefault(gate, {}).update(dict.fromkeys(filter(None, found.split(", "))))
    return "; ".join(f"{gate}: {', '.join(found)}" if found else gate for gate, found in by_gate.items())


def _p_value(rows: pd.DataFrame, verdict: str) -> float:
    """Return the p-value of a claim: the largest of its rules where all must hold; Bonferroni's where one fails.

    A result without draws has none, and counts as 0 where its rule is decided: its interval alone speaks.
    """
    if verdict == UNDECIDED:
        return 1.0
    p_values = rows.loc[rows["rule_verdict"] == verdict, "p_value"].fillna(0.0)
    return float(p_values.max() if verdict == HOLDS else min(1.0, p_values.min() * len(rows)))


def _check_keys(where: str, entry: Any, known: Sequence[str], optional: Sequence[str] = ()) -> None:
    is_mapping = isinstance(entry, Mapping)
    if not is_mapping or not set(known) <= set(entry) <= {*known, *optional}:
        given = sorted(entry) if is_mapping else entry
        raise ParameterError(where, given, f"exactly {', '.join(known)}")
