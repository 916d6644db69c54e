"""Check how what was measured, live or recorded, is collected and weighed into verdicts with their controls."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_gates import LIMITS, N, answers, asked, tokens

from rcblib.evaluate.gates import ORACLE
from rcblib.reading.claim_lines import (
    asked_words,
    claim_lines,
    claim_numbers,
    failed_gates,
    relative_words,
    rule_grid,
    rules_alone,
    settings_of,
)
from rcblib.reading.claims import read_claims
from rcblib.reading.verdicts import Evidence, collect, verdict_table, weigh
from rcblib.runs.files import file_sha256, write_json, write_table

CLAIMS = read_claims(
    yaml.safe_load((Path(__file__).resolve().parents[1] / "data" / "claims.yml").read_text(encoding="utf-8"))
)


RIVALS = {"VisionZip": 80, "most similar to [CLS]": 60, "DivPrune": 95, "codebook; positions kept": 95}
"""Right answers of other methods, of which the last two are not built on intermediate states."""


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


def test_a_claim_has_a_line_a_model_with_gates_controls_and_verdict(weighed):
    table = verdict_table(weighed.values(), CLAIMS, {})
    lines = claim_lines(weighed.values(), CLAIMS[2], table)
    assert settings_of(CLAIMS[2]) == ["20%", "10%"]
    assert lines.index.tolist() == ["first", "second"]
    line = lines.loc["first"]
    assert line["gates"] == "G1✓ G2✓ G3✓ G5✓ G6✓"
    scores = ["codebook", "random", "oracle", "unpruned", "guessing"]
    twice = [f"{score}\u202f·\u202f{score}" for score in ("0.94", "0.60", "0.95")]  # the same at both budgets
    assert line[scores].tolist() == [*twice, "0.95", "0.25"]
    assert (
        rules_alone(weighed["first"], CLAIMS[2]) == "holds"
        and asked_words(weighed["first"], CLAIMS[2]) == "100"
    )
    assert relative_words(weighed["first"], CLAIMS[2]).startswith("0.99 [")
    assert relative_words(weighed["first"], CLAIMS[2]).count(" · 0.99 [") == 1
    assert rules_alone(weighed["second"], CLAIMS[4]) == "not measured"
    numbers = claim_numbers(weighed["first"], CLAIMS[2])
    assert list(numbers) == scores and numbers["random"] == [pytest.approx(0.6)] * 2
    assert failed_gates(weighed["first"], CLAIMS[2]) == []
    assert lines["verdict"].tolist() == ["holds", "does not hold"]


def test_the_codebook_is_judged_against_methods_on_intermediate_states(weighed):
    evidence, C4 = weighed["first"], CLAIMS[3]
    before = verdict_table([evidence], CLAIMS, {}).set_index("claim")
    assert set(before.loc["C4", "verdict"]) == {"not measured"}
    others = [asked(name, right, ratio=ratio) for ratio in (0.2, 0.1) for name, right in RIVALS.items()]
    evidence.gates.clear()
    every = pd.concat([pruning_of(), *others], ignore_index=True)
    every = every.assign(n_visual_tokens=100, n_retained=100 * every["retain_ratio"].fillna(1.0))
    evidence.tables["every_method", "images"] = every
    weigh(evidence, CLAIMS, LIMITS, other=evidence)
    table = verdict_table([evidence], CLAIMS, {})
    rules = table[table["claim"] == "C4"].set_index("result")
    assert rules["verdict"].tolist() == ["holds"] * 2
    assert rules.loc["above_intermediate_retain_20", "value"] == pytest.approx((94 - 80) / 70)
    line = claim_lines([evidence], C4, table).loc["first"]
    assert line[["codebook", "random", "verdict"]].tolist() == [
        "0.94\u202f·\u202f0.94",
        "0.60\u202f·\u202f0.60",
        "holds",
    ]
    assert line["best other"] == "VisionZip at 20% · VisionZip at 10%"
    assert line["minus best other"].startswith("+0.20 [")
    evidence.tables["every_method", "images"] = every[every["method"] != "random tokens"]
    evidence.gates.clear()
    weigh(evidence, CLAIMS, LIMITS, other=evidence)
    why = verdict_table([evidence], CLAIMS, {}).set_index("claim").loc["C4", "why"]
    assert why.tolist() == ["not beside random tokens"] * 2


def test_a_claim_on_a_signal_stands_beside_random_and_reversed_ones(weighed):
    result = weighed["first"].results["intermediate_states"]["cls_reliability_for_recognisable"]
    result |= {"low_share": 0.45, "random": 0.5, "best": 0.1, "reversed": 0.9, "inverted": True}
    table = verdict_table(weighed.values(), CLAIMS, {("second", "C1"): "trained on them"})
    assert settings_of(CLAIMS[0]) == ["recognisable", "influential"]
    line = claim_lines(weighed.values(), CLAIMS[0], table).loc["first"]
    assert line["reliability"] == "0.10\u202f·\u202f– (inverted)"
    shares = ["0.50\u202f·\u202f–", "0.10\u202f·\u202f–", "0.90\u202f·\u202f–"]
    assert line["random / oracle / reversed"] == " / ".join(shares)
    assert line[["unpruned", "guessing"]].tolist() == ["0.95", "0.25"]
    numbers = claim_numbers(weighed["first"], CLAIMS[0])
    assert [numbers[name] for name in ("low share", "random", "oracle", "reversed")] == [
        [share, None] for share in (0.45, 0.5, 0.1, 0.9)
    ]
    assert numbers["unpruned"] == [pytest.approx(0.95)] * 2
    declared = claim_lines(weighed.values(), CLAIMS[0], table).loc["second"]
    assert declared[["reliability", "verdict", "why"]].tolist() == [
        "–",
        "not testable here",
        "trained on them",
    ]


def test_rules_of_several_models_stand_side_by_side_above_the_verdict_of_before(weighed):
    grid = rule_grid(verdict_table(weighed.values(), CLAIMS, {}))
    assert grid.columns.tolist() == ["first", "second"]
    assert grid.loc[("C3", "relative, 20%", "above 0.9"), "first"].startswith("0.99 [")
    assert grid.loc[("C3", "relative, 20%", "above 0.9"), "first"].endswith("n 100: holds")
    assert grid.loc[("C5", "above random, 20%, videos", "above 0"), "first"] == "not measured"
    assert grid.loc["C3"].index[-1] == ("verdict before there were gates", "")


def test_models_that_are_named_come_first_also_where_nothing_was_measured(folders):
    found = collect(*folders, ["intermediate_states"], ["photographed", "second"])
    assert list(found) == ["photographed", "second", "first"]
    table = verdict_table(found.values(), CLAIMS, {})
    assert set(table.loc[table["model"] == "photographed", "verdict"]) == {"not measured"}
    assert claim_lines(found.values(), CLAIMS[3], table).empty


@pytest.mark.parametrize("missing", ["random tokens", ORACLE])
def test_no_verdict_on_pruning_without_its_controls(missing):
    answered = pruning_of()
    evidence = Evidence("bare")
    evidence.tables["gates", "images"] = gates_of()
    evidence.tables["pruning", "images"] = answered[answered["method"] != missing]
    weigh(evidence, CLAIMS, LIMITS)
    rows = verdict_table([evidence], CLAIMS, {}).set_index(["claim", "result"])
    row = rows.loc[("C3", "relative_retain_20")]
    assert row["rule_verdict"] == "not measured"
    assert row["rule_why"] == f"not beside {'an ' if missing == ORACLE else ''}{missing}"
    assert row["value"] == pytest.approx(69 / 70) and np.isnan(row["low"])


def test_a_model_without_gates_gets_no_verdict():
    evidence = Evidence("bare", {("pruning", "images"): pruning_of()})
    weigh(evidence, CLAIMS, LIMITS)
    table = verdict_table([evidence], CLAIMS, {})
    rows = table.set_index(["claim", "result"])
    assert rows.loc[("C3", "relative_retain_20"), "rule_verdict"] == "not measured"
    assert "G1: not measured" in rows.loc[("C3", "relative_retain_20"), "why"]
    assert np.isfinite(rows.loc[("C3", "relative_retain_20"), "low"])  # what was measured is shown
    assert claim_lines([evidence], CLAIMS[2], table)["gates"].tolist() == ["G1? G2? G3? G5? G6?"]
    assert N == rows.loc[("C3", "relative_retain_20"), "n"]
    assert set(verdict_table([], CLAIMS, {})["verdict"]) == {"not measured"}
