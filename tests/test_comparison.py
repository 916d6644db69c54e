"""Check summaries of evaluations against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from rcblib.reading.comparison import (
    ALL_TASKS,
    advantage_table,
    average_seeds,
    corrected_scores,
    guessing_scores,
    pruning_results,
    relative_score,
    relative_table,
    score_table,
)
from rcblib.records import ParameterError


@pytest.fixture
def generator():
    return np.random.default_rng(5)


def answers(method, scores, ratio=np.nan, cut=np.nan, seed=pd.NA, n_retained=10, settings=""):
    """Write rows as `evaluate_grid` does: four questions on images 1 and 2, tasks a, a, b, b."""
    frame = pd.DataFrame(
        {
            "method": method,
            "retain_ratio": ratio,
            "max_similarity": cut,
            "settings": settings,
            "seed": pd.array([seed] * 4, dtype="Int64"),
            "image_id": [1, 2, 1, 2],
            "task": ["a", "a", "b", "b"],
            "subset": "",
            "question": ["one?", "one?", "two?", "two?"],
            "answer": ["x", "y", "z", "Z."],
            "score": np.array(scores, dtype=float),
            "n_visual_tokens": 100,
            "n_retained": n_retained,
        }
    )
    return frame


@pytest.fixture
def frame():
    return pd.concat(
        [
            answers("all tokens", [1, 1, 1, 0], 1.0, n_retained=100),
            answers("random", [1, 0, 0, 0], 0.1, seed=0),
            answers("random", [0, 0, 1, 0], 0.1, seed=1),
            answers("codebook", [1, 1, 0, 1], 0.1),
            answers("codebook", [1, 1, 1, 1], 0.5, n_retained=50),
            answers("cut-off", [1, 1, 0, 0], cut=0.4, n_retained=[5, 15, 5, 15]),
        ],
        ignore_index=True,
    )


def test_seeds_are_averaged_question_by_question(frame):
    averaged = average_seeds(frame)
    assert len(averaged) == 5 * 4
    random = averaged[averaged["method"] == "random"]
    assert random["score"].tolist() == [0.5, 0.0, 0.5, 0.0]
    assert random["task"].tolist() == ["a", "a", "b", "b"]
    assert averaged[averaged["method"] == "cut-off"]["retained"].tolist() == [0.05, 0.15, 0.05, 0.15]


def test_settings_tell_methods_of_one_name_and_share_apart(frame, generator):
    inside = [
        answers("inside", scores, 1.0, settings=s) for s, scores in (("l=1", [1, 1, 1, 1]), ("l=2", [0] * 4))
    ]
    averaged = average_seeds(pd.concat([frame, *inside], ignore_index=True))
    table = score_table(averaged, generator=generator)
    table = table[table["method"] == "inside"]
    assert table[["settings", "mean"]].values.tolist() == [["l=1", 1.0]] * 2 + [["l=2", 0.0]] * 2
    better = advantage_table(averaged, "inside", ["all tokens"], generator=generator)
    assert better[["settings", "mean"]].values.tolist() == [["l=1", 0.25], ["l=2", -0.75]]
    with pytest.raises(
        ParameterError, match="setting: got .'inside', 1.0, 'l=1', 'l=2'.; accepted: .*one setting"
    ):
        relative_score(averaged, "inside", 1.0, generator=generator)


def test_a_missing_column_is_named(frame):
    with pytest.raises(ParameterError, match="n_retained"):
        average_seeds(frame.drop(columns="n_retained"))


def test_scores_of_each_setting_and_task(frame, generator):
    table = score_table(average_seeds(frame), generator=generator).set_index(
        ["method", "retain_ratio", "task"]
    )
    assert table.loc[("random", 0.1, "a"), "mean"] == 0.25
    assert table.loc[("codebook", 0.5, "b"), "mean"] == 1.0
    row = table.loc[("all tokens", 1.0, "b")]
    assert row["mean"] == 0.5
    assert (row["low"], row["high"]) == pytest.approx(
        beta.ppf([0.025, 0.975], 1.5, 1.5), abs=0.02
    )  # Jeffreys'
    assert (row["n"], row["n_images"], row["retained"]) == (2, 2, 1.0)
    assert table.index.get_level_values("method").unique().tolist() == [
        "all tokens",
        "random",
        "codebook",
        "cut-off",
    ]


def test_relative_scores_divide_by_the_reference_on_the_same_questions(frame, generator):
    frame.loc[frame["method"] == "all tokens", "score"] = [1.0, 1.0, 1.0, 0.5]
    table = relative_table(average_seeds(frame), generator=generator)
    assert "all tokens" not in set(table["method"])
    by = table.set_index(["method", "task"])["mean"]
    assert by["random", "a"].item() == 0.25
    assert by["random", "b"].item() == pytest.approx(0.25 / 0.75)
    assert by["random", ALL_TASKS].item() == pytest.approx((0.25 + 0.25 / 0.75) / 2)
    assert by["cut-off", ALL_TASKS].item() == 0.5
    assert table.set_index(["method", "task"]).loc[
        ("cut-off", ALL_TASKS), "retained"
    ].item() == pytest.approx(0.1)


def test_one_relative_score_agrees_with_the_table(frame, generator):
    averaged = average_seeds(frame)
    estimate = relative_score(averaged, "codebook", 0.1, generator=generator)
    assert estimate.value == pytest.approx((2 / 2 + 1 / 1) / 2)
    assert (estimate.n, estimate.n_clusters) == (4, 2)
    with pytest.raises(ParameterError, match="setting"):
        relative_score(averaged, "codebook", 0.2, generator=generator)


def test_a_task_that_the_reference_fails_is_left_out(frame, generator):
    frame.loc[(frame["method"] == "all tokens") & (frame["task"] == "b"), "score"] = 0.0
    table = relative_table(average_seeds(frame), generator=generator)
    assert set(table["task"]) == {"a"}


def test_advantages_are_differences_at_the_same_budget(frame, generator):
    table = advantage_table(average_seeds(frame), "codebook", ["random", "cut-off"], generator=generator)
    assert table[["other", "retain_ratio"]].values.tolist() == [["random", 0.1]]
    row = table.iloc[0]
    assert row["mean"] == pytest.approx(((1 - 0.25) + (0.5 - 0.25)) / 2)
    assert row["low"] <= row["mean"] <= row["high"]


def test_questions_must_be_the_same(frame, generator):
    averaged = average_seeds(frame)
    without = averaged[~((averaged["method"] == "all tokens") & (averaged["task"] == "b"))]
    with pytest.raises(ParameterError, match="2 questions without all tokens"):
        relative_score(without, "codebook", 0.1, generator=generator)
    with pytest.raises(ParameterError, match="one setting"):
        relative_table(averaged, generator=generator, reference="codebook")


def test_guessing_takes_the_most_frequent_answer():
    questions = pd.DataFrame(
        {
            "task": ["a", "a", "a", "caption", "b", "b"],
            "text": "?",
            "answer": ["Two", "2", "three", "a dog", "yes", "no"],
        }
    )
    assert guessing_scores(questions) == {"a": pytest.approx(2 / 3), "b": 0.5}


def graded(method, scores, ratio, seed=pd.NA, guess=None):
    """Write rows with guesses: forty questions on forty images, half of task a (guess 1/2), half of b (1/4)."""
    task = ["a"] * 20 + ["b"] * 20
    return pd.DataFrame(
        {
            "method": method,
            "retain_ratio": ratio,
            "max_similarity": np.nan,
            "settings": "",
            "seed": pd.array([seed] * 40, dtype="Int64"),
            "image_id": range(40),
            "task": task,
            "subset": "",
            "question": "?",
            "score": np.array(scores, dtype=float),
            "guess": [1.0, 0.0] * 10 + [1.0, 0.0, 0.0, 0.0] * 5 if guess is None else guess,
        }
    )


@pytest.fixture
def graded_frame():
    right, half, none = [1] * 40, [1, 0] * 20, [0] * 40
    return pd.concat(
        [
            graded("all tokens", right, 1.0),
            graded("guesser", [1, 0] * 10 + [1, 0, 0, 0] * 5, 0.2),
            graded("codebook", right[:20] + half[:20], 0.2),
            graded("random", half, 0.2, seed=0),
            graded("random", half, 0.2, seed=1),
            graded("random", none, 0.1, seed=0),
        ],
        ignore_index=True,
    )


SETTINGS = {
    "all tokens": ("all tokens", None),
    "guesser": ("guesser", 0.2),
    "codebook": ("codebook", 0.2),
    "random": ("random", 0.2),
}


def test_scores_are_corrected_for_the_best_constant_answer(graded_frame, generator):
    found = corrected_scores(graded_frame, SETTINGS, generator=generator)
    assert found.score("guessing", "a").value == 0.5
    assert found.score("guessing", "b").value == 0.25
    assert found.corrected("all tokens").value == 1.0
    assert found.corrected("guesser").value == 0.0
    assert found.relative("codebook", "a").value == 1.0
    assert found.relative("codebook", "b").value == pytest.approx((0.5 - 0.25) / 0.75)
    assert found.relative("codebook").value == pytest.approx((1 + 1 / 3) / 2)
    # Task a: random is at chance; b: as the codebook.
    assert found.difference("codebook", "random").value == pytest.approx(0.5)
    assert found.difference("codebook", "random").low > 0
    only = corrected_scores(graded_frame, SETTINGS, ["b"], generator=generator)
    assert only.relative("codebook").value == pytest.approx(1 / 3)


def test_guessing_is_drawn_along(graded_frame, generator):
    found = corrected_scores(graded_frame, SETTINGS, generator=generator)
    fixed = found.score("guesser", "a")
    drawn = found.corrected("guesser", "a")
    assert drawn.low < 0 < drawn.high
    # Guesser and guessing answer alike, so most of their spread is common and goes out.
    assert drawn.high - drawn.low < (fixed.high - fixed.low) / 0.5


def test_correction_is_undefined_where_nothing_can_be_gained(graded_frame, generator):
    sure = graded_frame.assign(guess=1.0)
    assert np.isnan(corrected_scores(sure, SETTINGS, generator=generator).corrected("all tokens").value)
    settings = {"guesser": ("guesser", 0.2), "codebook": ("codebook", 0.2)}
    assert np.isnan(corrected_scores(graded_frame, settings, generator=generator).relative("codebook").value)


@pytest.mark.parametrize(
    ("settings", "tasks", "message"),
    [
        (SETTINGS | {"more": ("codebook", 0.1)}, None, "one setting of"),
        (SETTINGS, ["c"], "tasks"),
        ({"all tokens": ("all tokens", None), "random": ("random", None)}, None, "one setting of"),
    ],
)
def test_settings_that_were_not_evaluated_are_an_error(graded_frame, settings, tasks, message, generator):
    with pytest.raises(ParameterError, match=message):
        corrected_scores(graded_frame, settings, tasks, generator=generator)


def test_settings_with_other_questions_are_an_error(graded_frame, generator):
    with pytest.raises(ParameterError, match="other questions for codebook"):
        fewer = graded_frame.drop(graded_frame[graded_frame["method"] == "codebook"].index[:1])
        corrected_scores(fewer, SETTINGS, generator=generator)


def test_the_results_of_a_claim_on_pruning_come_with_their_controls(graded_frame, generator):
    frame = graded_frame.replace({"method": {"random": "random tokens"}})
    found = pruning_results(frame, ["a", "b"], [0.2, 0.1], generator=generator)
    assert found["relative_retain_20"].value == pytest.approx(2 / 3)
    assert found["above_random_retain_20"].value == pytest.approx(0.5)
    assert found["score_unpruned"].value == 1.0
    assert found["score_guessing"].value == pytest.approx(0.375)
    assert found["score_random_retain_20"].value == 0.5
    assert not any("oracle" in name or name.endswith("_10") for name in found)  # not asked
    assert pruning_results(frame, [], [0.2], generator=generator) == {}
