"""Print the built site as one PDF: its written pages and experiments, in the order of the table of contents.

Chromium prints page after page, equations set and folded parts opened; pypdf puts them together with an outline. Pages
of the library's docstrings stay on the site.

    python -m tools.make_pdf [--pages NAME ...] [--to FILE]      `make pdf`, after `make book`
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter

from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser, run_command

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

MARGIN = "16mm"
READY = """async () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  for (const picture of document.querySelectorAll("img")) picture.loading = "eager";
  if (window.MathJax?.startup) await window.MathJax.startup.promise;
  await document.fonts.ready;
}"""
"""What has to happen on a page before it is printed."""


def pages_of(toc: Mapping[str, Any]) -> Iterator[str]:
    """Yield the pages of a table of contents in order, without those of docstrings."""

    def below(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        for entry in entries:
            yield entry["file"]
            yield from below(entry.get("sections", []))

    yield toc["root"]
    for part in toc.get("parts", []):
        yield from (page for page in below(part["chapters"]) if not page.startswith("api/"))


def print_pages(site: Path, pages: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Print pages of a site one after the other.

    Yields
    ------
    title, pdf : str, bytes

    Raises
    ------
    ParameterError
        If there is no browser, or no such page.
    """
    site, program = site.resolve(), next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise ParameterError("browser", None, f"one of {', '.join(BROWSERS)} on the path")
    for page in pages:
        if not (site / f"{page}.html").is_file():
            raise ParameterError("page", page, f"a page of {site.name}; `make book` makes them")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        shown = browser.new_page(color_scheme="light")
        for page in pages:
            shown.goto((site / f"{page}.html").as_uri())
            shown.evaluate("document.documentElement.dataset.theme = 'light'")
            shown.evaluate(READY)
            title = shown.locator("h1").first.inner_text().rstrip("#¶ \n")
            margin = dict.fromkeys(("top", "bottom", "left", "right"), MARGIN)
            yield title, shown.pdf(format="A4", margin=margin, print_background=True)
        browser.close()


def write_pdf(site: Path, pages: Sequence[str], target: Path) -> int:
    """Write pages of a site as one PDF with an outline of their titles; return its number of sheets."""
    book = PdfWriter()
    for title, printed in print_pages(site, pages):
        at = len(book.pages)
        book.append(PdfReader(io.BytesIO(printed)), import_outline=False)
        book.add_outline_item(title, at)
    book.compress_identical_objects()
    target.parent.mkdir(parents=True, exist_ok=True)
    book.write(target)
    return len(book.pages)


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Print the site of a project."""
    parser = OneLineParser(prog="make_pdf", description=__doc__.splitlines()[0])
    parser.add_argument("--pages", nargs="+", help="names of pages; all but those of docstrings if left out")
    parser.add_argument("--to", type=Path, default=root / "book/_build/book.pdf")
    options = parser.parse_args(arguments)

    def run() -> None:
        built = root / "book/_build"
        toc = built / "toc.yml"
        if not toc.is_file():
            raise ParameterError("book/_build/toc.yml", None, "a built site; `make book` makes it")
        pages = options.pages or list(pages_of(yaml.safe_load(toc.read_text(encoding="utf-8"))))
        print(f"{options.to}: {write_pdf(built / 'html', pages, options.to)} sheets of {len(pages)} pages")

    return run_command("make_pdf", run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
