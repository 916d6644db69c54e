"""Read the options that a question offers: lettered ones, answered by a letter, or two names joined by "or"."""

from __future__ import annotations

import re

LETTERS = ("a", "b", "c", "d")

INSTRUCTION = "Answer with the letter."


def read_options(text: str) -> dict[str, str]:
    """Return the options of a question by letter, in order; none where it is of another form.

    The form is ``"Which object appears? a. star b. 7 c. ring Answer with the letter."``, with up to four options.
    """
    found = re.fullmatch(rf".*\? (a\. .*) {re.escape(INSTRUCTION)}", text)
    parts = re.split(r"(?:^| )([a-d])\. ", found[1])[1:] if found else []
    return dict(zip(parts[::2], parts[1::2], strict=True))


def either(first: str, second: str) -> str:
    """Write two names as the end of a question that asks which of them: ``"the cat or the dog?"``."""
    return f"the {first} or the {second}?"


def offered_answers(text: str) -> tuple[str, ...]:
    """Return the answers that a question offers: the letters of `read_options`, the names of `either`; else none."""
    pair = re.fullmatch(r".*, the (.+) or the (.+)\?", text)
    return tuple(pair.groups()) if pair else tuple(read_options(text))
