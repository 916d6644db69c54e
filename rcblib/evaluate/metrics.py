"""Turn predictions into scores: exact match, yes/no as POPE does, letters of options, objects in captions, places."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rcblib.records import ParameterError

_ARTICLES = frozenset({"a", "an", "the"})

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}

_PUNCTUATION = str.maketrans({mark: " " for mark in string.punctuation if mark != "'"})

_ROWS = {"top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}

_COLUMNS = {"left": "left", "right": "right"}

_CENTRES = frozenset({"center", "centre", "middle"})

_LETTERS = tuple("abcdefgh")

CHOICE_TASKS = ("multi_image", "video")
"""Tasks whose answers are letters of options."""


def normalize_answer(text: str) -> str:
    """Reduce an answer to what is compared: lower case, no punctuation or articles, number words as digits.

    "The dog." and "dog" become equal, and so do "Two" and "2".
    """
    words = text.lower().translate(_PUNCTUATION).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Tell which predictions equal their answer after `normalize_answer`.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` booleans.
    """
    _check_lengths(predictions, answers)
    pairs = zip(predictions, answers, strict=True)
    return np.array([normalize_answer(a) == normalize_answer(b) for a, b in pairs], dtype=bool)


def parse_yes_no(text: str) -> str:
    """Read an answer as ``"yes"`` or ``"no"``: "no" where its first sentence holds the word no or not.

    Anything else counts as "yes", an empty answer too.

    Source: POPE's evaluation script (Li et al. 2023).
    Differs: case is ignored throughout, where the script knows "No", "no" and "not" only.
    """
    first_sentence = text.split(".")[0].lower().translate(_PUNCTUATION).split()
    return "no" if {"no", "not"} & set(first_sentence) else "yes"


def caption_objects(caption: str, categories: Iterable[str]) -> set[str]:
    """Find the categories that a caption names, as whole words, in singular or with a plural s or es.

    No synonyms: "puppy" is not "dog". Where names overlap the longest counts ("hot dog" holds no "dog").

    Returns
    -------
    set of str
        Names as given in `categories`.
    """
    by_name = {name.lower(): name for name in categories}
    if not by_name:
        raise ParameterError("categories", [], "at least one name")
    longest_first = sorted(by_name, key=lambda name: (-len(name), name))
    pattern = rf"(?<!\w)({'|'.join(re.escape(name) for name in longest_first)})(?:e?s)?(?!\w)"
    return {by_name[found] for found in re.findall(pattern, caption.lower())}


def caption_table(
    captions: Sequence[str], present: Sequence[Collection[str]], categories: Collection[str]
) -> pd.DataFrame:
    """Compare the objects that captions name with the objects that are there, one row a caption.

    Parameters
    ----------
    captions : sequence of str
        ``n`` generated captions.
    present : sequence of collection of str
        ``n`` sets of the categories in each image.
    categories : collection of str
        Every category that counts; other words are ignored.

    Returns
    -------
    pandas.DataFrame
        ``n_named``, ``n_present``, ``n_correct``, ``n_hallucinated`` (distinct categories), ``precision``,
        ``recall`` and ``f1``, in [0, 1]. Naming nothing where nothing is present scores 1; otherwise a ratio
        with nothing below it is 0.
    """
    _check_lengths(captions, present)
    known = set(categories)
    rows = []
    for caption, there in zip(captions, present, strict=True):
        there = set(there)
        if there - known:
            raise ParameterError("present", sorted(there - known), "names that are among the categories")
        named = caption_objects(caption, known)
        n_correct = len(named & there)
        scores = _precision_recall_f1(n_correct, len(named), len(there)) if named or there else (1.0,) * 3
        rows.append((len(named), len(there), n_correct, len(named) - n_correct, *scores))
    names = ["n_named", "n_present", "n_correct", "n_hallucinated", "precision", "recall", "f1"]
    return pd.DataFrame(rows, columns=names)


