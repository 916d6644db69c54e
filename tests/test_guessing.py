"""Check what guessing gets on questions of which it is known."""

import pandas as pd
import pytest

from rcblib.data.choices import offered_answers
from rcblib.data.opening import open_images
from rcblib.data.questions import PAIR_TASKS, larger_question, left_question, questions_for, yes_no_question
from rcblib.evaluate.guessing import blind_scores, kinds_of
from rcblib.reading.comparison import guessing_scores
from rcblib.records import ONE_WORD_QUESTION


def test_the_best_constant_caption_names_as_many_objects_as_pay():
    frame = pd.DataFrame({"image_id": [1, 2, 3], "task": "caption", "text": "?", "answer": "x"})
    present = {1: {"cat", "dog"}, 2: {"cat", "dog"}, 3: {"bird"}}
    guesses = blind_scores(frame, present)
    assert guesses.tolist() == [0.8, 0.8, 0.5]  # all three names, 0.7 on average; cat and dog alone 0.667
    assert blind_scores(frame).isna().all()
    only = blind_scores(frame, {1: {"cat"}, 2: {"cat", "dog"}, 3: {"cat"}})
    assert only.tolist() == [1.0, pytest.approx(2 / 3), 1.0]


def test_kinds_of_questions_about_sequences_count_as_tasks():
    frame = pd.DataFrame(
        {
            "task": ["video", "video", "yes_no", "video"],
            "subset": ["order", "count", "popular", "order"],
            "text": "?",
            "answer": ["b", "c", "no", "b"],
        }
    )
    assert kinds_of(frame).tolist() == ["order", "count", "yes_no", "order"]
    assert kinds_of(frame.drop(columns="subset")).tolist() == frame["task"].tolist()
    assert blind_scores(frame).tolist() == [1.0, 1.0, 1.0, 1.0]  # "b" for order, "c" for count


def guessed(*questions):
    return blind_scores(pd.DataFrame(questions, columns=["text", "answer"]).assign(task="any")).tolist()


def test_where_a_question_names_two_objects_either_is_a_guess():
    pairs = [(larger_question("cat", "dog"), "dog"), (larger_question("fig", "red ant"), "fig")]
    assert guessed(*pairs, (left_question("cup", "hat"), "hat")) == [0.5] * 3
    assert guessed(*pairs, *pairs[1:] * 2) == [0.0, 1.0, 1.0, 1.0]  # always "fig" is better here


def test_of_fixed_options_the_most_frequent_is_the_best_guess():
    letters = "Which object appears? a. star b. 7 c. ring Answer with the letter."
    assert guessed(*[(letters, answer) for answer in "abca"]) == [1.0, 0.0, 0.0, 1.0]
    said = [(yes_no_question("cat"), answer) for answer in ("yes", "no", "no", "no")]
    assert guessed(*said) == [0.0, 1.0, 1.0, 1.0]


def test_the_answers_that_a_question_offers_are_read_from_it():
    assert offered_answers(left_question("traffic light", "hot dog")) == ("traffic light", "hot dog")
    assert offered_answers("Which one? a. star b. 7 c. ring d. a cup Answer with the letter.") == tuple(
        "abcd"
    )
    assert offered_answers(ONE_WORD_QUESTION) == offered_answers(yes_no_question("cat")) == ()


def test_of_photographs_pairs_and_yes_no_are_guessed_half_of_the_time():
    questions = questions_for(open_images("photographs", "validation"), (*PAIR_TASKS, "yes_no"), 36)
    asked = pd.DataFrame([vars(question) for question in questions])
    assert guessing_scores(asked) == dict.fromkeys((*PAIR_TASKS, "yes_no"), 0.5)
