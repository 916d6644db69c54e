"""List every text of the embedded world, from which its tokenizer's vocabulary is made."""

from __future__ import annotations

from collections.abc import Iterator

from rcblib.data import questions
from rcblib.data.questions import COUNT_WORDS, POSITION_WORDS
from rcblib.records import ONE_WORD_QUESTION
from worlds.scenes.vocabulary import BACKGROUNDS, CATEGORIES, COLOR_NAMES

# Words beyond today's questions that later tasks of the same world use, so that one tokenizer serves them all.
FURTHER_WORDS = (
    "which what how many where when does do did is are was the a an this that these those image images "
    "picture photo frame frames video first second third last before after then appear appears disappear "
    "disappears move moves moving up down change changes same different both none not shown option "
    "options answer choose question with from given letter directly b c d e object objects thing left "
    "right larger smaller big small above below near next to between one two three four five six seven "
    "eight nine ten zero more less than unanswerable order event direction count only single word phrase "
    "using please describe show shows of and or there other user assistant it in on at"
)


def all_texts() -> Iterator[str]:
    """Yield every template of questions, answers and captions, filled with every word it can hold."""
    yield "USER: ASSISTANT:"
    yield from (
        ONE_WORD_QUESTION,
        questions.CAPTION_QUESTION,
        questions.COUNT_QUESTION,
        questions.DIGIT_QUESTION,
    )
    for category in CATEGORIES:
        yield questions.yes_no_question(category)
        yield questions.color_question(category)
        yield questions.position_question(category)
    yield from CATEGORIES
    yield from COLOR_NAMES
    yield from COUNT_WORDS
    yield from BACKGROUNDS
    yield from (words for row in POSITION_WORDS for words in row)
    yield "yes no. from left to right: the image shows an object, objects and a background, on an image with of"
    yield FURTHER_WORDS
