"""Check that rules give the verdict that data/claims.yml announces for every place an interval can take."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from rcblib.reading.claims import Claim, Rule, claims_table, combine, read_claims
from rcblib.reading.gate_results import GateResult
from rcblib.reading.resampling import share
from rcblib.reading.statistics import Estimate
from rcblib.records import ParameterError

CLAIMS = Path(__file__).resolve().parents[1] / "data" / "claims.yml"


def rule(side="above", bound=0.9, result="score"):
    return Rule(result, "what it measures", side, bound)


@pytest.mark.parametrize(
    ("side", "interval", "verdict"),
    [
        ("above", (0.91, 0.97), "holds"),
        ("above", (0.80, 0.89), "does not hold"),
        ("above", (0.85, 0.95), "undecided"),
        ("above", (0.90, 0.95), "undecided"),
        ("above", (0.85, 0.90), "undecided"),
        ("above", (0.9, 0.9), "undecided"),
        ("above", (0.95, 0.95), "holds"),
        ("below", (0.91, 0.97), "does not hold"),
        ("below", (0.80, 0.89), "holds"),
        ("below", (0.85, 0.95), "undecided"),
        ("above", None, "not measured"),
    ],
)
def test_an_interval_and_a_bound_give_a_verdict(side, interval, verdict):
    assert rule(side).judge(interval) == verdict


def test_an_interval_that_does_not_ascend_is_an_error():
    for interval in [(0.9, 0.8), (float("nan"), 1.0)]:
        with pytest.raises(ParameterError, match="interval of score"):
            rule().judge(interval)


@pytest.mark.parametrize(
    ("verdicts", "combined"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "undecided"], "undecided"),
        (["undecided", "does not hold"], "does not hold"),
        (["not measured", "does not hold"], "does not hold"),
        (["not testable here", "does not hold"], "does not hold"),
        (["not measured", "not testable here", "holds"], "not testable here"),
        (["not measured", "undecided", "holds"], "not measured"),
    ],
)
def test_a_claim_with_several_rules_takes_the_worst(verdicts, combined):
    assert combine(verdicts) == combined
    assert combine(verdicts[::-1]) == combined


def test_no_verdicts_are_an_error():
    with pytest.raises(ParameterError, match="at least one"):
        combine([])


@pytest.mark.parametrize(
    ("side", "bound"), [("over", 0.9), ("above", "0.9"), ("above", True), ("below", None)]
)
def test_a_rule_that_cannot_be_applied_is_an_error(side, bound):
    with pytest.raises(ParameterError, match="of score"):
        rule(side, bound)


def test_the_shipped_claims_are_read_with_their_rules():
    claims = read_claims(yaml.safe_load(CLAIMS.read_text(encoding="utf-8")))
    assert [claim.name for claim in claims] == ["C1", "C2", "C3", "C4", "C5"]
    pruning = claims[2]
    assert pruning.source == "pruning"
    assert pruning.gates == ("G1", "G2", "G3", "G5", "G6")
    assert [(r.result, r.side, r.bound, r.retain_ratio) for r in pruning.rules] == [
        ("relative_retain_20", "above", 0.9, 0.2),
        ("above_random_retain_20", "above", 0.0, 0.2),
        ("relative_retain_10", "above", 0.9, 0.1),
        ("above_random_retain_10", "above", 0.0, 0.1),
    ]
    assert {claims[3].source_of(rule) for rule in claims[3].rules} == {"every_method"}
    assert {claims[4].source_of(rule) for rule in claims[4].rules} == {"pruning_groups", "pruning_videos"}
    # What the book judged by before stays on record.
    assert pruning.before["verdicts"]["llava-scenes"] == "does not hold"
    assert "above 0.9" in pruning.before["rules"][0]


def entry(**changes):
    one = {"result": "score", "reads": "it ", "side": "above", "bound": 0.5}
    known = {
        "claim": "that ",
        "source": "n",
        "gates": [],
        "rules": [one],
        "before": {"rules": [], "verdicts": {}},
    }
    return {"C": known | changes}


@pytest.mark.parametrize(
    "content",
    [
        {"C": {"claim": "that", "source": "n"}},
        entry(rules=[]),
        entry(rules=[{"result": "score"}]),
        entry(gates=["G8"]),
        entry(before={}),
        entry(extra=1),
        {"C": "that"},
    ],
)
def test_incomplete_claims_are_an_error(content):
    with pytest.raises(ParameterError):
        read_claims(content)


def measured(value, low, high, p_value=0.001):
    return {"value": value, "n": 300, "interval": [low, high], "n_clusters": 30, "p_value": p_value}


def gate(name, passes=True, **more):
    value = {True: 0.9, False: 0.1, None: np.nan}[passes]
    return GateResult(name, f"{name}'s measure", value, value, value, "at least", 0.5, **more)


def claim(name="C3", gates=(), rules=None, source="pruning"):
    return Claim(name, "that", source, gates, rules or (rule(result="a"),))


def test_the_table_has_a_row_a_rule_and_the_verdict_of_the_claim():
    claims = [
        claim("C1", rules=(rule(result="a"), rule(result="b")), source="first"),
        claim("C2", rules=(rule("below", 0.1, "c"),), source="second"),
        claim("C3", rules=(rule(result="d"),), source="third"),
    ]
    results = {
        "first": {"a": measured(0.95, 0.92, 0.97), "b": measured(0.90, 0.86, 0.93)},
        "second": {"c": {"value": None, "n": 0, "interval": None}},
    }
    table = claims_table(claims, results)
    assert table["claim"].tolist() == ["C1", "C1", "C2", "C3"]
    assert table["rule"].tolist() == ["above 0.9", "above 0.9", "below 0.1", "above 0.9"]
    assert table["rule_verdict"].tolist() == ["holds", "undecided", "not measured", "not measured"]
    assert table["verdict"].tolist() == ["undecided", "undecided", "not measured", "not measured"]
    np.testing.assert_array_equal(table["low"], [0.92, 0.86, np.nan, np.nan])
    np.testing.assert_array_equal(table["n_images"], [30, 30, np.nan, np.nan])
    assert np.isnan(table["value"].iloc[2])


@pytest.mark.parametrize(
    ("gates", "verdict", "why"),
    [
        ([gate("G2"), gate("G3")], "holds", ""),
        ([gate("G2"), gate("G3", False)], "not testable here", "G3: G3's measure 0.1 (≥\u202f0.5)"),
        ([gate("G2", None, why="no task"), gate("G3")], "not measured", "G2: no task"),
        (
            [gate("G2", None), gate("G3", False)],
            "not testable here",
            "G3: G3's measure 0.1 (≥\u202f0.5)",
        ),
        ([gate("G3")], "not measured", "G2: not measured"),
        ([gate("G2"), gate("G3"), gate("G4", False)], "holds", ""),  # not among the claim's
    ],
)
def test_no_verdict_without_its_gates(gates, verdict, why):
    results = {"pruning": {"a": measured(0.95, 0.92, 0.97)}}
    row = claims_table([claim(gates=("G2", "G3"))], results, gates).iloc[0]
    assert (row["verdict"], row["why"]) == (verdict, why)
    assert row["low"] == 0.92  # what was measured is shown all the same


def test_a_gate_stops_the_rule_of_its_budget_and_samples_only():
    rules = (
        Rule("a", "at a fifth", "above", 0.9, 0.2),
        Rule("b", "at a tenth", "above", 0.9, 0.1),
        Rule("a", "of videos", "above", 0.9, 0.2, "videos"),
    )
    gates = [gate("G3", retain_ratio=0.2), gate("G3", False, retain_ratio=0.1)]
    gates += [gate("G3", False, retain_ratio=0.2, data="videos")]
    results = {
        "pruning": {"a": measured(0.95, 0.92, 0.97), "b": measured(0.5, 0.4, 0.6)},
        "pruning_videos": {"a": measured(0.95, 0.92, 0.97)},
    }
    table = claims_table([claim(gates=("G3",), rules=rules)], results, gates)
    assert table["rule_verdict"].tolist() == ["holds", "not testable here", "not testable here"]
    assert set(table["verdict"]) == {"not testable here"}


def test_reasons_of_several_rules_are_summed_up_by_gate():
    rules = (Rule("a", "at a fifth", "above", 0.9, 0.2), Rule("b", "at a tenth", "above", 0.9, 0.1))
    gates = [gate("G3", False, retain_ratio=0.2, about="first"), gate("G5", False)]
    gates += [gate("G3", False, retain_ratio=0.1, about="second")]
    results = {"pruning": {name: measured(0.95, 0.92, 0.97) for name in "ab"}}
    why = claims_table([claim(gates=("G3", "G5"), rules=rules)], results, gates)["why"].iloc[0]
    words = "G3's measure {} 0.1 (≥\u202f0.5)"
    assert why == f"G3: {words.format('first')}, {words.format('second')}; G5: G5's measure 0.1 (≥\u202f0.5)"


def test_a_declared_reason_comes_first():
    results = {"pruning": {"a": measured(0.95, 0.92, 0.97)}}
    declared = {("drawn", "C3"): "trained on them"}
    for model, verdict in (("drawn", "not testable here"), ("other", "holds")):
        row = claims_table([claim()], results, model=model, declared=declared).iloc[0]
        assert row["verdict"] == verdict
        assert row["why"] == ("trained on them" if model == "drawn" else "")


def test_verdicts_are_corrected_for_the_number_of_claims():
    def verdicts(*p_values):
        found = [claim(f"x{i}", source=f"s{i}") for i in range(len(p_values))]
        results = {f"s{i}": {"a": measured(0.95, 0.91, 0.97, p)} for i, p in enumerate(p_values)}
        return claims_table(found, results)

    assert verdicts(0.01, 0.01, 0.01)["verdict"].tolist() == ["holds"] * 3
    table = verdicts(0.001, 0.04, 0.045)
    assert table["verdict"].tolist() == ["holds", "undecided", "undecided"]
    assert table["p_holm"].tolist() == pytest.approx([0.003, 0.08, 0.08])
    assert table["rule_verdict"].tolist() == ["holds"] * 3
    assert table["why"].iloc[1] == "holds by itself, not among 3 claims (p 0.08)"
    assert verdicts(0.001, 0.02, 0.045)["verdict"].tolist() == ["holds"] * 3


def test_all_rules_have_to_hold_and_one_that_fails_is_corrected_for_the_others():
    rules = (rule(result="a"), rule(result="b"))
    both = {"pruning": {"a": measured(0.95, 0.91, 0.97, 0.01), "b": measured(0.95, 0.91, 0.97, 0.03)}}
    assert claims_table([claim(rules=rules)], both)["p_holm"].tolist() == [0.03, 0.03]
    one = {"pruning": {"a": measured(0.5, 0.4, 0.6, 0.03), "b": measured(0.95, 0.91, 0.97, 0.01)}}
    table = claims_table([claim(rules=rules)], one)
    assert table["p_holm"].iloc[0] == pytest.approx(0.06)
    assert table["verdict"].tolist() == ["undecided"] * 2


def test_a_rule_takes_the_p_value_of_the_draws():
    found = share([1] * 90 + [0] * 10, generator=np.random.default_rng(0))
    result = rule(bound=0.7).result_of(found)
    assert result["interval"] == [found.low, found.high]
    assert result["p_value"] < 0.01 < rule(bound=0.89).result_of(found)["p_value"]
    assert rule().result_of(Estimate(0.5, 0.4, 0.6, 3, 3))["p_value"] is None
