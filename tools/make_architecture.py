"""Draw the house as it is for the page on architecture: rooms, files, and who uses whom, from the import graph.

Rooms come in the order of the contract ``rooms`` of import-linter in pyproject.toml, then the packages that stand on
the library; purposes are the first lines of docstrings. The page ``book/architecture.md`` includes what is written to
``book/_build/architecture/``.

    python -m tools.make_architecture
"""

from __future__ import annotations

import ast
import sys
import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, ABOVE = "rcblib", ("worlds", "benchmarks")

WIDTH, BOX, PADDING, GAP = 760, 600, 14, 12
LINE, CHIP, LETTER = 17, 23, 6.7
"""Pixels: a line of text, a row of files, a letter of a file's name."""


@dataclass(frozen=True)
class Room:
    """Hold a room, and what it uses.

    Attributes
    ----------
    name : str
        Dotted name of its package or module.
    purpose : str
        First line of its docstring.
    files : dict
        Dotted name of each of its modules to the first line of its docstring, private ones and commands left out;
        empty for a room of one file.
    uses : tuple of str
        Names of the rooms that it imports from.
    """

    name: str
    purpose: str
    files: dict[str, str]
    uses: tuple[str, ...]

    @property
    def title(self) -> str:
        """Return what it is called on the page."""
        return self.name.removeprefix(f"{LIBRARY}.")

    @property
    def address(self) -> str:
        """Return where the book describes it; commands have no page of the API."""
        if self.title == "__main__":
            return "laptop.html"
        return f"api/{self.name if self.files else LIBRARY}.html#module-{self.name}"

    def label(self, module: str) -> str:
        """Return the path of one of its files below it, without the suffix."""
        return module.removeprefix(f"{self.name}.").replace(".", "/")


def purpose(root: Path, module: str) -> str:
    """Return the first line of a module's docstring."""
    path = root.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def read_rooms(root: Path) -> list[Room]:
    """Read the rooms of the library, from what uses nothing to what uses most, and what stands on it."""
    rules = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in rules["contracts"] if contract.get("id") == "rooms")
    order = [name.strip(" ()") for layer in reversed(layers) for name in layer.replace(":", "|").split("|")]
    graph = grimp.build_graph(LIBRARY, *ABOVE, cache_dir=None)
    names = [f"{LIBRARY}.{name}" for name in order if f"{LIBRARY}.{name}" in graph.modules] + list(ABOVE)
    home = {m: name for name in names for m in (name, *graph.find_descendants(name))}
    rooms = []
    for name in names:
        modules = [module for module in home if home[module] == name]
        uses = {
            home.get(used) for module in modules for used in graph.find_modules_directly_imported_by(module)
        }
        files = sorted(
            m for m in graph.find_descendants(name) if not graph.find_children(m) and "._" not in m
        )
        rooms.append(
            Room(
                name,
                purpose(root, name),
                {module: purpose(root, module) for module in files},
                tuple(other for other in names if other in uses and other != name),
            )
        )
    return rooms


def tables(rooms: Sequence[Room]) -> str:
    """Write, room by room, what it uses and what its files hold, as Markdown."""
    titles = {room.name: room.title for room in rooms}
    parts = []
    for room in rooms:
        used = ", ".join(f"`{titles[name]}`" for name in room.uses) or "nothing"
        lines = [f":::{{dropdown}} `{room.title}`: {room.purpose}", f"Uses {used}.", ""]
        if room.files:
            lines += ["| file | what it does |", "|---|---|"]
            lines += [
                f"| {{py:mod}}`{room.label(name)} <{name}>` | {text} |" for name, text in room.files.items()
            ]
        parts.append("\n".join([*lines, ":::", ""]))
    return "\n".join(parts)


