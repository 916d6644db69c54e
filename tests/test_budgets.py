"""Check curves over budgets, their differences and what follows from them, on answers counted by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from rcblib.pruners.every import kind_of
from rcblib.reading.budgets import (
    above_intermediate,
    budget_curves,
    curve_table,
    curves_beside_intermediate,
    difference_table,
    shares_read,
    summary_table,
    two_sided,
)
from rcblib.reading.factors import arms_table, factor_table, is_variant
from rcblib.reading.hard_questions import hard_questions, hard_table
from rcblib.reading.own_method import beside_rivals, best_by_task, variant_scores
from rcblib.reading.statistics import Estimate
from rcblib.records import ParameterError

N = 200
BUDGETS = [0.1, 0.4]


def answers(method, n_right, asked=1.0, read=None, seed=pd.NA, task="count", first=0):
    """Write rows as `evaluate_grid` does: N questions, guessed one in five, so many right from a first one on."""
    score = np.zeros(N)
    score[first : first + n_right] = 1
    return pd.DataFrame(
        {
            "method": method,
            "retain_ratio": asked,
            "max_similarity": np.nan,
            "settings": "",
            "seed": pd.array([seed] * N, dtype="Int64"),
            "image_id": range(N),
            "task": task,
            "subset": "",
            "question": "How many?",
            "answer": "x",
            "score": score,
            "guess": [1.0, 0, 0, 0, 0] * (N // 5),
            "n_visual_tokens": 100,
            "n_retained": 100 * (asked if read is None else read),
        }
    )


@pytest.fixture
def table():
    """All tokens: 180 of 200 right, so 0.875 above guessing; the codebook keeps 4/7 and 6/7 of that."""
    return pd.concat(
        [
            answers("all tokens", 180),
            answers("codebook", 120, 0.1),
            answers("codebook", 160, 0.4),
            *(answers("random tokens", 90 + 20 * seed, 0.1, seed=seed) for seed in range(2)),
            *(answers("random tokens", 140, 0.4, seed=seed) for seed in range(2)),
            answers("FastV", 160, 0.1, read=0.2),  # inside the LLM: more is read than asked for
            answers("FastV", 170, 0.4, read=0.5),
            answers("least similar to [CLS]", 60, 0.1),
            answers("least similar to [CLS]", 120, 0.4),
            answers("pooled 2 x 2", 150, np.nan, read=0.25),
            answers("smaller picture", 100, 0.1),
            answers("smaller picture", 150, 0.4),
        ],
        ignore_index=True,
    )


@pytest.fixture
def curves(table):
    return budget_curves(table, generator=np.random.default_rng(0), n_resamples=400)


def relative(n_right):
    return (n_right / N - 0.2) / 0.8 / 0.875


def test_points_stand_where_they_are_read_and_seeds_are_averaged(curves):
    found = curve_table(curves).set_index(["method", "asked"])
    assert found.loc[("codebook", 0.1), "mean"] == pytest.approx(relative(120))
    assert found.loc[("random tokens", 0.1), "mean"] == pytest.approx(relative(100))
    assert found.loc[("FastV", 0.1), ["retained", "n_rows"]].tolist() == [0.2, 20.0]
    assert found.loc[("FastV", 0.1), "kind"] == "inside the LLM"
    row = found.loc[("codebook", 0.4)]
    assert row["low"] < row["mean"] < row["high"] and row["half_width"] == (row["high"] - row["low"]) / 2
    assert (row["n"], row["n_images"]) == (N, N)


def test_a_curve_goes_straight_over_the_logarithm_from_its_lowest_point_to_all_tokens(curves):
    def at(method, share):
        return curves.at(method, share).mean(1)[0]

    assert at("codebook", 0.2) == pytest.approx((relative(120) + relative(160)) / 2)  # 0.1, 0.2, 0.4
    assert at("codebook", 1.0) == 1.0
    assert relative(160) < at("codebook", 0.7) < 1
    assert np.isnan(at("codebook", 0.05)) and np.isnan(at("FastV", 0.1))
    assert at("pooled 2 x 2", 0.25) == pytest.approx(relative(150)) and np.isnan(at("pooled 2 x 2", 0.4))


def test_methods_are_compared_at_the_rows_they_read(curves):
    found = difference_table(curves).set_index(["method", "asked"])
    expected = relative(160) - (relative(120) + relative(160)) / 2
    assert found.loc[("FastV", 0.1), "mean"] == pytest.approx(expected)
    assert found.loc[("random tokens", 0.1), "mean"] == pytest.approx(relative(100) - relative(120))
    assert found.loc[("least similar to [CLS]", 0.1), "better"] == -1
    assert "codebook" not in found.index.get_level_values(0)
    assert (found["p_holm"] >= found["p_value"]).all()
    assert found["p_holm"].max() <= 1
    assert len(difference_table(curves, "random tokens")) == len(found)


def test_shares_are_those_that_random_tokens_read(table):
    with_newlines = table.assign(n_retained=table["n_retained"] + 2, n_visual_tokens=102)
    curves = budget_curves(with_newlines, generator=np.random.default_rng(0), n_resamples=100)
    assert shares_read(curves, [0.4, 0.1, 0.3]) == [pytest.approx(42 / 102), pytest.approx(12 / 102), 0.3]
    assert summary_table(curves, shares_read(curves, [0.1])).columns.tolist() == ["kind", "12%"]


def test_the_same_answers_are_no_difference(table):
    same = table[table["method"] == "codebook"].assign(method="DivPrune")
    curves = budget_curves(pd.concat([table, same]), generator=np.random.default_rng(0), n_resamples=400)
    found = difference_table(curves).set_index("method").loc["DivPrune"]
    assert found["mean"].tolist() == [0, 0] and found["better"].tolist() == [0, 0]
    assert (found["low"] < 0).all() and (found["high"] > 0).all()


def test_the_summary_orders_methods_and_marks_what_is_decided(curves):
    table = summary_table(curves, [0.1, 0.4])
    assert table.columns.tolist() == ["kind", "10%", "40%"]
    assert table.loc["codebook", "40%"] == f"{relative(160):.2f}"
    assert table.loc["least similar to [CLS]", "10%"] == f"{relative(60):.2f}\u00a0▼\u00a0○"
    assert table.loc["FastV", "10%"] == "–"
    assert "pooled 2 x 2" not in table.index  # between the budgets it has no curve
    complete = [name for name in table.index if "–" not in table.loc[name].tolist()]
    assert complete == ["codebook", "smaller picture", "random tokens", "least similar to [CLS]"]


def test_hard_questions_are_those_that_a_smaller_picture_loses(table):
    hard = hard_questions(table, 0.1)
    assert sorted(hard.get_level_values("image_id")) == list(range(100, 180))
    found = hard_table(table, 0.1, generator=np.random.default_rng(0), n_resamples=400).set_index("method")
    assert found.loc["smaller picture", "mean"] == 0 and found.loc["all tokens", "mean"] == 1
    assert found.loc["codebook", "mean"] == 20 / 80
    assert found.loc["random tokens", "mean"] == 5 / 80  # no and ten of them
    assert found.loc["pooled 2 x 2", "difference"] == (50 - 20) / 80
    with pytest.raises(ParameterError, match="none of smaller picture at 0.2"):
        hard_questions(table, 0.2)


def test_the_same_answers_give_the_same_interval_of_the_claim_wherever_it_is_judged(table):
    both = pd.concat(
        [table, table.assign(task="digit", score=table["score"].to_numpy()[::-1])], ignore_index=True
    )
    first = above_intermediate(curves_beside_intermediate(both, ["count", "digit"], seed=3), 0.4)
    few = both[both["method"] != "pooled 2 x 2"]  # what else was asked is of no account
    assert first == above_intermediate(curves_beside_intermediate(few, ["digit", "count"], seed=3), 0.4)
    assert first["against"] == "FastV" and first["n"] > 0


def test_the_codebook_is_judged_against_the_best_method_on_intermediate_states(curves):
    found = above_intermediate(curves, 0.1)
    expected = (relative(120) + relative(160)) / 2 - relative(160)
    assert (found["against"], found["n_methods"]) == ("FastV", 2)
    assert found["retained"] == max(0.1, curves.lowest("FastV"))
    assert found["value"] == pytest.approx(expected)
    low, high = found["interval"]
    assert low < expected < high < 0 and found["p_value"] < 0.02
    between = np.log(0.4 / 0.2) / np.log(0.5 / 0.2)  # FastV's curve at 0.4
    further = relative(160) - (1 - between) * relative(160) - between * relative(170)
    assert above_intermediate(curves, 0.4)["value"] == pytest.approx(further)


def test_the_codebook_is_better_where_it_beats_each(table):
    rest = table[table["method"] != "FastV"]
    curves = budget_curves(rest, generator=np.random.default_rng(0), n_resamples=400)
    found = above_intermediate(curves, 0.1)
    assert found["against"] == "least similar to [CLS]" and found["interval"][0] > 0
    assert found["value"] == pytest.approx(relative(120) - relative(60))
    bare = rest[~rest["method"].str.contains("CLS")]
    assert above_intermediate(budget_curves(bare, generator=np.random.default_rng(0)), 0.1) == {}


def test_factors_are_differences_from_what_they_vary(table):
    kept = answers("codebook; positions kept", 130, 0.1)
    other = answers("random tokens; positions kept", 90, 0.1, seed=0)
    alone = answers("codebook; rule single_softmax", 100, 0.3)
    every = pd.concat([table, kept, other, alone])
    assert is_variant(every).sum() == 3 * N
    found = factor_table(every, generator=np.random.default_rng(0), n_resamples=400).set_index("method")
    assert found["factor"].tolist() == ["positions kept"] * 2
    assert found.loc["codebook", "value"] == pytest.approx(relative(130) - relative(120))
    assert found.loc["random tokens", "before"] == pytest.approx(relative(100))
    assert factor_table(table, generator=np.random.default_rng(0)).empty


def test_two_models_are_compared_as_independent(table):
    other = table.copy()
    other.loc[(other["method"] == "codebook") & (other["retain_ratio"] == 0.1), "score"] = 0
    given = {"asked": 0.1, "generator": np.random.default_rng(0)}
    found = arms_table(table, other, "trained otherwise", **given).set_index("method")
    assert found.loc["codebook", ["before", "after"]].tolist() == pytest.approx([relative(120), relative(0)])
    assert found.loc["codebook", "high"] < found.loc["random tokens", "low"] < 0
    assert found.loc["random tokens", "value"] == 0 and found.loc["random tokens", "n_images"] == 2 * N


def test_p_values_are_those_of_a_normal_spread():
    draws = np.array([-1.0, 1.0]) + 2
    assert two_sided(Estimate(2.0, 1, 3, 2, 2, draws=draws)) == pytest.approx(2 * norm.sf(2))
    assert two_sided(Estimate(0.0, 0, 0, 2, 2, draws=np.zeros(3))) == 1


def test_methods_are_grouped_by_what_they_are_built_on():
    found = {
        "random tokens": "controls",
        "smaller picture": "controls",
        "codebook; positions kept": "made from probing",
        "codebook's medoids": "made from probing",
        "distilled from probing": "made from probing",
        "DivPrune": "spread and merging",
        "VisionZip": "states of the encoder",
        "most similar to [CLS]": "states of the encoder",
        "SparseVLM": "inside the LLM",
        "oracle by masks": "bounds",
    }
    assert {name: kind_of(name) for name in found} == found
    with pytest.raises(ParameterError, match="method: got 'no such'"):
        kind_of("no such")


def test_variants_are_scored_above_guessing_and_the_best_comes_first(table):
    tried = [answers("distilled from probing", right, share).assign(settings=own)
             for own, counts in {"spread=0.5": (100, 140), "": (120, 160)}.items()
             for share, right in zip(BUDGETS, counts, strict=True)]  # fmt: skip
    found = variant_scores(pd.concat([answers("all tokens", 180), *tried]), BUDGETS)
    assert list(found.index) == ["", "spread=0.5"]
    assert found.tolist() == pytest.approx([((0.6 - 0.2) / 0.8 + (0.8 - 0.2) / 0.8) / 2, (0.375 + 0.625) / 2])


def test_a_method_is_set_beside_others_and_the_best_rival(table):
    own = [answers("distilled from probing", 140, 0.1), answers("distilled from probing", 160, 0.4)]
    rival = [answers("DivPrune", 150, 0.1), answers("oracle by masks", 180, 0.1)]
    curves = budget_curves(
        pd.concat([table, *own, *rival]), generator=np.random.default_rng(0), n_resamples=200
    )
    found = beside_rivals(curves, "distilled from probing", ["codebook"], [0.1, 0.4])
    assert found[["budget", "beside"]].values.tolist() == [
        [0.1, "codebook"],
        [0.1, "DivPrune"],
        [0.4, "codebook"],
        [0.4, "FastV"],
    ]
    assert found["value"].tolist() == pytest.approx([5 / 7, 5 / 7, 6 / 7, 6 / 7])
    assert found["mean"].tolist()[:3] == pytest.approx([1 / 7, -1 / 14, 0])
    assert beside_rivals(curves, "distilled from probing", [], [0.01]).empty


def test_the_best_method_of_a_task_reads_so_few_rows_and_is_no_bound(table):
    rival = [answers("DivPrune", 150, 0.1), answers("ToMe after the connector", 170, 0.05, read=0.4)]
    bound = answers("oracle by masks", 180, 0.1)
    curves = budget_curves(
        pd.concat([table, *rival, bound]), generator=np.random.default_rng(0), n_resamples=2
    )
    found = best_by_task(curves, 0.1, ["codebook", "no such"]).loc["count"]
    assert found.index.tolist() == ["best", "relative", "apart", "codebook"]
    assert found["best"] == "DivPrune"
    assert (found["relative"], found["codebook"]) == pytest.approx((0.6875 / 0.875, 4 / 7))
    assert found["apart"]
    chance = [answers("all tokens", 160), answers("random tokens", 100, 0.1, seed=0)]
    close = pd.concat([*chance, answers("DivPrune", 104, 0.1, first=90)])
    near = best_by_task(budget_curves(close, generator=np.random.default_rng(0), n_resamples=400), 0.1, [])
    assert near.loc["count", "best"] == "DivPrune" and not near.loc["count", "apart"]
    alone = best_by_task(
        budget_curves(pd.concat(chance), generator=np.random.default_rng(0), n_resamples=2), 0.1, []
    )
    assert alone.loc["count", "best"] == "random tokens" and not alone.loc["count", "apart"]
    blind = pd.concat([answers("all tokens", 10, first=1), answers("random tokens", 10, 0.1, first=1)])
    assert best_by_task(
        budget_curves(blind, generator=np.random.default_rng(0), n_resamples=2), 0.1, []
    ).empty
