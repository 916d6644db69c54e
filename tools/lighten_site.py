"""Take out of a built site what no page needs, so that it is small to keep and quick to open.

Themes and MathJax bring files for every use: source maps, bundles of MathJax beside the one that pages load, icons by
the thousand. Left are the files that pages name and what these load; icons and their letters are those that pages show.
Pictures, on pages and inside notebooks, get a palette of 256 colours, which figures hardly show.

    python -m tools.lighten_site book/_build/html [--jobs N]
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import PIL.Image
from fontTools import subset
from fontTools.ttLib import TTFont

from rcblib.runs.command import OneLineParser
from rcblib.runs.files import atomic_path

logging.getLogger("fontTools").setLevel(logging.WARNING)

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "book/_build/light"
"""Where pictures are kept that were made lighter, by digest: most are those of the build before."""

UNUSED = (
    "_static/**/*.map",
    "_static/locales/**/*",
    "_static/scripts/fontawesome.js*",
    "_static/vendor/fontawesome/webfonts/*.woff2",
    "_static/mathjax/sre/**/*",
    "_static/mathjax/a11y/**/*",
    "_static/mathjax/adaptors/**/*",
    "_static/mathjax/ui/**/*",
    "_static/mathjax/input/mml*",
    "_static/mathjax/input/mml/**/*",
    "_static/mathjax/input/asciimath*",
    "_static/mathjax/input/tex*.js",
    "_static/mathjax/output/svg*",
    "_static/mathjax/output/svg/**/*",
    "_static/mathjax/output/chtml.js",
)
"""Files that no page loads: icons are set by styles, and MathJax's bundle holds its parts."""

BUNDLE = "tex-chtml.js"
"""The one of MathJax's files beside its folders that pages load, as ``mathjax_path`` of the configuration says."""

MANY_COLOURS = 20_000
"""A picture of more is a photograph, whose colours are mixed by dots of neighbouring ones."""

_DROPPED_SCRIPT = re.compile(r'\s*<script[^>]*src="[^"]*scripts/fontawesome\.js[^"]*"[^>]*></script>')
_SEARCH_SCRIPT = re.compile(
    r'\s*<script[^>]*src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"[^>]*></script>'
)
_MATHJAX_SCRIPT = re.compile(r'\s*<script[^>]*src="[^"]*mathjax/[^"]*"[^>]*></script>')
_CELL = re.compile(r"(?s)<td\b.*?</td>")
_CODE = re.compile(r'<span class="pre">[^<]*_(?:[^<]|<wbr>)*</span>')
_JOINT = re.compile(r"(?<=[A-Za-z0-9])_(?=[A-Za-z0-9])")
_ICON = re.compile(r'([^{}]+)\{content:"\\([0-9a-f]+)"\}')
_PACKED_FONT = re.compile(r'url\([^)]*\.woff2\)\s*format\("woff2"\),')
_ICON_NAME = re.compile(r"\bfa-[a-z0-9-]+")


def lighten_page(text: str, name: str) -> str:
    """Take out the scripts that a page does not use, and let names of code in tables break behind an underscore."""
    text = _CELL.sub(lambda cell: _CODE.sub(lambda code: _JOINT.sub("_<wbr>", code[0]), cell[0]), text)
    text = _DROPPED_SCRIPT.sub("", text)
    if name != "search.html":  # other pages send there
        text = _SEARCH_SCRIPT.sub("", text)
    return text if 'class="math' in text else _MATHJAX_SCRIPT.sub("", text)


def light_picture(data: bytes) -> bytes:
    """Return a PNG with a palette, or what was given where that is no smaller."""
    kept = KEPT / f"{hashlib.sha256(data).hexdigest()[:24]}.png"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(kept) as unfinished:  # another job may be at the same picture
            unfinished.write_bytes(_with_palette(data))
    return kept.read_bytes()


