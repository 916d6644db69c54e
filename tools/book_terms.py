"""Sphinx extension: every reference to a term of the glossary carries the term's meaning as its title.

Without a script the browser shows it where the pointer rests; ``book/_static/terms.js`` shows it for the keyboard, too.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes

GLOSSARY = "glossary"
"""The page of terms."""


def meanings(glossary: nodes.document) -> dict[str, str]:
    """Return what every term of a page means, by the term's id, on one line."""
    found = {}
    for item in glossary.findall(nodes.definition_list_item):
        text = " ".join(part.astext() for part in item.findall(nodes.definition))
        for term in item.findall(nodes.term):
            found |= dict.fromkeys(term["ids"], " ".join(text.split()))
    return found


def add_meanings(app: Any, doctree: nodes.document, docname: str) -> None:
    """Give the references of a page to terms their meanings, in place; the glossary's own stay as they are."""
    if GLOSSARY not in app.env.found_docs or docname == GLOSSARY:
        return
    known = getattr(app, "_meanings", None)
    if known is None:
        known = app._meanings = meanings(app.env.get_doctree(GLOSSARY))
    for reference in doctree.findall(nodes.reference):
        meaning = known.get(reference.get("refuri", "").partition("#")[2])
        if meaning and any("std-term" in inner["classes"] for inner in reference.findall(nodes.inline)):
            reference["reftitle"] = meaning


def setup(app: Any) -> None:
    """Connect behind what resolves references."""
    app.connect("doctree-resolved", add_meanings, priority=900)
