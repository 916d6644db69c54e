"""Check that rules give the verdict that data/claims.yml announces for every place an interval can take."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from rcblib.reading.claims import Claim, Rule, claims_table, combine, read_claims
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
    assert [claim.name for claim in claims] == ["C1", "C2", "C3", "C5"]
    last = claims[2]
    assert last.notebook == "pruned_inference"
    assert [(r.result, r.side, r.bound) for r in last.rules] == [
        ("codebook_relative_score_retain_20", "above", 0.9),
        ("codebook_relative_score_retain_10", "above", 0.9),
    ]


def entry(**changes):
    one = {"result": "score", "reads": "it ", "side": "above", "bound": 0.5}
    return {"C": {"claim": "that ", "notebook": "n", "rules": [one], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        {"C": {"claim": "that", "notebook": "n"}},
        entry(rules=[]),
        entry(rules=[{"result": "score"}]),
        entry(extra=1),
        {"C": "that"},
    ],
)
def test_incomplete_claims_are_an_error(content):
    with pytest.raises(ParameterError):
        read_claims(content)


def test_the_table_has_a_row_a_rule_and_the_verdict_of_the_claim():
    claims = [
        Claim("C1", "one", "first", (rule(result="a"), rule(result="b"))),
        Claim("C2", "two", "second", (rule("below", 0.1, "c"),)),
        Claim("C3", "three", "third", (rule(result="d"),)),
    ]
    results = {
        "first": {
            "a": {"value": 0.95, "n": 300, "interval": [0.92, 0.97], "n_clusters": 30},
            "b": {"value": 0.90, "n": 300, "interval": [0.86, 0.93], "n_clusters": 30},
        },
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
