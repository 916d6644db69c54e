"""Check how what was measured, live or recorded, is collected and weighed into verdicts with their controls."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_gates import LIMITS, N, answers, asked, tokens

from rcblib.evaluate.gates import ORACLE
from rcblib.reading.claims import read_claims
from rcblib.reading.verdicts import Evidence, collect, control_table, verdict_table, weigh
from rcblib.runs.files import file_sha256, write_json, write_table

CLAIMS = read_claims(
    yaml.safe_load((Path(__file__).resolve().parents[1] / "data" / "claims.yml").read_text(encoding="utf-8"))
)


def gates_of(**changed):
    parts = [answers(**changed).assign(part="answers"), tokens().assign(part="tokens")]
    table = pd.concat(parts, ignore_index=True)
    table.loc[(table["method"] == ORACLE) & (table["retain_ratio"] == 0.1), "score"] = 1.0
    return table


def pruning_of(codebook=94, random=60, ratios=(0.2, 0.1)):
    parts = [asked("all tokens", 95)]
    for ratio in ratios:
        parts += [asked("codebook", codebook, ratio=ratio), asked(ORACLE, 95, ratio=ratio)]
        parts += [asked("random tokens", random, ratio=ratio).assign(seed=seed) for seed in range(2)]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def folders(tmp_path):
    """Write the results of two models, one in a folder of its own and with one table recorded."""
    facts = {"description": {"model": "first"}}
    write_table(tmp_path / "results" / "gates.parquet", gates_of(), facts)
    write_table(tmp_path / "results" / "pruning.parquet", pruning_of(), facts)
    measured = {
        "cls_reliability_for_recognisable": {"value": 0.1, "n": 9, "interval": [0.0, 0.2], "p_value": 0.001}
    }
    content = {"config": {"model": "data/models/first"}, "results": measured}
    write_json(tmp_path / "results" / "intermediate_states.json", content)
    second = tmp_path / "results" / "second"
    write_table(second / "gates.parquet", gates_of(), {"description": {"model": "second"}})
    write_table(second / "pruning.parquet", pruning_of(codebook=50), {"description": {"model": "second"}})
    recorded = tmp_path / "recorded" / "second" / "pruning.parquet"
    table = pruning_of(codebook=60)
    write_table(recorded, table, {})
    made = {"cpu": "a CPU", "gpu": "none", "git_commit": "abcdef0123", "date": "2026-11-29T00:00:00"}
    facts = {
        "description": {"model": "second", "code": "c"},
        "sha256": file_sha256(recorded),
        "dtypes": {name: str(kind) for name, kind in table.dtypes.items()},
        "provenance": [made],
        "seconds": 7200.0,
    }
    write_json(recorded.with_suffix(".json"), facts)
    return tmp_path / "results", tmp_path / "recorded"


def test_tables_are_found_by_model_and_recorded_ones_take_the_place_of_live_ones(folders):
    found = collect(*folders, ["intermediate_states"])
    assert list(found) == ["first", "second"]
    assert set(found["first"].tables) == {("gates", "images"), ("pruning", "images")}
    assert found["first"].results["intermediate_states"]["cls_reliability_for_recognisable"]["value"] == 0.1
    assert found["first"].origins["pruning"] == "computed in this build"
    assert found["second"].origins["pruning"] == "recorded: 2026-11-29, a CPU, 2.0 h, commit abcdef0"
    answered = found["second"].tables["pruning", "images"]
    assert answered.loc[answered["method"] == "codebook", "score"].sum() == 2 * 60
    assert collect(folders[0] / "nowhere", folders[1] / "nowhere", []) == {}


@pytest.fixture
def weighed(folders, monkeypatch):
    metadata = {
        "criterion": {"tau_p": 0.15, "tau_jsd": 0.002},
        "selection": {"n_images": 100, "images_per_cluster": [50]},
    }
    monkeypatch.setattr("rcblib.reading.verdicts._codebook_metadata", lambda model: metadata)
    found = collect(*folders, ["intermediate_states"])
    for evidence in found.values():
        weigh(evidence, CLAIMS, LIMITS, other=evidence)
    return found


def test_gates_then_rules_then_verdicts(weighed):
    declared = {("first", "C1"): "trained on them"}
    table = verdict_table(weighed.values(), CLAIMS, declared)
    assert set(table.columns) >= {"model", "claim", "verdict", "why", "before"}
    verdicts = table.drop_duplicates(["model", "claim"]).set_index(["model", "claim"])
    assert verdicts.loc[("first", "C1"), ["verdict", "why"]].tolist() == [
        "not testable here",
        "trained on them",
    ]
    assert verdicts.loc[("second", "C1"), "verdict"] == "not measured"
    assert verdicts.loc[("first", "C3"), "verdict"] == "holds"
    assert verdicts.loc[("second", "C3"), "verdict"] == "does not hold"
    assert verdicts.loc[("first", "C5"), "why"] == "no result"
    rules = table[(table["model"] == "first") & (table["claim"] == "C3")].set_index("result")
    assert rules.loc["relative_retain_20", "value"] == pytest.approx(69 / 70)
    assert rules.loc["above_random_retain_20", "low"] > 0
    assert weighed["first"].tasks == {"images": ["count"]}


def test_no_verdict_on_pruning_without_its_controls(weighed):
    table = verdict_table(weighed.values(), CLAIMS, {})
    lines = control_table(weighed.values(), CLAIMS, table).set_index(["model", "retain_ratio"])
    assert len(lines) == 4  # two models, two budgets
    scores = lines.loc[("first", 0.2), ["unpruned", "codebook", "random", "oracle", "guessing"]]
    assert scores.tolist() == pytest.approx([0.95, 0.94, 0.60, 0.95, 0.25])
    assert lines.loc[("first", 0.2), "tasks"] == "count"
    assert lines.loc[("first", 0.2), "relative"].startswith("0.99 [")
    assert lines.loc[("first", 0.2), "gates"].count("✓") == 5  # those of C3
    assert lines["verdict"].tolist() == ["holds"] * 2 + ["does not hold"] * 2


def test_a_model_without_gates_gets_no_verdict():
    evidence = Evidence("bare", {("pruning", "images"): pruning_of()})
    weigh(evidence, CLAIMS, LIMITS)
    table = verdict_table([evidence], CLAIMS, {})
    rows = table.set_index(["claim", "result"])
    assert rows.loc[("C3", "relative_retain_20"), "rule_verdict"] == "not measured"
    assert "G1: not measured" in rows.loc[("C3", "relative_retain_20"), "why"]
    assert np.isfinite(rows.loc[("C3", "relative_retain_20"), "low"])  # what was measured is shown
    lines = control_table([evidence], CLAIMS, table)
    assert lines["tasks"].tolist() == ["all, as none passes G1"] * 2
    assert lines["gates"].str.count(r"\?").tolist() == [5, 5]
    assert N == rows.loc[("C3", "relative_retain_20"), "n"]
    assert set(verdict_table([], CLAIMS, {})["verdict"]) == {"not measured"}
