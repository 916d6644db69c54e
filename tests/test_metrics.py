"""Check scores against hand-counted answers."""

import pandas as pd
import pytest

from rcblib.evaluate.metrics import (
    caption_objects,
    caption_table,
    choice_matches,
    exact_match,
    normalize_answer,
    parse_choice,
    parse_position,
    parse_yes_no,
    position_matches,
    score_predictions,
    yes_no_matches,
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


def test_yes_no_reference_must_be_yes_or_no():
    with pytest.raises(ParameterError, match="answer: got 'maybe'; accepted: 'yes' or 'no'"):
        score_predictions(pd.DataFrame({"task": ["yes_no"], "prediction": ["yes"], "answer": ["maybe"]}))


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


def test_caption_table_hand_counted():
    captions = ["a star and a ring", "a circle", "an empty room", "nothing"]
    present = [{"star", "circle"}, {"circle"}, {"star"}, set()]
    table = caption_table(captions, present, ["star", "ring", "circle"])
    assert table["n_named"].tolist() == [2, 1, 0, 0]
    assert table["n_hallucinated"].tolist() == [1, 0, 0, 0]
    assert table["f1"].tolist() == [0.5, 1.0, 0.0, 1.0]
    assert table["n_correct"].tolist() == [1, 1, 0, 0]


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


def test_a_position_is_right_on_both_axes():
    predictions = ["top left", "top", "bottom right", "star"]
    assert position_matches(predictions, ["left top", "top left", "top left", "top"]).tolist() == [
        True, False, False, False,
    ]  # fmt: skip


def test_a_position_answer_without_a_place_is_refused():
    with pytest.raises(ParameterError, match="answer: got 'star'"):
        position_matches(["top"], ["star"])


OPTIONS = {"a": "star", "b": "ring", "c": "a red ring", "d": "none of the images"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b", "b"),
        ("B", "b"),
        ("b.", "b"),
        (" b . ", "b"),
        ("(b)", "b"),
        ("b. star", "b"),  # the letter counts, not the text behind it
        ("B) ring", "b"),
        ("b: ring", "b"),
        ("**b**", "b"),
        ("b\nbecause it is round", "b"),
        ("a", "a"),
        ("a.", "a"),
        ("ring", "b"),  # the text of an option
        ("The ring.", "b"),
        ("A ring", "b"),  # an article, not the letter
        ("a red ring", "c"),
        ("None of the images", "d"),
        ("The answer is b", "b"),
        ("Answer: (C)", "c"),
        ("option a", "a"),
        ("it is a star", "a"),  # the only option that is named
        ("the big star appears", "a"),
        ("a star or a ring", None),
        ("e", None),  # no such option
        ("a dog", None),
        ("starling", None),
        ("", None),
        ("?", None),
    ],
)
def test_parse_choice(text, expected):
    assert parse_choice(text, OPTIONS) == expected


def test_letters_are_read_where_options_are_not_known():
    assert [parse_choice(text) for text in ("E.", "the answer is (c)", "a ring", "i")] == [
        "e",
        "c",
        None,
        None,
    ]


def test_options_in_other_letters_are_read_too():
    assert parse_choice("(B) 3", {"A": "two", "B": "three"}) == "b"
    assert parse_choice("3", {"A": "two", "B": "three"}) == "b"


def test_choice_matches_hand_counted():
    predictions, answers = ["b", "A ring", "c. star", ""], ["b", "B", "a", "a"]
    assert choice_matches(predictions, answers, [OPTIONS] * 4).tolist() == [True, True, False, False]
    assert choice_matches(["b", "ring"], ["b", "b"]).tolist() == [True, False]


def test_choices_that_cannot_be_scored_are_refused():
    with pytest.raises(
        ParameterError, match="answer: got 'ring'; accepted: the letter of an option: a, b, c, d"
    ):
        choice_matches(["b"], ["ring"], [OPTIONS])
    with pytest.raises(ParameterError, match="options: got 'those of 1'; accepted: one an answer: 2"):
        choice_matches(["b", "b"], ["b", "b"], [OPTIONS])


def test_choices_are_scored_by_task_or_where_there_are_options():
    frame = pd.DataFrame(
        {
            "task": ["video", "color", "color", "multi_image"],
            "prediction": ["(b)", "ring", "b", "a."],
            "answer": ["b", "b", "ring", "a"],
        },
        index=[3, 2, 1, 0],
    )
    scores = score_predictions(frame, options=[{}, OPTIONS, {}, OPTIONS])
    assert scores.to_dict() == {3: 1.0, 2: 1.0, 1: 0.0, 0: 1.0}
    assert score_predictions(frame).to_dict() == {3: 1.0, 2: 0.0, 1: 0.0, 0: 1.0}
    with pytest.raises(ParameterError, match="options: got 'those of 1'; accepted: one a row: 4"):
        score_predictions(frame, options=[{}])


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


@pytest.mark.parametrize("score", [exact_match, position_matches, yes_no_matches, choice_matches])
def test_unequal_or_empty_inputs_are_refused(score):
    with pytest.raises(ParameterError, match="predictions: got '1 of them'; accepted: one an answer: 2"):
        score(["yes"], ["yes", "no"])
    with pytest.raises(ParameterError, match="at least one"):
        score([], [])


def test_yes_no_answers_hand_counted():
    predictions, answers = ["yes", "no", "a", "not"], ["no", "no", "yes", "yes"]
    frame = pd.DataFrame({"task": "yes_no", "prediction": predictions, "answer": answers})
    assert score_predictions(frame).tolist() == [0, 1, 1, 0]
    assert yes_no_matches(predictions, answers).tolist() == [False, True, True, False]
