"""Check that the page on architecture shows the code as it is."""

import ast
import re
from pathlib import Path

import pytest

from tools.make_architecture import Room, drawing, read_rooms, tables

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def rooms():
    return read_rooms(REPOSITORY)


def source_files():
    """Map the dotted name of every module of the drawn packages to its parsed source."""
    found = {}
    for folder in ("rcblib", "worlds", "benchmarks"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def room_of(module):
    return ".".join(module.split(".")[:2]) if module.startswith("rcblib.") else module.split(".")[0]


def test_the_tables_are_those_of_the_code(rooms):
    sources = source_files()
    shown = {}
    for part in tables(rooms).split(":::{dropdown} ")[1:]:
        title, said = re.match(r"`(\w+)`: (.+)", part).groups()
        used = re.findall(r"`(\w+)`", re.search(r"^Uses (.*)\.$", part, re.MULTILINE).group(1))
        files = dict(re.findall(r"^\| \{py:mod\}`\S+ <([\w.]+)>` \| (.+) \|$", part, re.MULTILINE))
        shown[title] = (said, set(used), files)

    documented = {name: (ast.get_docstring(tree) or "").split("\n")[0] for name, tree in sources.items()}
    titles = {name: name.removeprefix("rcblib.") for name in map(room_of, sources) if name != "rcblib"}
    packages = {name.rpartition(".")[0] for name in sources}
    uses = {title: set() for title in titles.values()}
    for name, tree in sources.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            rooms_used = {titles[room_of(other)] for other in names if room_of(other) in titles}
            if name != "rcblib":
                uses[titles[room_of(name)]] |= rooms_used - {titles[room_of(name)]}
    for room, title in titles.items():
        files = {
            name: text
            for name, text in documented.items()
            if name.startswith(f"{room}.") and name not in packages and "._" not in name
        }
        assert shown[title] == (documented[room], uses[title], files)
    assert set(shown) == set(titles.values())


def test_every_file_of_a_room_says_what_it_does(rooms):
    assert all(room.purpose and all(room.files.values()) for room in rooms)


def test_rooms_come_in_the_order_of_the_flow(rooms):
    order = [room.title for room in rooms]
    assert all(
        order.index(room.title) > order.index(used.removeprefix("rcblib."))
        for room in rooms
        for used in room.uses
    )


def test_the_drawing_shows_every_room_file_and_import(rooms):
    svg = drawing(rooms)
    assert svg.count('class="box"') == len(rooms)
    assert svg.count('class="chip"') == sum(len(room.files) for room in rooms)
    assert svg.count('class="arc ') == sum(len(room.uses) for room in rooms)


def test_an_arc_is_strong_where_no_other_room_lies_between():
    a, b = Room("rcblib.a", "", {}, ()), Room("rcblib.b", "", {}, ("rcblib.a",))
    c = Room("rcblib.c", "Hold <things>.", {"rcblib.c.x": "Do & undo."}, ("rcblib.a", "rcblib.b"))
    svg = drawing([a, b, c])
    assert re.findall(r'class="arc (a\d a\d)( direct)?"', svg) == [
        ("a0 a1", " direct"),
        ("a0 a2", ""),
        ("a1 a2", " direct"),
    ]
    assert "Hold &lt;things&gt;." in svg and "Do &amp; undo." in svg


def test_the_page_names_rooms_that_exist(rooms):
    page = (REPOSITORY / "book" / "architecture.md").read_text(encoding="utf-8")
    flow = page[: page.index("## From stages to pages")]
    known = {room.title for room in rooms} | {
        "pyproject.toml",
        "make lint",
        "transformers",
        "generate",
        "with",
        "ValueError",
    }
    assert set(re.findall(r"(?<!`)`([^`\n{}]+)`(?!`)", flow)) <= known
