"""Hold the page of every experiment to what a reader can take in, as it is built; what is folded does not count.

Of tabs the first counts, which is what a reader sees. How high a page is and where its first figure stands is seen in
a browser only: `tools.check_pages` looks there.
"""

from __future__ import annotations

import re
from pathlib import Path

from bs4 import BeautifulSoup

MOST_FIGURES, MOST_WORDS, MOST_WORDS_BEFORE = 4, 2000, 250
"""Figures of a page, its words, and those in front of its first figure."""
MOST_SCREENS, FIRST_FIGURE = 6, 1.2
"""Height of a page, and where its first figure begins, in screens."""
MOST_SAID = 300
"""Characters of an alternative text."""

_CODE_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
_COMPARES = re.compile(
    r"\d|\b(more|less|fewer|higher|highest|lower|lowest|best|worst|rises?|falls?|above|below|none)\b",
    re.IGNORECASE,
)


def parsed(html: str | BeautifulSoup) -> BeautifulSoup:
    """Return a page as a tree; one that is parsed already as it is, for parsing takes a second of a long page."""
    return html if isinstance(html, BeautifulSoup) else BeautifulSoup(html, "html.parser")


def shown_first(html: str | BeautifulSoup) -> BeautifulSoup:
    """Return the article of a page without what is folded, and of each set of tabs only the first; a tree loses it."""
    soup = parsed(html)
    article = (soup.select_one("article") or soup).extract()
    for fold in article.select("details"):
        fold.decompose()
    for tabs in article.select(".sd-tab-set"):
        for label in tabs.find_all("label", recursive=False):
            label.decompose()
        for other in tabs.find_all(class_="sd-tab-content", recursive=False)[1:]:
            other.decompose()
    return article


def limits_broken(html: str | BeautifulSoup) -> list[str]:
    """Return a line for each limit that a page breaks; a tree loses its article."""
    article = shown_first(html)
    figures = article.select("img.drawn")
    words = len(article.get_text(" ").split())
    problems = []
    if len(figures) > MOST_FIGURES:
        problems.append(f"{len(figures)} figures; accepted: {MOST_FIGURES} that are not folded")
    if words > MOST_WORDS:
        problems.append(f"{words} words; accepted: {MOST_WORDS} that are not folded")
    if figures:
        before = len(" ".join(str(text) for text in figures[0].find_all_previous(string=True)).split())
        if before > MOST_WORDS_BEFORE:
            problems.append(f"{before} words before the first figure; accepted: {MOST_WORDS_BEFORE}")
    return problems


def alternative_text_is_poor(alt: str, caption: str = "") -> str:
    """Say why an alternative text does not stand for its figure; empty where it does.

    It is to hold a number or a comparison, in at most `MOST_SAID` characters, and not to say the caption again.
    """
    if len(alt) > MOST_SAID:
        return f"has {len(alt)} characters; accepted: {MOST_SAID}"
    if not _COMPARES.search(alt):
        return "holds neither a number nor a comparison"
    said, written = (" ".join(text.split()).rstrip(".").casefold() for text in (alt, caption))
    return "repeats the caption" if said in written or (written and said.startswith(written)) else ""


def figures_without_words(html: str | BeautifulSoup) -> list[str]:
    """Return a line for each figure of an experiment's page, in whatever tab or fold, with a poor alternative text."""
    problems = []
    for image in parsed(html).select("article img.drawn"):
        caption = image.find_parent("figure")
        caption = caption.figcaption.get_text(" ") if caption and caption.figcaption else ""
        if why := alternative_text_is_poor(image.get("alt", ""), caption):
            problems.append(f"{image.get('src')}: alternative text {image.get('alt', '')[:60]!r} {why}")
    return problems


def code_names_in_tables(html: str | BeautifulSoup) -> list[str]:
    """Return a line for each heading of an experiment's tables, in whatever tab or fold, that is a name of code."""
    heads = (" ".join(head.get_text().split()) for head in parsed(html).select(".cell_output table th"))
    names = dict.fromkeys(head for head in heads if _CODE_NAME.fullmatch(head))
    return [f"a table is headed by {name!r}; accepted: words" for name in names]


def check_limits(folder: Path) -> list[str]:
    """Return a line for each limit that a page of an experiment breaks, and each figure or table without words."""
    return [
        f"{path.relative_to(folder)}: {problem}"
        for path in sorted((folder / "notebooks").glob("*.html"))
        for page in [parsed(path.read_text(encoding="utf-8"))]
        for problem in figures_without_words(page) + code_names_in_tables(page) + limits_broken(page)
    ]
