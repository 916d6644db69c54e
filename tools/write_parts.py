"""Write the parts of a page that a tool makes, and tables in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_WORDS = re.compile(r"[\[`*_]*[A-Za-z]{2}")
"""What a cell of words begins with."""
_LETTER = re.compile(r"[A-Za-z`\[<]")


def write_parts(folder: Path, parts: Mapping[str, str]) -> None:
    """Write texts by name; a file whose text stays the same is left alone, so that Sphinx skips its page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in parts.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table; the first column and those with words are set to the left, numbers to the right.

    Cells without a word, such as ``"9.38 / 9.38"``, are not broken.
    """
    written = [[str(cell) for cell in row] for row in rows]
    words = [any(_WORDS.match(cell) for cell in column) for column in zip(*written, strict=True)]
    sides = [
        "---" if number == 0 or word else "---:" for number, word in enumerate(words or [False] * len(header))
    ]
    whole = (
        [cell if _LETTER.search(cell) else cell.replace(" ", "\u00a0") for cell in row] for row in written
    )
    lines = [header, sides, *whole]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def whole(text: str) -> str:
    """Return text that no line ends in; nothing where there is none."""
    return f'<span class="whole">{text}</span>' if text else ""
