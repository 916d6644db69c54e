"""Open every page of the built site in a browser, in both themes and at three widths, and say what is wrong with it.

A page is at fault where axe finds something serious, where the console says an error or a warning, where something is
asked of another host, where part of it is wider than its column and cannot be scrolled, where a formula or a toggle
without a name stands in the tab order; the search, where pages of the API come first for a word of the book; the start
page and the explorer, where they load more than they may; the page of an experiment, where it is long, or its first
figure far down.

    python -m tools.check_pages [book/_build/html] [--only PATTERN]      minutes; needs Chromium
"""

from __future__ import annotations

import shutil
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rcblib.runs.command import OneLineParser
from tools.check_site import MOST_BYTES_AT_FIRST
from tools.page_limits import FIRST_FIGURE, MOST_SCREENS

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 768, 1280)
HEIGHT = 900
THEMES = ("light", "dark")
MOVED = '<meta http-equiv="refresh"'
"""Of a page that only leads on."""
SERIOUS = ("serious", "critical")
SEARCHED = ("codebook", "redundancy", "pruner")
"""Words that both pages and the API hold."""

# What sticks out of the page's column, unless a box around it scrolls.
_WIDE = """() => {
  const column = document.querySelector(".bd-article") ?? document.body, edge = column.getBoundingClientRect();
  const boxed = (node) => {
    for (let own = node.parentElement; own && own !== column.parentElement; own = own.parentElement)
      if (getComputedStyle(own).overflowX !== "visible") return true;
    return false;
  };
  const out = [...column.querySelectorAll("*")].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && box.right > edge.right + 1 && !boxed(node);
  });
  const page = document.documentElement.scrollWidth > innerWidth ? ["the page"] : [];
  return [...page, ...out.slice(0, 2).map((node) => node.outerHTML.slice(0, 90))];
}"""
_NAMELESS = """() => [...document.querySelectorAll("mjx-container[tabindex='0'], .toctree-toggle")].filter((node) =>
  node.tagName === "MJX-CONTAINER" || !node.closest("summary").hasAttribute("aria-label"))
  .slice(0, 1).map((node) => node.outerHTML.slice(0, 90))"""

# Height of the article and top of its first figure, in pixels.
_EXTENT = """() => {
  const figure = [...document.querySelectorAll("article img.drawn")].find((image) => image.checkVisibility());
  const top = figure ? figure.getBoundingClientRect().top + scrollY : 0;
  return [document.querySelector("article").getBoundingClientRect().height, top];
}"""


def problems_of(page: Any, axe: Any, path: Path, folder: Path) -> Iterator[str]:
    """Open one page in each theme and at each width; yield its problems, a line each."""
    told: list[str] = []
    listeners = {
        "console": lambda said: told.append(said.text) if said.type in ("error", "warning") else None,
        "pageerror": lambda error: told.append(str(error)),
        "request": lambda asked: told.append(f"asks {asked.url}") if asked.url.startswith("http") else None,
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    page.set_viewport_size({"width": WIDTHS[-1], "height": HEIGHT})
    page.goto(path.as_uri())
    page.wait_for_function("!window.MathJax?.startup || MathJax.startup.promise.then(() => true)")
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        page.evaluate(
            "theme => { const own = document.documentElement.dataset; if (own.theme) own.theme = theme; }",
            theme,
        )
        found = axe.run(page, options={"preload": False, "resultTypes": ["violations"]}).response
        for violation in found["violations"]:
            if violation["impact"] in SERIOUS:
                nodes = violation["nodes"]
                yield f"{violation['id']} in {theme}, {len(nodes)} times, as {nodes[0]['html'][:110]}"
    yield from (f"in the tab order without a name or use: {html}" for html in page.evaluate(_NAMELESS))
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": HEIGHT})
        yield from (f"wider than its column at {width}: {html}" for html in page.evaluate(_WIDE))
    if path.parent.name == "notebooks":
        height, top = (pixels / HEIGHT for pixels in page.evaluate(_EXTENT))
        if height > MOST_SCREENS:
            yield f"{height:.1f} screens high; accepted: {MOST_SCREENS}"
        if top > FIRST_FIGURE:
            yield f"the first figure begins after {top:.1f} screens; accepted: {FIRST_FIGURE}"
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    yield from dict.fromkeys(told)


def bytes_at_first(browser: Any, address: str) -> int:
    """Return the bytes of all files that a page loads by itself."""
    page, files = browser.new_page(), set()
    page.on("request", lambda asked: files.add(urllib.parse.urlparse(asked.url).path))
    page.goto(address)
    page.wait_for_timeout(2000)
    page.close()
    return sum(Path(file).stat().st_size for file in map(urllib.parse.unquote, files) if Path(file).is_file())


def first_found(page: Any, folder: Path, word: str) -> list[str]:
    """Return the first five pages that the site's search finds."""
    page.goto(f"{(folder / 'search.html').as_uri()}?q={word}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_timeout(500)
    found = page.locator("#search-results li a").evaluate_all("own => own.map((a) => a.getAttribute('href'))")
    return found[:5]


def check_pages(folder: Path, only: str = "**/*.html") -> list[str]:
    """Return one line for each problem of the pages that a pattern names; of the whole site where it names all."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        return ["no Chromium is installed"]
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page, axe = browser.new_page(reduced_motion="reduce"), Axe()
        for path in sorted(folder.glob(only)):
            text = path.read_text(encoding="utf-8")
            if MOVED in text or "<html" not in text:  # leads on, or is a part of other pages
                continue
            name = path.relative_to(folder)
            problems += [f"{name}: {problem}" for problem in problems_of(page, axe, path, folder)]
        for word in SEARCHED:
            api = [address for address in first_found(page, folder, word) if address.startswith("api/")]
            problems += [f"search.html: {word} finds {address} among the first five" for address in api]
        for name, most in MOST_BYTES_AT_FIRST.items():
            n_bytes = bytes_at_first(browser, (folder / name).as_uri())
            print(f"{name}: {n_bytes / 1e3:.0f} kB at first")
            if n_bytes > most:
                problems.append(f"{name}: loads {n_bytes} bytes at first; accepted: {most}")
        browser.close()
    return problems


def main(arguments: list[str]) -> int:
    """Print what is wrong; return 1 if anything is."""
    parser = OneLineParser(prog="check_pages", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=ROOT / "book/_build/html", help="the built site"
    )
    parser.add_argument("--only", default="**/*.html", help="glob pattern of the pages")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    n_pages = sum(1 for _ in folder.glob(options.only))
    if not n_pages:
        print(f"{options.folder}: holds no pages {options.only}")
        return 1
    problems = check_pages(folder, options.only)
    print("\n".join(problems) or f"{n_pages} pages in two themes at three widths: nothing is wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
