"""Write the parts of a page that a tool makes, and tables in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def write_parts(folder: Path, parts: Mapping[str, str]) -> None:
    """Write texts by name; a file whose text stays the same is left alone, so that Sphinx skips its page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in parts.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table; the first column is text, the others are set to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
