"""Read the options of multiple-choice questions, which are answered by a letter."""

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
