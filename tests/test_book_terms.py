"""Check that references to terms carry their meaning, on a small site of two pages."""

import pytest

from tools import book_terms

GLOSSARY = "# Words\n\n```{glossary}\ntoken\n  One row of a model's\n  input.\n```\n\n{term}`token`\n"
PAGE = "# Page\n\nA {term}`token`, two {term}`tokens <token>`, and [a page](glossary.md).\n"


@pytest.fixture
def page(tmp_path):
    sphinx = pytest.importorskip("sphinx.application")
    for name, text in {"glossary": GLOSSARY, "index": PAGE + "\n```{toctree}\nglossary\n```\n"}.items():
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    app = sphinx.Sphinx(
        tmp_path, None, tmp_path / "html", tmp_path / "trees", "html", status=None, warningiserror=True,
        confoverrides={"extensions": ["myst_parser"]},
    )  # fmt: skip
    book_terms.setup(app)
    app.build()
    return {
        name: (tmp_path / f"html/{name}.html").read_text(encoding="utf-8") for name in ("index", "glossary")
    }


def test_a_term_carries_its_meaning_and_other_links_do_not(page):
    assert page["index"].count('title="One row of a model’s input."') == 2
    assert page["index"].count('href="glossary.html#term-token" title=') == 2
    assert (
        '<a class="reference internal" href="glossary.html"><span class="std std-doc">a page' in page["index"]
    )
    assert "One row" in page["glossary"] and 'title="One row' not in page["glossary"]
