"""Check scores against hand-counted answers."""

import numpy as np
import pandas as pd
import pytest

from rcblib.metrics import (
    caption_objects,
    caption_scores,
    caption_table,
    exact_match,
    normalize_answer,
    parse_position,
    parse_yes_no,
    position_table,
    score_predictions,
    yes_no_scores,
)
from rcblib.records import ParameterError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog.", "dog"),
        ("  A  red,  STAR! ", "red star"),
        ("two", "2"),
        ("an apple", "apple"),
        ("it's", "it's"),
        ("", ""),
    ],
)
def test_normalize_answer(text, expected):
    assert normalize_answer(text) == expected


def test_exact_match_counts_the_same_answer_in_other_dress():
    assert exact_match(["Two.", "dogs", "a star"], ["2", "dog", "star"]).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, there is a dog.", "yes"),
        ("No.", "no"),
        ("no", "no"),
        ("There is not any dog", "no"),
        ("Yes. There is no cat.", "yes"),  # only the first sentence counts
        ("a dog", "yes"),  # neither word: POPE reads yes
        ("nothing", "yes"),  # whole words only
        ("", "yes"),
    ],
)
def test_parse_yes_no(text, expected):
    assert parse_yes_no(text) == expected


def test_yes_no_scores_hand_counted():
    predictions = ["yes", "yes", "yes", "no", "no", "star"]
    answers = ["yes", "yes", "no", "no", "yes", "no"]
    scores = yes_no_scores(predictions, answers)
    # read as yes: 4, of which 2 right; truly yes: 3
    assert scores == {
        "n": 6,
        "accuracy": pytest.approx(3 / 6),
        "precision": pytest.approx(2 / 4),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(4 / 7),
        "yes_share": pytest.approx(4 / 6),
        "n_neither": 1,
    }


def test_yes_no_scores_of_a_model_that_always_says_no():
    scores = yes_no_scores(["no"] * 4, ["yes", "no", "yes", "no"])
    assert (scores["accuracy"], scores["precision"], scores["recall"], scores["f1"]) == (0.5, 0, 0, 0)
    assert scores["yes_share"] == 0


def test_yes_no_reference_must_be_yes_or_no():
    with pytest.raises(ParameterError, match="answer: got 'maybe'; accepted: 'yes' or 'no'"):
        yes_no_scores(["yes"], ["maybe"])


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red star and two circles.", {"star", "circle"}),
        ("three crosses", {"cross"}),  # a number word is not the digit category "3"
        ("A blue 3 beside a Ring", {"3", "ring"}),
        ("a string of starlings", set()),
        ("hot dogs on a plate", {"hot dog"}),
        ("a hot dog and a dog", {"hot dog", "dog"}),
        ("nothing here", set()),
    ],
)
def test_caption_objects(caption, expected):
    categories = ["star", "circle", "cross", "ring", "3", "dog", "hot dog"]
    assert caption_objects(caption, categories) == expected


def test_caption_scores_hand_counted():
    captions = ["a star and a ring", "a circle", "an empty room", "nothing"]
    present = [{"star", "circle"}, {"circle"}, {"star"}, set()]
    table = caption_table(captions, present, ["star", "ring", "circle"])
    assert table["n_named"].tolist() == [2, 1, 0, 0]
    assert table["n_hallucinated"].tolist() == [1, 0, 0, 0]
    assert table["f1"].tolist() == [0.5, 1.0, 0.0, 1.0]
    scores = caption_scores(table)
    assert scores == {
        "n": 4,
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 4),
        "f1": pytest.approx(4 / 7),
        "chair_i": pytest.approx(1 / 3),
        "chair_s": pytest.approx(1 / 4),
    }


def test_captions_with_objects_outside_the_categories_are_refused():
    with pytest.raises(ParameterError, match=r"present: got \['cat'\]"):
        caption_table(["a star"], [{"cat"}], ["star"])
    with pytest.raises(ParameterError, match="categories"):
        caption_objects("a star", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top left", ("top", "left")),
        ("In the upper-left corner.", ("top", "left")),
        ("left top", ("top", "left")),
        ("top", ("top", "center")),
        ("left", ("middle", "left")),
        ("center", ("middle", "center")),
        ("middle right", ("middle", "right")),
        ("a star", None),
        ("left or right", None),
        ("", None),
    ],
)
def test_parse_position(text, expected):
    assert parse_position(text) == expected


def test_position_table_credits_each_axis():
    table = position_table(
        ["top left", "top", "bottom right", "star"], ["left top", "top left", "top left", "top"]
    )
    assert table["correct"].tolist() == [True, False, False, False]
    assert table["row_correct"].tolist() == [True, True, False, False]
    assert table["column_correct"].tolist() == [True, False, False, False]


def test_a_position_answer_without_a_place_is_refused():
    with pytest.raises(ParameterError, match="answer: got 'star'"):
        position_table(["top"], ["star"])


def test_score_predictions_uses_each_tasks_rule_and_keeps_the_index():
    frame = pd.DataFrame(
        {
            "image_id": [1, 1, 2, 2, 2],
            "task": ["yes_no", "caption", "position", "color", "caption"],
            "prediction": ["No, there is none.", "a star and a ring", "upper left", "Red.", "a ring"],
            "answer": ["no", "a star.", "top left", "blue", "a ring."],
        },
        index=[10, 11, 12, 13, 14],
    )
    scores = score_predictions(frame, {1: {"star"}, 2: {"ring"}}, {"star", "ring"})
    assert scores.name == "score"
    assert scores.to_dict() == {10: 1.0, 11: pytest.approx(2 / 3), 12: 1.0, 13: 0.0, 14: 1.0}


def test_score_predictions_says_what_captions_need():
    frame = pd.DataFrame({"task": ["caption"], "prediction": ["x"], "answer": ["y"], "image_id": [1]})
    with pytest.raises(ParameterError, match="both, because there are captions"):
        score_predictions(frame)
    with pytest.raises(ParameterError, match="columns with 'answer'"):
        score_predictions(frame.drop(columns="answer"))


@pytest.mark.parametrize("score", [exact_match, yes_no_scores, position_table])
def test_unequal_or_empty_inputs_are_refused(score):
    with pytest.raises(ParameterError, match="predictions: got '1 of them'; accepted: one an answer: 2"):
        score(["yes"], ["yes", "no"])
    with pytest.raises(ParameterError, match="at least one"):
        score([], [])


def test_yes_no_row_scores_average_to_the_accuracy():
    predictions, answers = ["yes", "no", "a", "not"], ["no", "no", "yes", "yes"]
    frame = pd.DataFrame({"task": "yes_no", "prediction": predictions, "answer": answers})
    assert np.isclose(score_predictions(frame).mean(), yes_no_scores(predictions, answers)["accuracy"])
