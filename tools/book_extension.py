"""Sphinx extension of the book: docstring sections that napoleon does not know, and each script once a page.

The lines ``Source:`` and ``Differs:`` close a docstring, after its numpydoc sections; without a heading they would
be read as one more item of the last section, such as an exception that is raised. The section ``Attributes`` of
a dataclass is set like parameters, several names on a line included.

Jupyter Book registers some scripts twice, and declaring a constant again is an error in the browser.
"""

from __future__ import annotations

import re
from typing import Any

_LINE = re.compile(r"(Source|Differs): +(.*)")


def add_headings(lines: list[str]) -> list[str]:
    """Turn each unindented line ``Source: text`` into a numpydoc section; name the attributes ``Fields``."""
    result: list[str] = []
    for line in lines:
        found = _LINE.fullmatch(line)
        if found:
            name, text = found.groups()
            result += ["", name, "-" * len(name), text]
        elif set(line) == {"-"} and result and result[-1] == "Attributes":
            result[-1:] = ["Fields", "------"]
        else:
            result.append(line)
    return result


def process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place."""
    lines[:] = add_headings(lines)


def keep_scripts_once(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Drop the scripts of a page that repeat an earlier one, by file name or, inside the page, by text."""
    scripts = context["script_files"]
    # The two registrations of a text without a file differ in None against "".
    once = {(script.filename or "", script.attributes.get("body")): script for script in scripts}
    context["script_files"] = list(once.values())


def setup(app: Any) -> dict[str, bool]:
    """Connect ahead of napoleon, which reads the sections, and behind what adds scripts."""
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("html-page-context", keep_scripts_once, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
