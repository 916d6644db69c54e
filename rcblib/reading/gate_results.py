"""Hold what gates found, and say what follows for a claim: passed, failed, or not measured."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rcblib.records import ParameterError
from rcblib.runs.paths import user_path

PASSED, FAILED, NOT_MEASURED = "passed", "failed", "not measured"

MARKS = {PASSED: "✓", FAILED: "✗", NOT_MEASURED: "?"}

GATES = {
    "G1": "the task works unpruned",
    "G2": "the background is redundant",
    "G3": "pruning can succeed",
    "G4": "pixels do not give it away",
    "G5": "the signal is stable",
    "G6": "prototypes recur",
    "G7": "a token can speak alone",
}

_SIDES = {
    "at least": ("≥", operator.ge),
    "above": (">", operator.gt),
    "at most": ("≤", operator.le),
    "below": ("<", operator.lt),
}


@dataclass(frozen=True)
class Limits:
    """Hold the bounds of the gates, from ``data/gates.yml``; see there what each is of."""

    least_score: float
    most_shuffled: float
    most_change: float
    most_left: float
    most_area: float
    least_overlap: float
    most_word_share: float
    least_image_share: float
    least_named: float


@dataclass(frozen=True)
class GateResult:
    """Hold one measured condition of a gate.

    Attributes
    ----------
    gate : str
        ``"G1"`` to ``"G7"``.
    what : str
        What was measured, in few words and of every model in the same ones; `rcblib.reading.gates` says exactly what.
    value, low, high : float
        With its interval; NaN where it was not measured, or where nothing was drawn.
    side : str
        ``"at least"``, ``"above"``, ``"at most"`` or ``"below"``.
    bound : float
        What the value is compared with.
    n : int
        Questions, tokens or clusters.
    why : str
        Why it was not measured, or what the result means; may be empty.
    task : str
        Where it is about one task.
    retain_ratio : float
        Where it is about one budget, else NaN.
    data : str
        Which samples: ``"images"``, ``"groups"`` or ``"videos"``.
    about : str
        Which of several it is on this model, such as the word said most.
    by_chance : float
        What the value would be by chance, of two sets as large; NaN where that has no meaning.
    matched : float
        What it would be if the second set were taken at its own quantiles, as large a part of its tokens below each
        level; NaN where that has no meaning.
    """

    gate: str
    what: str
    value: float
    low: float
    high: float
    side: str
    bound: float
    n: int = 0
    why: str = ""
    task: str = ""
    retain_ratio: float = float("nan")
    data: str = "images"
    about: str = ""
    by_chance: float = float("nan")
    matched: float = float("nan")

    @property
    def verdict(self) -> str:
        """Return ``"passed"``, ``"failed"`` or ``"not measured"``."""
        if np.isnan(self.value):
            return NOT_MEASURED
        return PASSED if _SIDES[self.side][1](self.value, self.bound) else FAILED

    def concerns(self, retain_ratio: float | None, data: str) -> bool:
        """Tell whether the result is about a budget and some samples; how a codebook came about (G5, G6) is for all."""
        is_budget = retain_ratio is None or np.isnan(self.retain_ratio)
        is_budget = is_budget or np.isclose(self.retain_ratio, retain_ratio)
        return bool(is_budget and (self.data == data or self.gate in ("G5", "G6")))

    def __str__(self) -> str:
        """Say what was found, and in brackets what would have passed."""
        of = "" if self.data == "images" else f"of {self.data}"
        return f"{' '.join(filter(None, (self.what, of, self.about)))} {self.value:.3g} ({self.bounds})"

    @property
    def cell(self) -> str:
        """Write value, interval and mark, for a table that says what was measured."""
        if self.verdict == NOT_MEASURED:
            return f"{MARKS[NOT_MEASURED]} {self.why}".strip()
        interval = "" if np.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return " ".join(filter(None, (f"{self.value:.2f}{interval}", MARKS[self.verdict], self.about)))

    @property
    def bounds(self) -> str:
        """Return what passes, such as ``"≥ 0.9"``."""
        return f"{_SIDES[self.side][0]}\u202f{self.bound:g}"


def gate_states(
    results: Sequence[GateResult], retain_ratio: float | None = None, data: str = "images"
) -> dict[str, tuple[str, str]]:
    """Sum the results of each gate up: its verdict, and why.

    Parameters
    ----------
    results : sequence of GateResult
        From `judge_gates`.
    retain_ratio : float, optional
        Budget of the rule that asks; results about another one do not count.
    data : str
        Samples of the rule that asks. G5 and G6 are about the making of a codebook, so about all.

    Returns
    -------
    dict
        Every gate to ``"passed"``, ``"failed"`` or ``"not measured"`` and a reason (empty where passed). G1 passes
        where any task does; of the others every condition must.
    """
    states = {}
    for gate in GATES:
        own = [each for each in results if each.gate == gate and each.concerns(retain_ratio, data)]
        failed = [each for each in own if each.verdict == FAILED]
        missing = [each for each in own if each.verdict == NOT_MEASURED]
        if gate == "G1" and own:
            works = {each.task for each in own} - {each.task for each in own if each.verdict != PASSED}
            states[gate] = (PASSED, "") if works else (FAILED, ", ".join(map(str, failed)))
        elif failed:
            states[gate] = FAILED, ", ".join(map(str, failed))
        elif missing or not own:
            reasons = ", ".join(dict.fromkeys(each.why for each in missing if each.why))
            states[gate] = NOT_MEASURED, reasons or NOT_MEASURED
        else:
            states[gate] = PASSED, ""
    return states


def gate_grid(results: Mapping[str, Sequence[GateResult]]) -> pd.DataFrame:
    """Lay the results of several models side by side.

    Parameters
    ----------
    results : Mapping
        Heading of a column to the results in it.

    Returns
    -------
    pandas.DataFrame
        Text: one row a gate, measure and bound (its index, with ``gate``, ``what`` and ``passes if``), in the order of
        the gates; in each column value, interval and mark, and what it is about.
    """
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for heading, own in results.items():
        for each in own:
            cells.setdefault((each.gate, each.what, each.bounds), {})[heading] = each.cell
    rows = sorted(cells, key=lambda key: list(GATES).index(key[0]))  # stable: as measured within a gate
    index = pd.MultiIndex.from_tuples(rows, names=["gate", "what", "passes if"])
    return pd.DataFrame([cells[row] for row in rows], index=index, columns=list(results)).fillna("–")


def read_gates_file(path: str | Path) -> tuple[Limits, dict[tuple[str, str], str], dict[str, list[str]]]:
    """Read a file like ``data/gates.yml``, see `read_gates`."""
    return read_gates(yaml.safe_load(user_path(path).read_text(encoding="utf-8")))


def read_gates(content: Mapping[str, Any]) -> tuple[Limits, dict[tuple[str, str], str], dict[str, list[str]]]:
    """Read ``data/gates.yml``.

    Returns
    -------
    limits : Limits
    declared : dict
        (model, claim) to the reason for which the claim cannot be tested on it.
    seeds : dict
        Model to others that differ in the seed of training only.

    Raises
    ------
    ParameterError
        On a missing or unknown entry, or a bound that is no number.
    """
    if not isinstance(content, Mapping) or set(content) != {"limits", "declared", "seeds"}:
        raise ParameterError("gates", sorted(content), "limits, declared and seeds")
    bounds = {name: value for gate in content["limits"].values() for name, value in gate.items()}
    known = set(Limits.__dataclass_fields__)
    if set(content["limits"]) != set(GATES) or set(bounds) != known:
        raise ParameterError(
            "limits", sorted(bounds), f"those of {', '.join(GATES)}: {', '.join(sorted(known))}"
        )
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in bounds.values()):
        raise ParameterError("limits", bounds, "numbers")
    declared = {}
    for entry in content["declared"]:
        if set(entry) != {"models", "claims", "why"}:
            raise ParameterError("declared", sorted(entry), "models, claims and why")
        declared |= {(m, c): entry["why"].strip() for m in entry["models"] for c in entry["claims"]}
    return Limits(**bounds), declared, dict(content["seeds"])