def parse_position(text: str) -> tuple[str, str] | None:
    """Read position words as (row, column), such as ``("top", "left")`` or ``("middle", "center")``.

    "Top left", "left top" and "in the upper left corner" are one place; a single word leaves the other axis
    in the middle. Returns ``None`` where no position word, or two opposite ones, are found.
    """
    words = normalize_answer(text).split()
    rows = {_ROWS[word] for word in words if word in _ROWS}
    columns = {_COLUMNS[word] for word in words if word in _COLUMNS}
    if len(rows) > 1 or len(columns) > 1 or not (rows or columns or _CENTRES & set(words)):
        return None
    return (next(iter(rows), "middle"), next(iter(columns), "center"))


def position_matches(predictions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Tell which predictions name the same of nine places as their answer.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` booleans.

    Raises
    ------
    ParameterError
        If the lengths differ, there is nothing to score, or an answer holds no place.
    """
    _check_lengths(predictions, answers)
    places = [parse_position(answer) for answer in answers]
    if None in places:
        answer = answers[places.index(None)]
        raise ParameterError("answer", answer, "position words, such as 'top left' or 'center'")
    pairs = zip(predictions, places, strict=True)
    return np.array([parse_position(prediction) == place for prediction, place in pairs], dtype=bool)


def yes_no_matches(predictions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Tell which predictions, read by `parse_yes_no`, say what their answer says.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` booleans.

    Raises
    ------
    ParameterError
        If the lengths differ, there is nothing to score, or an answer is neither yes nor no.
    """
    _check_lengths(predictions, answers)
    references = [normalize_answer(answer) for answer in answers]
    for answer, reference in zip(answers, references, strict=True):
        if reference not in ("yes", "no"):
            raise ParameterError("answer", answer, "'yes' or 'no'")
    pairs = zip(predictions, references, strict=True)
    return np.array([parse_yes_no(prediction) == reference for prediction, reference in pairs], dtype=bool)


def parse_choice(text: str, options: Mapping[str, str] | None = None) -> str | None:
    """Read which option of a multiple-choice question an answer chooses.

    The first of these that applies: a letter that is all there is or is marked as one, at the start ("b", "B.",
    "(b) ring"); the text of an option, and nothing else; a letter that stands alone ("the answer is b"), where "a"
    before a word is the article; the text of the only option that is named ("the ring appears").

    Parameters
    ----------
    text : str
        A generated answer; case does not matter.
    options : Mapping of str to str, optional
        Letter to text of each option; without them any letter from a to h counts.

    Returns
    -------
    str or None
        The letter, in lower case; ``None`` where none, or more than one option is named.

    Notes
    -----
    Source: the MVBench and MUIRBench tasks of lmms-eval, which read a letter at the start that a period follows; in
    MVBench else the first letter that stands alone.
    Differs: option texts are read too, and the article is no letter. MUIRBench takes nothing but a letter, and MVBench
    leaves empty answers out where here they are wrong.
    """
    texts = {letter.lower(): normalize_answer(option) for letter, option in (options or {}).items()}
    letters = "".join(texts) or "".join(_LETTERS)
    said = text.lower().strip()
    marked = re.match(rf"[\W_]*([{letters}])\s*(?:[.):,\]\n]|\W*$)", said)
    if marked:
        return marked[1]
    normal = normalize_answer(said)
    same = [letter for letter, option in texts.items() if option and option == normal]
    if len(same) == 1:
        return same[0]
    alone = re.search(rf"(?<![\w'])(?!a\s+\w)([{letters}])(?![\w'])", said)
    if alone:
        return alone[1]
    named = [letter for letter, option in texts.items() if option and f" {option} " in f" {normal} "]
    return named[0] if len(named) == 1 else None


def choice_matches(
    predictions: Sequence[str],
    answers: Sequence[str],
    options: Sequence[Mapping[str, str]] | None = None,
) -> np.ndarray:
    """Tell which predictions choose the right option.

    Parameters
    ----------
    predictions : sequence of str
        ``n`` generated answers, read by `parse_choice`.
    answers : sequence of str
        ``n`` letters, in any case.
    options : sequence of Mapping, optional
        ``n`` times letter to text of each option, empty where they are not known.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` booleans.

    Raises
    ------
    ParameterError
        If the lengths differ, there is nothing to score, or an answer is not the letter of an option.
    """
    _check_lengths(predictions, answers)
    known = [{}] * len(answers) if options is None else list(options)
    if len(known) != len(answers):
        raise ParameterError("options", f"those of {len(known)}", f"one an answer: {len(answers)}")
    matches = []
    for prediction, answer, own in zip(predictions, answers, known, strict=True):
        letters = [letter.lower() for letter in own] or _LETTERS
        if answer.lower() not in letters:
            raise ParameterError("answer", answer, f"the letter of an option: {', '.join(letters)}")
        matches.append(parse_choice(prediction, own) == answer.lower())
    return np.array(matches, dtype=bool)


def score_predictions(
    frame: pd.DataFrame,
    present: Mapping[Any, Collection[str]] | None = None,
    categories: Collection[str] | None = None,
    options: Sequence[Mapping[str, str]] | None = None,
) -> pd.Series:
    """Score every question by its task's rule, so that tasks can stand in one tidy table.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row a question, with ``task``, ``prediction`` and ``answer``; captions also need ``image_id``.
    present : Mapping, optional
        Image id to the categories in it; captions only.
    categories : collection of str, optional
        Every category that counts; captions only.
    options : sequence of Mapping, optional
        For each row letter to text of its options, empty where it has none. A row with options is multiple choice,
        whatever its task; those of `CHOICE_TASKS` are without, too.

    Returns
    -------
    pandas.Series
        Scores in [0, 1], named ``score``, with the frame's index: 1 or 0 for multiple choice (as `parse_choice` reads
        it), ``yes_no`` (as POPE reads it), ``position`` and every exact-match task; object F1 for ``caption``.

    Raises
    ------
    ParameterError
        If a column, or what captions need, is missing, or a reference is not of its task's form.
    """
    for column in ("task", "prediction", "answer"):
        if column not in frame.columns:
            raise ParameterError("frame", list(frame.columns), f"columns with {column!r}")
    known = [{}] * len(frame) if options is None else list(options)
    if len(known) != len(frame):
        raise ParameterError("options", f"those of {len(known)}", f"one a row: {len(frame)}")
    rules = [
        "choice" if own or task in CHOICE_TASKS else task
        for task, own in zip(frame["task"], known, strict=True)
    ]
    scores = pd.Series(np.nan, index=frame.index, name="score")
    for rule in dict.fromkeys(rules):
        rows = np.array([own == rule for own in rules])
        predictions, answers = frame.loc[rows, "prediction"].tolist(), frame.loc[rows, "answer"].tolist()
        if rule == "choice":
            own_options = [own for own, chosen in zip(known, rows, strict=True) if chosen]
            scores[rows] = choice_matches(predictions, answers, own_options).astype(float)
        elif rule == "caption":
            if present is None or categories is None:
                raise ParameterError("present, categories", None, "both, because there are captions to score")
            there = [present[image_id] for image_id in frame.loc[rows, "image_id"]]
            scores[rows] = caption_table(predictions, there, categories)["f1"].to_numpy()
        elif rule == "yes_no":
            scores[rows] = yes_no_matches(predictions, answers).astype(float)
        elif rule == "position":
            scores[rows] = position_matches(predictions, answers).astype(float)
        else:
            scores[rows] = exact_match(predictions, answers).astype(float)
    return scores


def _precision_recall_f1(n_correct: int, n_said: int, n_true: int) -> tuple[float, float, float]:
    precision = n_correct / n_said if n_said else 0.0
    recall = n_correct / n_true if n_true else 0.0
    f1 = 2 * n_correct / (n_said + n_true) if n_said + n_true else 0.0
    return precision, recall, f1


def _check_lengths(predictions: Sequence[Any], answers: Sequence[Any]) -> None:
    if len(predictions) != len(answers):
        raise ParameterError("predictions", f"{len(predictions)} of them", f"one an answer: {len(answers)}")
    if len(predictions) == 0:
        raise ParameterError("predictions", "none", "at least one")
