"""Check that a built site loads nothing from other hosts, so that it can be read offline.

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

_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "embed": "src"}
_LOADING_RELATIONS = {"stylesheet", "preload", "modulepreload", "icon", "shortcut", "manifest", "preconnect"}
_EXTERNAL = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_STYLE_ADDRESS = re.compile(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)
_CODE_ADDRESS = re.compile(r"(?:https?:)?//[^'\"`\s<>]+\.m?js\b|https://(?:cdn|unpkg|esm)[^'\"`\s<>]*")
# Loaded only after a reader presses the button that makes code cells live.
_ON_DEMAND = ("https://unpkg.com/thebe@",)


class _Page(HTMLParser):
    """Collect the addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        address = values.get(_LOADING.get(tag, ""))
        if tag == "link" and _LOADING_RELATIONS & set((values.get("rel") or "").split()):
            address = values.get("href")
        if address and _EXTERNAL.match(address.strip()):
            self.loaded.append(address)
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


def main(arguments: list[str]) -> int:
    """Print what the site loads from other hosts; return 1 if there is anything."""
    parser = OneLineParser(prog="check_site", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the built site")
    folder = parser.parse_args(arguments).folder
    n_pages = sum(1 for _ in folder.rglob("*.html"))
    if not n_pages:
        print(f"{folder}: holds no pages")
        return 1
    problems = check_site(folder)
    print("\n".join(problems) if problems else f"{n_pages} pages load nothing from other hosts")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
