"""Hold all that was measured with the verdicts on it, for tools that write what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rcblib.reading.claims import Claim, read_claims
from rcblib.reading.gate_results import GateResult, read_gates_file
from rcblib.reading.verdicts import Evidence, collect, verdict_table, weigh_all
from rcblib.records import ParameterError


@dataclass(frozen=True)
class Judged:
    """Hold all that was measured, weighed, and the verdicts on it."""

    claims: Sequence[Claim]
    models: Mapping[str, Evidence]
    verdicts: pd.DataFrame

    def result(self, model: str, source: str, name: str) -> Mapping[str, Any]:
        """Return one result of a model.

        Raises
        ------
        ParameterError
            If it was not measured.
        """
        found = self.models[model].results.get(source, {}).get(name) if model in self.models else None
        if not found or found.get("value") is None:
            raise ParameterError(f"{source} of {model}", name, "a result that was measured")
        return found

    def value(self, model: str, source: str, name: str) -> float:
        """Return the value of a result."""
        return float(self.result(model, source, name)["value"])

    def gate(self, model: str, what: str) -> GateResult:
        """Return a measured condition of a gate by what it measures, or how that begins."""
        for each in self.models[model].gates if model in self.models else ():
            if each.what.startswith(what) and each.verdict != "not measured":
                return each
        raise ParameterError(f"gates of {model}", what, "a condition that was measured")


def judge(root: Path, leading: Sequence[str], more: Sequence[str] = ()) -> Judged:
    """Apply the rules to what lies in ``results/`` and ``data/recorded/`` of a project.

    Models that lead come first; results of further notebooks are read along.
    """
    claims = read_claims(yaml.safe_load((root / "data/claims.yml").read_text(encoding="utf-8")))
    limits, declared, seeds = read_gates_file(root / "data/gates.yml")
    notebooks = {claim.source for claim in claims if not any(rule.retain_ratio for rule in claim.rules)}
    measured = collect(root / "results", root / "data/recorded", sorted({*notebooks, *more}), leading)
    models = weigh_all(measured, claims, limits, seeds)
    return Judged(claims, models, verdict_table(models.values(), claims, declared))