def drawing(rooms: Sequence[Room]) -> str:
    """Draw the rooms one below the other, and beside them an arc from each room to every one that uses it, as SVG.

    Colours are those of the page's theme, so that one drawing serves light and dark pages. Where the pointer rests on
    a room, only its own arcs stay.
    """
    boxes, rules, tops, heights, y = [], [], {}, {}, 1
    for number, room in enumerate(rooms):
        tops[room.name] = y
        y += PADDING + LINE
        text = [_text(PADDING, y - 4, room.title, "room")]
        for line in textwrap.wrap(room.purpose.replace("`", ""), 86):
            y += LINE
            text.append(_text(PADDING, y - 4, line, "purpose"))
        inner = [f'<a href="{room.address}">{"".join(text)}</a>']
        x, y = PADDING, y + (10 if room.files else 0)
        for module, does in room.files.items():
            label = room.label(module)
            width = len(label) * LETTER + 12
            if x + width > BOX - PADDING:
                x, y = PADDING, y + CHIP
            page = module.rpartition(".")[0]
            chip = f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{CHIP - 4}" rx="4"/>'
            name = _text(x + 6, y + 13.5, label, "file")
            href = f"api/{page}.html#module-{module}"
            inner.append(f'<a class="chip" href="{href}"><title>{escape(does)}</title>{chip}{name}</a>')
            x += width + 6
        y += (CHIP if room.files else 0) + PADDING - 4
        heights[room.name] = y - tops[room.name]
        box = f'<rect class="box" x="1" y="{tops[room.name]}" width="{BOX}" height="{heights[room.name]}" rx="8"/>'
        boxes.append(f'<g class="r{number}">{box}{"".join(inner)}</g>')
        rules.append(
            f".house:has(.r{number}:hover) .arc {{ opacity: 0.05 }}\n"
            f".house:has(.r{number}:hover) .a{number} {{ opacity: 1 }}"
        )
        y += GAP
    return _SVG.format(
        width=WIDTH,
        height=y,
        rules="\n".join(rules),
        arcs=_arcs(rooms, tops, heights),
        boxes="\n".join(boxes),
    )


def _arcs(rooms: Sequence[Room], tops: dict[str, int], heights: dict[str, int]) -> str:
    """Draw an arc for every pair of rooms that use each other; strong where no other room lies between them."""
    number = {room.name: i for i, room in enumerate(rooms)}
    uses = {room.name: set(room.uses) for room in rooms}
    further = {name: {name} for name in uses}  # all that a room uses through others
    for room in rooms:
        for name in room.uses:
            further[room.name] |= further.get(name, set())
    users = {name: [room.name for room in rooms if name in room.uses] for name in uses}
    arcs = []
    for room in rooms:
        for i, name in enumerate(room.uses):
            # Arcs leave the lower half of a box in order, and arrive at the upper half of another.
            leaves = users[name].index(room.name)
            start = tops[name] + heights[name] * (1 - (leaves + 1) / (2 * len(users[name]) + 2))
            end = tops[room.name] + heights[room.name] * (i + 1) / (2 * len(room.uses) + 2)
            reach = BOX + 24 + (WIDTH - BOX - 34) * ((end - start) / (tops[rooms[-1].name])) ** 0.55 * 1.25
            direct = not any(name in further[other] for other in uses[room.name] - {name})
            arcs.append(
                f'<path class="arc a{number[name]} a{number[room.name]}{" direct" if direct else ""}" '
                f'marker-end="url(#tip)" d="M{BOX + 2},{start:.1f} C{reach:.1f},{start:.1f} {reach:.1f},{end:.1f} '
                f'{BOX + 8},{end:.1f}"/>'
            )
    return "\n".join(arcs)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


_SVG = """\
<svg class="house" viewBox="0 0 {width} {height}" role="group" aria-label="The rooms of the code and who uses whom">
<style>
.house {{ width: 100%; height: auto; font-family: var(--pst-font-family-base, sans-serif); }}
.house a {{ text-decoration: none; }}
.house text {{ fill: var(--pst-color-text-base, #222); }}
.house .room {{ font: 600 15px var(--pst-font-family-monospace, monospace); }}
.house .purpose {{ font-size: 12.5px; fill: var(--pst-color-text-muted, #555); }}
.house .file {{ font: 11px var(--pst-font-family-monospace, monospace); }}
.house .box {{ fill: var(--pst-color-surface, #f4f4f6); stroke: var(--pst-color-border, #ccc); }}
.house .chip rect {{ fill: var(--pst-color-background, #fff); stroke: var(--pst-color-border, #ccc); }}
.house g:hover > .box, .house .chip:hover rect {{ stroke: var(--pst-color-primary, #0a7d91); }}
.house a:hover .room, .house .chip:hover text {{ fill: var(--pst-color-primary, #0a7d91); }}
.house .arc {{ fill: none; stroke: var(--pst-color-text-muted, #777); stroke-width: 1; opacity: 0.16; }}
.house .direct {{ stroke: var(--pst-color-primary, #0a7d91); stroke-width: 1.8; opacity: 0.9; }}
.house marker path {{ fill: context-stroke; }}
{rules}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse"
 orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker></defs>
{arcs}
{boxes}
</svg>
"""


def main() -> int:
    """Write the drawing and the tables."""
    rooms = read_rooms(ROOT)
    folder = ROOT / "book" / "_build" / "architecture"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "house.svg").write_text(f'<div class="wide">{drawing(rooms)}</div>\n', encoding="utf-8")
    (folder / "rooms.md").write_text(tables(rooms), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
