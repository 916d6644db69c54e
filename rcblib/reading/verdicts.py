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
from rcblib.evaluate.gates import ANSWERS, UNPRUNED, part_of
from rcblib.evaluate.guessing import kinds_of
from rcblib.reading.budgets import above_intermediate, curves_beside_intermediate
from rcblib.reading.claims import DATA, Claim, Rule, claims_table, source_name
from rcblib.reading.comparison import corrected_scores, pruning_results
from rcblib.reading.gate_results import GateResult, Limits
from rcblib.reading.gates import judge_gates
from rcblib.reading.statistics import Estimate
from rcblib.records import CodebookError, ParameterError
from rcblib.runs.files import read_json, read_table
from rcblib.runs.paths import user_path
from rcblib.runs.records import read_record

GATES_STAGE, PRUNING_STAGE, METHODS_STAGE = "gates", "pruning", "every_method"

_STAGES = {
    source_name(stage, data): (stage, data)
    for stage in (GATES_STAGE, PRUNING_STAGE, METHODS_STAGE)
    for data in DATA
}

CONTROLS = {"random": "random tokens", "oracle": "an oracle by masks"}
"""Without these, asked the same at the same budget, no verdict on pruning is given."""


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
    results_folder: str | os.PathLike,
    recorded_folder: str | os.PathLike,
    notebooks: Iterable[str],
    models: Iterable[str] = (),
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
    models : iterable of str
        Names that come first, in this order, also where nothing was measured.

    Returns
    -------
    dict of Evidence
        By name of model; those that `models` lacks in order of discovery, the results folder first. Which model a
        result is of is said inside it, so any may be the default.
    """
    found = {name: Evidence(name) for name in models}

    def of(model: Any) -> Evidence:
        name = Path(str(model)).name
        return found.setdefault(name, Evidence(name))

    live = user_path(results_folder, "results_folder")
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
    for path in sorted(user_path(recorded_folder, "recorded_folder").glob("*/*.parquet")):
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
    asked_rules = [(claim.source, rule) for claim in claims for rule in claim.rules if rule.retain_ratio]
    for data in DATA:
        rules = [rule for _, rule in asked_rules if rule.data == data]
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
            asked = corrected_scores(
                part_of(table, ANSWERS),
                {UNPRUNED: (UNPRUNED, None)},
                evidence.tasks[data] or None,
                generator=np.random.default_rng(seed),
            )
            evidence.results[source_name(GATES_STAGE, data)] = {
                "score_unpruned": asked.score(UNPRUNED).as_result(),
                "score_guessing": asked.score("guessing").as_result(),
            }
        for stage in (PRUNING_STAGE, METHODS_STAGE):
            answers = evidence.tables.get((stage, data))
            if answers is not None:
                of_stage = [rule for source, rule in asked_rules if source == stage and rule.data == data]
                tasks = evidence.tasks.get(data) or sorted(set(kinds_of(answers[answers["guess"].notna()])))
                found = _pruning_results(answers, tasks, of_stage, seed)
                evidence.results[source_name(stage, data)] = found


def weigh_all(
    found: Mapping[str, Evidence],
    claims: Sequence[Claim],
    limits: Limits,
    seeds: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
) -> dict[str, Evidence]:
    """Weigh every model, each beside the first of its further training seeds that was measured.

    Parameters
    ----------
    found : Mapping
        From `collect`.
    claims, limits, seed
        As in `weigh`.
    seeds : Mapping
        From `rcblib.reading.gate_results.read_gates`.

    Returns
    -------
    dict of Evidence
        The models that get verdicts: all but the further seeds.
    """
    further = {name for names in seeds.values() for name in names}
    models = {model: evidence for model, evidence in found.items() if model not in further}
    for model, evidence in models.items():
        others = [found[name] for name in seeds.get(model, ()) if name in found]
        weigh(evidence, claims, limits, other=others[0] if others else None, seed=seed)
    return models


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


def _pruning_results(
    answers: pd.DataFrame, tasks: Sequence[str], rules: Sequence[Rule], seed: int
) -> dict[str, dict[str, Any]]:
    """Estimate what some rules read from answers on some tasks, with the controls of their budgets."""
    ratios = list(dict.fromkeys(rule.retain_ratio for rule in rules))
    estimates = pruning_results(answers, tasks, ratios, generator=np.random.default_rng(seed))
    found = {name: each.as_result() for name, each in estimates.items()}
    wanted = {rule.result: rule for rule in rules if rule.result.startswith("above_intermediate")}
    if wanted and estimates:
        curves = curves_beside_intermediate(answers, tasks, seed=seed)
        compared = {name: above_intermediate(curves, rule.retain_ratio) for name, rule in wanted.items()}
        found |= {name: result for name, result in compared.items() if result}
    for rule in rules:
        if rule.result in estimates:
            found[rule.result] = rule.result_of(estimates[rule.result])
        if rule.result in found:
            found[rule.result] |= _without_controls(rule, estimates)
    return found


def _without_controls(rule: Rule, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return what takes a rule's interval away, and says which control was not asked; nothing where all were."""
    end = f"retain_{rule.retain_ratio * 100:g}"
    missing = [words for name, words in CONTROLS.items() if f"score_{name}_{end}" not in estimates]
    return {"interval": None, "why": f"not beside {' and '.join(missing)}"} if missing else {}


def _codebook_metadata(model: str) -> Mapping[str, Any] | None:
    """Return the metadata of the codebook that goes by a model's name; ``None`` where there is none."""
    try:
        return load_codebook(model).metadata
    except (CodebookError, ParameterError):
        return None
