"""Write multiple-choice questions about groups and videos; `rcblib.data.choices` reads their options back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rcblib.data.choices import INSTRUCTION, LETTERS
from rcblib.records import ParameterError, Question

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def multiple_choice(
    question: str, options: Sequence[str], right: str, rng: np.random.Generator
) -> tuple[str, str]:
    """Write a question with its options in random order.

    Parameters
    ----------
    question : str
        What is asked; it ends in a question mark.
    options : sequence of str
        Two to four different options.
    right : str
        The one that answers the question.
    rng : numpy.random.Generator
        Draws the order.

    Returns
    -------
    text, letter : str
        ``"Which object appears? a. star b. 7 c. ring Answer with the letter."`` and ``"a"`` to ``"d"``.

    Raises
    ------
    ParameterError
        If there are too few or too many options, two are the same, or none is right.
    """
    options = list(options)
    if not 2 <= len(options) <= len(LETTERS) or len(set(options)) < len(options):
        raise ParameterError("options", options, f"2 to {len(LETTERS)} different options")
    if right not in options:
        raise ParameterError("right", right, ", ".join(options))
    shuffled = [options[i] for i in rng.permutation(len(options))]
    listed = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, shuffled, strict=False))
    return f"{question} {listed} {INSTRUCTION}", LETTERS[shuffled.index(right)]


@dataclass
class ChoiceAsker:
    """Collect multiple-choice questions about one group of images, or one video.

    Attributes
    ----------
    image_id : int
        What they are about.
    task : str
        Their task.
    rng : numpy.random.Generator
        Draws the order of options.
    asked : list of Question
        The questions so far.
    """

    image_id: int
    task: str
    rng: np.random.Generator
    asked: list[Question] = field(default_factory=list)

    def add(self, kind: str, question: str, options: Sequence[str], right: str) -> None:
        """Ask a question of some kind, its options as for `multiple_choice`."""
        text, letter = multiple_choice(question, options, right, self.rng)
        self.asked.append(Question(self.image_id, self.task, text, letter, kind))


def draw_options(right: str, others: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return the right option and `n` - 1 different wrong ones, each of `others` (`right` aside) equally likely.

    Where `right` is itself drawn uniformly from the same set, no option of the result is likelier than another.
    """
    wrong = [option for option in dict.fromkeys(others) if option != right]
    return [right, *(wrong[i] for i in rng.permutation(len(wrong))[: n - 1])]
