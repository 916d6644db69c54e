"""Sphinx extension: give the lines ``Source:`` and ``Differs:`` of docstrings sections of their own.

They close a docstring, after its numpydoc sections; without a heading they would be read as one more item of
the last section, such as an exception that is raised.
"""

from __future__ import annotations

import re
from typing import Any

NAMES = ("Source", "Differs")
_LINE = re.compile(rf"({'|'.join(NAMES)}): +(.*)")


def add_headings(lines: list[str]) -> list[str]:
    """Turn each unindented line ``Source: text`` into a numpydoc section of that name."""
    result: list[str] = []
    for line in lines:
        found = _LINE.fullmatch(line)
        if found:
            name, text = found.groups()
            result += ["", name, "-" * len(name), text]
        else:
            result.append(line)
    return result


def process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place."""
    lines[:] = add_headings(lines)


def setup(app: Any) -> dict[str, bool]:
    """Connect ahead of napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