def _with_palette(data: bytes) -> bytes:
    with PIL.Image.open(io.BytesIO(data)) as picture:
        if picture.mode not in ("RGB", "RGBA"):
            return data
        if picture.mode == "RGBA" and picture.getextrema()[3] == (255, 255):
            picture = picture.convert("RGB")
        if picture.mode == "RGBA":
            small = picture.quantize(256, PIL.Image.Quantize.FASTOCTREE, dither=PIL.Image.Dither.NONE)
        else:
            is_photo = picture.getcolors(MANY_COLOURS) is None
            dither = PIL.Image.Dither.FLOYDSTEINBERG if is_photo else PIL.Image.Dither.NONE
            palette = picture.quantize(256, PIL.Image.Quantize.MEDIANCUT)
            small = picture.quantize(palette=palette, dither=dither)
    written = io.BytesIO()
    small.save(written, "PNG", optimize=True)
    return min(written.getvalue(), data, key=len)


def light_notebook(text: str) -> str:
    """Make the pictures inside a notebook lighter."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                given = base64.b64decode("".join(picture))
                output["data"]["image/png"] = base64.b64encode(light_picture(given)).decode()
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def lighten_icons(folder: Path) -> None:
    """Leave in styles and fonts of the theme the icons that a page, a script or a style of the book's names."""
    used: set[str] = set()
    for path in [
        *folder.rglob("*.html"),
        *(folder / "_static").glob("**/*.js"),
        *(folder / "_static").glob("*.css"),
    ]:
        if "mathjax" not in path.parts:
            used |= set(_ICON_NAME.findall(path.read_text(encoding="utf-8")))
    letters: set[int] = set()

    def rule(found: re.Match[str]) -> str:
        names = set(_ICON_NAME.findall(found[1]))
        if names and not names & used:
            return ""
        letters.add(int(found[2], 16))
        return found[0]

    for path in (folder / "_static/styles").glob("*.css"):
        text = _PACKED_FONT.sub("", path.read_text(encoding="utf-8"))
        letters |= {int(code, 16) for code in re.findall(r'"\\([0-9a-f]{4})"', _ICON.sub("", text))}
        path.write_text(_ICON.sub(rule, text), encoding="utf-8")
    for path in (folder / "_static/vendor/fontawesome/webfonts").glob("*.ttf"):
        font, maker = TTFont(path), subset.Subsetter()
        maker.populate(unicodes=letters)
        maker.subset(font)
        font.save(path)


def lighten(folder: Path, jobs: int = 1) -> None:
    """Make a built site lighter, in place, by some processes; what is light already stays as it is."""
    for pattern in UNUSED:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink()
    for path in (folder / "_static/mathjax").glob("*.js"):
        if path.name != BUNDLE:
            path.unlink()
    for path in folder.rglob("*.html"):
        _rewrite(path, functools.partial(lighten_page, name=path.relative_to(folder).as_posix()))
    pictured = sorted(
        [*folder.rglob("*.ipynb"), *folder.rglob("*.png")], key=lambda path: -path.stat().st_size
    )
    if jobs == 1:
        for path in pictured:
            _lighten_pictures(path)
    else:
        with ProcessPoolExecutor(jobs) as processes:
            list(processes.map(_lighten_pictures, pictured))
    lighten_icons(folder)


def _lighten_pictures(path: Path) -> None:
    """Make a picture, or those inside a notebook, lighter."""
    if path.suffix == ".png":
        path.write_bytes(light_picture(path.read_bytes()))
    else:
        _rewrite(path, light_notebook)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text(encoding="utf-8")
    changed = change(text)
    if changed != text:
        path.write_text(changed, encoding="utf-8")


def n_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(arguments: list[str]) -> int:
    """Make the site lighter and say how much."""
    parser = OneLineParser(prog="lighten_site", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the built site")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    options = parser.parse_args(arguments)
    folder = options.folder
    before = n_bytes(folder)
    lighten(folder, options.jobs)
    print(
        f"the site takes {n_bytes(folder) / 1e6:.1f} MB, {before / 1e6:.1f} MB before what no page needs was taken out"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
