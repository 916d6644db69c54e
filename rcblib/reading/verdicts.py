"""Collect what was measured on each model, live or recorded, and judge the claims by it: gates, then rules."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rcblib.codebook.codebook import load_codebook
from rcblib.evaluate.guessing import kinds_of
from rcblib.reading.claims import DATA, Claim, claims_table
from rcblib.reading.comparison import pruning_results
from rcblib.reading.gate_results import FAILED, NOT_MEASURED, PASSED, GateResult, Limits, gate_states
from rcblib.reading.gates import judge_gates
from rcblib.records import CodebookError, ParameterError
from rcblib.runs.files import read_json, read_table
from rcblib.runs.records import read_record

GATES_STAGE, PRUNING_STAGE = "gates", "pruning"

_MARKS = {PASSED: "\u202f✓", FAILED: "\u202f✗", NOT_MEASURED: "\u202f?"}

_STAGES = {
    stage if data == "images" else f"{stage}_{data}": (stage, data)
    for stage in (GATES_STAGE, PRUNING_STAGE)
    for data in DATA
}


@dataclass
class Evidence:
    """Hold what was measured on one model.

    Attributes
    ----------
    model : str
        Its name.
    tables : dict
        (stage, data) to the table of `rcblib.evaluate.gates.measure_gates` or `rcblib.evaluate.grid.evaluate_grid`.
    results : dict
        Source to results by name, as `claims_table` takes them.
    origins : dict
        What each table and source comes from: a file, and whether it was recorded.
    gates : list of GateResult
        Filled by `weigh`, as are `tasks`.
    tasks : dict
        Data to the tasks that pass G1.
    """

    model: str
    tables: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    gates: list[GateResult] = field(default_factory=list)
    tasks: dict[str, list[str]] = field(default_factory=dict)


def collect(
    results_folder: str | os.PathLike, recorded_folder: str | os.PathLike, notebooks: Iterable[str]
) -> dict[str, Evidence]:
    """Find the tables of stages and the results of notebooks, model by model.

    Parameters
    ----------
    results_folder : path-like
        Results of the default model, and folders of further models.
    recorded_folder : path-like
        Recorded tables, ``<model>/<stage>.parquet``; where one is there it takes the place of the live one.
    notebooks : iterable of str
        Names of notebooks whose results are read.

    Returns
    -------
    dict of Evidence
        By name of model, in order of discovery, the results folder first.
    """
    found: dict[str, Evidence] = {}

    def of(model: Any) -> Evidence:
        name = Path(str(model)).name
        return found.setdefault(name, Evidence(name))

    live = Path(results_folder)
    places = [live, *sorted(path for path in live.glob("*") if path.is_dir())]
    for place in places:
        for name in notebooks:
            path = place / f"{name}.json"
            if path.is_file():
                content = read_json(path)
                evidence = of(content["config"].get("model", "?"))
                evidence.results[name], evidence.origins[name] = content["results"], "computed in this build"
        for name, stage in _STAGES.items():
            path = place / f"{name}.parquet"
            if path.is_file():
                table, facts = read_table(path)
                evidence = of(facts.get("description", facts).get("model", "?"))
                evidence.tables[stage], evidence.origins[name] = table, "computed in this build"
    for path in sorted(Path(recorded_folder).glob("*/*.parquet")):
        if path.stem in _STAGES:
            record = read_record(path)
            evidence = of(record.description.get("model", path.parent.name))
            evidence.tables[_STAGES[path.stem]] = record.table
            evidence.origins[path.stem] = record.origin(record.description["code"]).partition(", code")[0]
    return found


def weigh(
    evidence: Evidence,
    claims: Sequence[Claim],
    limits: Limits,
    *,
    other: Evidence | None = None,
    seed: int = 0,
) -> None:
    """Judge a model's gates, and estimate what the rules on pruning read on the tasks that pass.

    Parameters
    ----------
    evidence : Evidence
        Its gates, tasks and results are filled.
    claims : sequence of Claim
        Their budgets are those of G3 and of the estimates.
    limits : Limits
        Bounds of the gates.
    other : Evidence, optional
        Of a model of another training seed, for G5.
    seed : int
        Of all draws.
    """
    codebook = _codebook_metadata(evidence.model)
    for data in DATA:
        rules = [rule for claim in claims for rule in claim.rules if rule.data == data and rule.retain_ratio]
        bounds = {rule.retain_ratio: rule.bound for rule in rules if rule.result.startswith("relative")}
        table = evidence.tables.get((GATES_STAGE, data))
        if table is not None:
            results, evidence.tasks[data] = judge_gates(
                table,
                limits,
                bounds,
                codebook=codebook,
                other=None if other is None else other.tables.get((GATES_STAGE, data)),
                data=data,
                seed=seed,
            )
            evidence.gates += results
        answers = evidence.tables.get((PRUNING_STAGE, data))
        if answers is None:
            continue
        tasks = evidence.tasks.get(data) or sorted(set(kinds_of(answers[answers["guess"].notna()])))
        generator = np.random.default_rng(seed)
        estimates = pruning_results(answers, tasks, list(bounds), generator=generator)
        source = PRUNING_STAGE if data == "images" else f"{PRUNING_STAGE}_{data}"
        evidence.results[source] = {name: each.as_result() for name, each in estimates.items()} | {
            rule.result: rule.result_of(estimates[rule.result]) for rule in rules if rule.result in estimates
        }


def verdict_table(
    evidence: Iterable[Evidence], claims: Sequence[Claim], declared: Mapping[tuple[str, str], str]
) -> pd.DataFrame:
    """Judge all claims on all models, one row a model and rule; the columns of `claims_table`, with ``model``."""
    tables = [
        claims_table(claims, each.results, each.gates, model=each.model, declared=declared).assign(
            model=each.model
        )
        for each in evidence
    ]
    return (
        pd.concat(tables, ignore_index=True) if tables else claims_table(claims, {}).assign(model="none yet")
    )


def control_table(
    evidence: Iterable[Evidence], claims: Sequence[Claim], verdicts: pd.DataFrame
) -> pd.DataFrame:
    """List what a verdict on pruning has to be read beside, one line a model, claim and budget.

    Parameters
    ----------
    evidence, claims
        As in `verdict_table`.
    verdicts : pandas.DataFrame
        From `verdict_table`.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``claim``, ``data``, ``retain_ratio``, ``tasks``; plain scores, means over tasks: ``unpruned``,
        ``codebook``, ``random``, ``oracle``, ``guessing`` (NaN where not asked); with its interval as text the
        ``relative`` score of the codebook; ``gates``, those of the claim with a mark for passed, failed and not
        measured; ``verdict`` and ``why``, of the whole claim.
    """
    rows = []
    for each in evidence:
        for claim in claims:
            for rule in claim.rules:
                found = each.results.get(claim.source_of(rule), {})
                end = f"retain_{(rule.retain_ratio or 0) * 100:g}"
                if rule.result != f"relative_{end}" or rule.result not in found:
                    continue
                names = {
                    "unpruned": "score_unpruned",
                    "codebook": f"score_{end}",
                    "random": f"score_random_{end}",
                    "oracle": f"score_oracle_{end}",
                    "guessing": "score_guessing",
                }
                scores = {key: found.get(name, {}).get("value", np.nan) for key, name in names.items()}
                states = gate_states(each.gates, rule.retain_ratio, rule.data)
                measured = found[rule.result]
                interval = measured["interval"]
                relative = (
                    "–"
                    if interval is None
                    else "{:.2f} [{:.2f}, {:.2f}]".format(measured["value"], *interval)
                )
                rows.append(
                    {
                        "model": each.model,
                        "claim": claim.name,
                        "data": rule.data,
                        "retain_ratio": rule.retain_ratio,
                        "tasks": ", ".join(each.tasks.get(rule.data, [])) or "all, as none passes G1",
                        **scores,
                        "relative": relative,
                        "gates": " ".join(f"{gate}{_MARKS[states[gate][0]]}" for gate in claim.gates),
                    }
                )
    of_claims = verdicts.drop_duplicates(["model", "claim"])[["model", "claim", "verdict", "why"]]
    return pd.DataFrame(rows).merge(of_claims, on=["model", "claim"]) if rows else pd.DataFrame()


def _codebook_metadata(model: str) -> Mapping[str, Any] | None:
    """Return the metadata of the codebook that goes by a model's name; ``None`` where there is none."""
    try:
        return load_codebook(model).metadata
    except (CodebookError, ParameterError):
        return None
