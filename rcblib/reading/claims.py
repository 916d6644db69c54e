"""Judge the paper's claims by rules written down beforehand: an interval and a bound give a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import pandas as pd

from rcblib.records import ParameterError

HOLDS, FAILS, UNDECIDED, UNMEASURED = "holds", "does not hold", "undecided", "not measured"

SIDES = ("above", "below")


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
        Name of the result in the notebook's results file.
    reads : str
        What the result measures, in words.
    side : {"above", "below"}
        On which side of the bound the claim expects it.
    bound : float
        Compared with the 95 % interval of the result.

    Raises
    ------
    ParameterError
        On another side, or a bound that is no number.
    """

    result: str
    reads: str
    side: str
    bound: float

    def __post_init__(self):
        if self.side not in SIDES:
            raise ParameterError(f"side of {self.result}", self.side, f"one of {SIDES}")
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


@dataclass(frozen=True)
class Claim:
    """Hold a claim of the paper with the rules that decide it.

    Attributes
    ----------
    name : str
        Short name, such as ``"C1"``.
    claim : str
        The claim in words.
    notebook : str
        Whose results the rules read.
    rules : tuple of Rule
        At least one.
    """

    name: str
    claim: str
    notebook: str
    rules: tuple[Rule, ...]

    def judge(self, results: Mapping[str, Mapping[str, Any]]) -> str:
        """Combine the verdicts of all rules.

        Parameters
        ----------
        results : Mapping
            Name to a mapping with ``interval``, as `rcblib.runs.results.write_results` stores them.

        Returns
        -------
        str
            ``"holds"`` where every rule does, ``"does not hold"`` where any does not, ``"not measured"`` where a
            result is missing, else ``"undecided"``.
        """
        return combine([rule.judge(results.get(rule.result, {}).get("interval")) for rule in self.rules])


def combine(verdicts: Sequence[str]) -> str:
    """Combine the verdicts of a claim's rules; one that fails decides, then one that was not measured."""
    if not verdicts:
        raise ParameterError("verdicts", [], "at least one")
    for verdict in (FAILS, UNMEASURED, UNDECIDED):
        if verdict in verdicts:
            return verdict
    return HOLDS


def read_claims(content: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Turn the content of ``data/claims.yml`` into claims.

    Parameters
    ----------
    content : Mapping
        Name of a claim to ``claim``, ``notebook`` and ``rules``, each rule with ``result``, ``reads``, ``side`` and
        ``bound``.

    Returns
    -------
    list of Claim
        In the order given.

    Raises
    ------
    ParameterError
        On a missing or unknown entry, a claim without rules, or a rule that cannot be applied.
    """
    claims = []
    for name, entry in content.items():
        _check_keys(name, entry, ("claim", "notebook", "rules"))
        if not entry["rules"]:
            raise ParameterError(f"rules of {name}", entry["rules"], "at least one rule")
        for rule in entry["rules"]:
            _check_keys(f"a rule of {name}", rule, ("result", "reads", "side", "bound"))
        rules = tuple(Rule(**{**rule, "reads": rule["reads"].strip()}) for rule in entry["rules"])
        claims.append(Claim(name, entry["claim"].strip(), entry["notebook"], rules))
    return claims


def claims_table(
    claims: Sequence[Claim], results: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> pd.DataFrame:
    """Apply every rule to what was measured, one row a rule.

    Parameters
    ----------
    claims : sequence of Claim
        From `read_claims`.
    results : Mapping
        Notebook to its results (name to ``value``, ``n``, ``interval``); a notebook that is absent measured
        nothing.

    Returns
    -------
    pandas.DataFrame
        ``claim`` (short name), ``notebook``, ``result``, ``reads``, ``rule`` (such as ``"above 0.05"``), ``value``,
        ``low``, ``high``, ``n``, ``n_images`` (NaN where not measured), ``rule_verdict`` and ``verdict``, that of
        the whole claim.
    """
    rows = []
    for claim in claims:
        measured = results.get(claim.notebook, {})
        verdict = claim.judge(measured)
        for rule in claim.rules:
            found = measured.get(rule.result, {})
            interval = found.get("interval")
            low, high = interval if interval is not None else (None, None)
            rows.append(
                {
                    "claim": claim.name,
                    "notebook": claim.notebook,
                    "result": rule.result,
                    "reads": rule.reads,
                    "rule": f"{rule.side} {rule.bound:g}",
                    "value": found.get("value"),
                    "low": low,
                    "high": high,
                    "n": found.get("n"),
                    "n_images": found.get("n_clusters"),
                    "rule_verdict": rule.judge(interval),
                    "verdict": verdict,
                }
            )
    frame = pd.DataFrame(rows)
    numbers = ["value", "low", "high", "n", "n_images"]
    return frame.astype(dict.fromkeys(numbers, float)) if rows else frame


def _check_keys(where: str, entry: Any, known: Sequence[str]) -> None:
    if not isinstance(entry, Mapping) or set(entry) != set(known):
        given = sorted(entry) if isinstance(entry, Mapping) else entry
        raise ParameterError(where, given, f"exactly {', '.join(known)}")
