"""Check that a built site loads nothing from other hosts, so that it can be read offline, and that it is small.

The pages of experiments are held to what a reader can take in, too (`tools.page_limits`).

Links to other sites are fine; scripts, styles, images, fonts and frames must lie inside the folder. Code
inside a page counts too where it names a script or module on another host.

    python -m tools.check_site book/_build/html
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

from rcblib.runs.command import OneLineParser
from tools.page_limits import check_limits

_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "embed": "src"}
_LOADING_RELATIONS = {"stylesheet", "preload", "modulepreload", "icon", "shortcut", "manifest", "preconnect"}
_EXTERNAL = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_STYLE_ADDRESS = re.compile(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)
_CODE_ADDRESS = re.compile(r"(?:https?:)?//[^'\"`\s<>]+\.m?js\b|https://(?:cdn|unpkg|esm)[^'\"`\s<>]*")
_FONT = re.compile(r"url\(\s*['\"]?(?!data:)([^'\")]+)")
# Loaded only after a reader presses the button that makes code cells live.
_ON_DEMAND = ("https://unpkg.com/thebe@",)


MOST_BYTES = 40_000_000
"""Of the whole site."""

MOST_BYTES_AT_FIRST = {"intro.html": 1_000_000, "explorer/index.html": 300_000}
"""Of what these pages load by themselves."""


class _Page(HTMLParser):
    """Collect the addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.own: list[str] = []
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        address = values.get(_LOADING.get(tag, ""))
        if tag == "link" and _LOADING_RELATIONS & set((values.get("rel") or "").split()):
            address = values.get("href")
        if address and _EXTERNAL.match(address.strip()):
            self.loaded.append(address)
        elif address and values.get("loading") != "lazy":
            self.own.append(address)
        self.loaded += _STYLE_ADDRESS.findall(values.get("style") or "")
        if tag == "iframe" and values.get("srcdoc"):
            self.loaded += external_loads(values["srcdoc"], ".html")
        runs = (values.get("type") or "text/javascript") not in ("application/json", "text/x-thebe-config")
        self._inside = tag if tag == "style" or (tag == "script" and runs) else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.loaded += _STYLE_ADDRESS.findall(data)
        elif self._inside == "script":
            self.loaded += _CODE_ADDRESS.findall(data)


def external_loads(text: str, suffix: str) -> list[str]:
    """List the addresses on other hosts that an HTML page or a style sheet loads, without repetition."""
    if suffix == ".css":
        found = _STYLE_ADDRESS.findall(text)
    else:
        page = _Page()
        page.feed(text)
        found = page.loaded
    return [address for address in dict.fromkeys(found) if not address.startswith(_ON_DEMAND)]


def check_site(folder: Path) -> list[str]:
    """Return one line for each address that a page or style sheet of the site loads from another host."""
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css") and path.is_file():
            found = external_loads(path.read_text(encoding="utf-8"), path.suffix)
            problems += [f"{path.relative_to(folder)}: loads {address}" for address in found]
    return problems


def bytes_at_first(page: Path) -> int:
    """Return the bytes of a page and of the files that it and its styles name, without those that load late.

    What scripts load is not among them: `tools.check_pages` sees that in a browser.
    """
    parsed = _Page()
    parsed.feed(page.read_text(encoding="utf-8"))
    files = {page}
    for address in parsed.own:
        path = (page.parent / re.split("[?#]", address)[0]).resolve()
        files.add(path)
        if path.suffix == ".css" and path.is_file():
            fonts = _FONT.findall(path.read_text(encoding="utf-8"))
            files |= {(path.parent / re.split("[?#]", font)[0]).resolve() for font in fonts}
    return sum(path.stat().st_size for path in files if path.is_file())


def check_bytes(folder: Path) -> list[str]:
    """Return a line for a site, or a page of `MOST_BYTES_AT_FIRST`, that takes more than it may."""
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    problems = []
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=sizes.get).relative_to(folder)
        problems.append(
            f"the site takes {sum(sizes.values())} bytes; accepted: {MOST_BYTES}; largest: {largest}"
        )
    for name, most in MOST_BYTES_AT_FIRST.items():
        if (folder / name).is_file() and (found := bytes_at_first(folder / name)) > most:
            problems.append(f"{name}: loads {found} bytes at first; accepted: {most}")
    return problems


def main(arguments: list[str]) -> int:
    """Print what the site loads from other hosts, and where it is too large; return 1 if there is anything."""
    parser = OneLineParser(prog="check_site", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the built site")
    folder = parser.parse_args(arguments).folder
    n_pages = sum(1 for _ in folder.rglob("*.html"))
    if not n_pages:
        print(f"{folder}: holds no pages")
        return 1
    problems = check_site(folder) + check_bytes(folder) + check_limits(folder)
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    said = f"{n_pages} pages load nothing from other hosts; {n_bytes / 1e6:.1f} MB in all"
    print("\n".join(problems) if problems else said)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
