"""Sphinx extension of the book: sections of docstrings, each script once a page, badges that open notebooks.

The lines ``Source:`` and ``Differs:`` close a docstring, after its numpydoc sections; without a heading they would
be read as one more item of the last section, such as an exception that is raised. What stands before a colon in the
first line of an attribute's docstring would be read as its type.

The theme's toggles of the sidebar have no name; each gets that of the page whose pages it shows.

Jupyter Book registers some scripts twice, and declaring a constant again is an error in the browser.

Pages are read by several processes, which Sphinx does only if every extension says that it may.

Where the address is known under which notebooks can be opened on Colab, each notebook's page gets a badge below its
title while it is read; the executed copies, from which the pages are made, stay as they are. The commands of
its models, each a tab, get a link below them in the same way.

Pictures say how large they are, because a browser loads those of a long page only when they come into view.
"""

from __future__ import annotations

import re
import struct
import sys
from html import escape, unescape
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools import book_terms  # noqa: E402
from tools.stamp_notebooks import insert_badge  # noqa: E402

# The site loads nothing from other hosts, so it has a picture of its own.
_BADGE = "../_static/open_in_colab.svg"
_KEEP_NOTHING = {"sphinx_multitoc_numbering", "sphinx-mathjax-offline", "sphinx_jupyterbook_latex"}
"""Extensions that keep nothing of a page while it is read, and do not say so."""
_LINE = re.compile(r"(Source|Differs): +(.*)")


def add_headings(lines: list[str]) -> list[str]:
    """Turn each unindented line ``Source: text`` into a numpydoc section."""
    result: list[str] = []
    for line in lines:
        found = _LINE.fullmatch(line)
        if found:
            name, text = found.groups()
            result += ["", name, "-" * len(name), text]
        else:
            result.append(line)
    return result


def keep_colon(lines: list[str]) -> list[str]:
    """Break the first line behind its colon, so that it stays a sentence."""
    first, colon, rest = (lines or [""])[0].partition(": ")
    return [f"{first}:", rest, *lines[1:]] if colon else lines


def process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place."""
    lines[:] = add_headings(keep_colon(lines) if what in ("attribute", "data", "property") else lines)


def keep_scripts_once(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Drop the scripts of a page that repeat an earlier one, by file name or, inside the page, by text."""
    scripts = context["script_files"]
    # The two registrations of a text without a file differ in None against "".
    once = {(script.filename or "", script.attributes.get("body")): script for script in scripts}
    context["script_files"] = list(once.values())


def name_toggles(html: str) -> str:
    """Name the toggles in a list of pages after the link before them."""

    def named(found: re.Match[str]) -> str:
        words = " ".join(re.sub(r"<[^>]+>", "", found[1]).split())
        return f'{found[0][: -len("<summary>")]}<summary aria-label="pages below {escape(unescape(words))}">'

    return re.sub(r"<a [^>]*>((?:(?!</a>).)*)</a>\s*<details[^>]*>\s*<summary>", named, html, flags=re.DOTALL)


def name_parts(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Let the theme's list of pages name its toggles; take a role away that does not fit what is inside."""
    # Entries of a bibliography are no items of a list, as their role says.
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation', '<div class="citation')
    made = context.get("generate_toctree_html")
    if made is not None:
        context["generate_toctree_html"] = lambda *given, **options: name_toggles(
            str(made(*given, **options))
        )


def show_badge(app: Any, docname: str, source: list[str]) -> None:
    """Put the badge into the text of a notebook's page, where its launch address is known."""
    folder, _, name = docname.rpartition("/")
    if not app.config.launch_folder or folder != "notebooks":
        return
    notebook = nbformat.reads(source[0], as_version=4)
    insert_badge(notebook, f"{app.config.launch_folder}/{name}.ipynb", _BADGE)
    cell = notebook.cells[0]
    cell.source = re.sub(
        r"(?m)^% opens ([\w-]+)$", rf"[Open it on Colab]({app.config.launch_folder}/\1.ipynb)", cell.source
    )
    source[0] = nbformat.writes(notebook)


def size_pictures(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Write width and height into the tags of pictures that load late."""
    files = {name: path for path, (_, name) in app.env.images.items()}

    def sized(tag: re.Match[str]) -> str:
        path = Path(app.srcdir, files.get(Path(tag[1]).name, ""))
        if path.suffix != ".png":
            return tag[0]
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        return f'{tag[0]} width="{width}" height="{height}"'

    context["body"] = re.sub(
        r'<img(?=[^>]* loading="lazy")[^>]* src="([^"]+)"', sized, context.get("body", "")
    )


def read_in_parallel(app: Any) -> None:
    """Say of extensions that several processes may read pages."""
    for name in _KEEP_NOTHING & set(app.extensions):
        app.extensions[name].parallel_read_safe = True


def setup(app: Any) -> dict[str, bool]:
    """Connect ahead of napoleon, which reads the sections, and behind what adds scripts."""
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("html-page-context", keep_scripts_once, priority=900)
    app.connect("html-page-context", size_pictures)
    app.connect("html-page-context", name_parts, priority=900)
    app.add_config_value("launch_folder", "", "env")
    app.connect("source-read", show_badge)
    app.connect("builder-inited", read_in_parallel)
    book_terms.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
