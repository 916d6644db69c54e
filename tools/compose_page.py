"""Compose the page of an experiment from the executed copies of all its runs, in reading order.

A tag of a cell of text names its place on the page (`PLACES`); the cells after it stay there until another one is
named. The page follows the places, and inside a place the notebook's order. What is the same in all runs stands once;
what differs stands in tabs, a model each, which change together. Code is folded, and so is what a cell of text tagged
``fold`` begins; parameters, versions and what was printed are in the appendix. The page is one cell of MyST Markdown
with pictures beside it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import nbformat

from rcblib.reading.labels import table_in_words
from rcblib.records import ParameterError

PLACES = ("answer", "reading", "method", "data", "experiment", "limits", "appendix")
"""Where a cell stands on the page, from its top; told by a tag of the cell."""

FOLD = "fold"
"""Tag of a cell of text whose heading unfolds it and the code that follows."""

LONG_TABLE = 30
"""Rows from which on a table scrolls by itself."""

COMMANDS, SET_UP, LOG = "Run it yourself", "Parameters, imports and versions", "What the runs printed"
BESIDE = "Beside the record of the embedded model"
"""Titles in the appendix; the last of a cell of code that alone of its neighbours stands there."""

Cell = nbformat.NotebookNode


@dataclass(frozen=True)
class Run:
    """Hold one run of a notebook.

    Attributes
    ----------
    name : str
        Name of the run: of its executed copy.
    model : str
        Name of the model, which tabs of all pages go by.
    title : str
        What the tab is called.
    cells : list of cells
        Executed, with today's words; what papermill injected is left out.
    origin : str
        What was computed and what was recorded; empty where nothing is read.
    command : str
        Runs the notebook with all parameters of this run.
    """

    name: str
    model: str
    title: str
    cells: list[Cell]
    origin: str = ""
    command: str = ""


@dataclass
class Part:
    """Hold what stands together, folded under a title or not: blocks of words or of code, a text for each run."""

    place: str
    title: str = ""
    blocks: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def add(self, texts: Sequence[str], kind: str = "words") -> None:
        """Add a block, unless it is empty for every run."""
        if any(texts):
            self.blocks.append((kind, tuple(texts)))


@dataclass(frozen=True)
class Page:
    """Hold the text of a page, and its pictures by the file that the text names."""

    text: str
    pictures: dict[str, bytes]


def compose(name: str, runs: Sequence[Run]) -> Page:
    """Compose the page of one notebook; the first run leads, and has the first tab.

    Raises
    ------
    ParameterError
        If the runs have different cells, or a text is to be folded that has no heading.
    """
    if len({tuple(cell.get("id") for cell in run.cells) for run in runs}) > 1:
        raise ParameterError("runs", f"different cells of {name}", "executed copies of one notebook")
    pictures: dict[str, bytes] = {}
    numbers = [_glued(run.cells) for run in runs]
    printed: list[list[str]] = [[] for _ in runs]
    set_up, parts = Part("appendix", SET_UP), [Part("answer")]
    set_up_at = _set_up(runs[0].cells)
    for number, cells in enumerate(zip(*(run.cells for run in runs), strict=True)):
        first, part = cells[0], parts[-1]
        place = next((tag for tag in _tags(first) if tag in PLACES), part.place)
        if first.cell_type == "markdown":
            title, source = "", first.source.strip()
            if place == "appendix" or FOLD in _tags(first):
                title, source = _heading(source)
            parts.append(Part(place, title))
            for texts in _paragraphs([_with_numbers(source, values) for values in numbers]):
                parts[-1].add(texts)
            continue
        if number in set_up_at:
            part = set_up
        elif place != part.place:  # this cell only
            part = Part(place, BESIDE if place == "appendix" else "")
            parts += [part, Part(parts[-1].place, parts[-1].title)]
        told = [
            _outputs(cell, f"{name}/{cell.id}-{run.model}", pictures, bool(run.origin))
            for cell, run in zip(cells, runs, strict=True)
        ]
        part.add([shown for shown, _ in told])
        part.add([first.source.strip()] * len(runs), "code")
        for own, (_, text) in zip(printed, told, strict=True):
            own.append(text)
    leading = [part for part in parts if part.place == "answer" and not part.title]
    leading[-1].add([f"*{run.origin}*" if run.origin else "" for run in runs])
    commands = next((part for part in parts if part.title == COMMANDS), Part("appendix", COMMANDS))
    commands.add([_own_run(run) for run in runs])
    log = Part("appendix", LOG)
    log.add([_fenced("text", "\n".join(filter(None, own))) for own in printed])
    own = [] if commands in parts else [commands]
    return Page(_written([*own, *parts, set_up, log], runs), pictures)


def _written(parts: list[Part], runs: Sequence[Run]) -> str:
    """Write parts in the order of their places; neighbours of one title are one."""
    lines: list[str] = []
    ordered = sorted((part for part in parts if part.blocks), key=lambda part: PLACES.index(part.place))
    for place, of_place in groupby(ordered, key=lambda part: part.place):
        if place == "appendix":
            lines.append("## Appendix")
        for title, same in groupby(of_place, key=lambda part: part.title):
            blocks = [block for part in same for block in part.blocks]
            if place == "answer" and len(runs) > 1:  # one set of tabs, below what is the same
                blocks.sort(key=lambda block: (block[0] == "code", len(set(block[1])) > 1))
            text = _blocks(blocks, runs)
            lines.append(_folded(title, text) if title else text)
    return "\n\n".join(lines) + "\n"


def _blocks(blocks: Sequence[tuple[str, tuple[str, ...]]], runs: Sequence[Run]) -> str:
    """Write blocks: neighbours that differ in one set of tabs, and their code, which is folded, behind them."""
    lines: list[str] = []
    differing: list[tuple[str, ...]] = []
    code: list[str] = []

    def flush() -> None:
        if differing:
            lines.append(
                _tabs(runs, ["\n\n".join(filter(None, own)) for own in zip(*differing, strict=True)])
            )
        if code:
            lines.append(_folded("Code", "\n\n".join(_fenced("python", text) for text in code), "code"))
        differing.clear()
        code.clear()

    for kind, texts in blocks:
        if kind == "code":
            code.append(texts[0])
        elif len(set(texts)) > 1:
            differing.append(texts)
        else:
            if differing or code:
                flush()
            lines.append(texts[0])
    flush()
    return "\n\n".join(lines)


def _tabs(runs: Sequence[Run], texts: Sequence[str]) -> str:
    """Write a tab for each run; all tabs of a site that belong to one model are chosen together."""
    items = [
        f"::::::{{tab-item}} {run.title}\n:sync: {run.model}\n\n{text or 'Not part of this run.'}\n\n::::::"
        for run, text in zip(runs, texts, strict=True)
    ]
    return ":::::::{tab-set}\n:sync-group: model\n\n" + "\n\n".join(items) + "\n\n:::::::"


def _folded(title: str, text: str, kind: str = "more") -> str:
    return (
        f'<details class="folded-{kind}"><summary>{title}</summary>\n\n{text}\n\n</details>' if text else ""
    )


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```" if text.strip() else ""


def _own_run(run: Run) -> str:
    """Write the command of a run, its executed copy, and a line that `tools.book_extension` makes a link of."""
    return (
        f"{_fenced('bash', run.command)}\n\n% opens {run.name}\n\n"
        f"{{download}}`The executed notebook, with code and all it printed <../../results/executed/{run.name}.ipynb>`"
    )


def _paragraphs(texts: list[str]) -> list[tuple[str, ...]]:
    """Return words of the runs, each paragraph by itself where numbers in them differ."""
    if len(set(texts)) == 1:
        return [tuple(texts)]
    return list(zip(*(re.split(r"\n\n+", text) for text in texts), strict=True))


def _tags(cell: Cell) -> list[str]:
    return cell.metadata.get("tags", [])


def _set_up(cells: list[Cell]) -> set[int]:
    """Return where the parameters are, and the imports behind them."""
    found = [number for number, cell in enumerate(cells) if "parameters" in _tags(cell)]
    return {*found, *(number + 1 for number in found)}


def _heading(source: str) -> tuple[str, str]:
    """Part a text's heading from the rest."""
    found = re.match(r"#+ (.+)\n*", source)
    if not found:
        raise ParameterError("cell of text to fold", source.split("\n")[0], "one that begins with a heading")
    return found[1], source[found.end() :]


def _glued(cells: list[Cell]) -> dict[str, str]:
    """Return the values that a notebook gave names to."""
    values = {}
    for output in (output for cell in cells if cell.cell_type == "code" for output in cell.outputs):
        name = output.get("metadata", {}).get("scrapbook", {}).get("name", "")
        for data in output.get("data", {}).values() if name else ():
            values[name.removeprefix("application/papermill.record/")] = str(data).strip("'\"")
    return values


def _with_numbers(source: str, values: dict[str, str]) -> str:
    return re.sub(r"\{glue:text\}`(\w+)`", lambda found: _whole_intervals(values[found[1]]), source)


def _whole_intervals(text: str) -> str:
    """Let no line end inside an interval."""
    return _INTERVAL.sub("[\\1,\u00a0\\2]", text)


def _outputs(cell: Cell, path: str, pictures: dict[str, bytes], has_origin: bool = False) -> tuple[str, str]:
    """Return what of a cell's outputs is shown, and what goes to the appendix: printed lines besides something else.

    Where the page says by itself what was recorded, printed lines that do are for the appendix alone.
    """
    shown = [text for text in (_output(cell, output, path, pictures) for output in cell.outputs) if text]
    streams = [output for output in cell.outputs if output.output_type == "stream"]
    printed = "".join(str(output.text) for output in streams if output.name == "stdout")
    printed = _COLOURS.sub("", printed).strip()
    if shown or "scroll-output" in _tags(cell):
        return "\n\n".join(shown), printed
    lines = [line for line in printed.split("\n") if not (has_origin and _ORIGIN.match(line))]
    return _fenced("text", "\n".join(lines)), printed if len(lines) < len(printed.split("\n")) else ""


def _output(cell: Cell, output: Any, path: str, pictures: dict[str, bytes]) -> str:
    """Write one output as Markdown, and keep its picture."""
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
    for kind, write in _WRITERS.items():
        if kind in data:
            if kind == "image/png":
                file = f"{path}-{sum(other.startswith(path) for other in pictures)}.png"
                pictures[file] = base64.b64decode(data[kind])
                return _picture(cell, output, file)
            return write(data[kind])
    return ""


def _picture(cell: Cell, output: Any, file: str) -> str:
    """Write a picture with its caption, and as alternative text what `rcblib.notebook.show` found to say of it."""
    caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
    alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
    options = (
        f":class: drawn\n:loading: lazy\n{f':alt: {json.dumps(alt, ensure_ascii=False)}' if alt else ''}\n"
    )
    return (
        f"```{{figure}} {file}\n{options}\n{caption}\n```"
        if caption
        else f"```{{image}} {file}\n{options}```"
    )


def _table(html: str) -> str:
    """Write HTML with the classes that the style sheet knows outputs by.

    A table is in words, with one row of heads, without a column that only counts its rows, and with numbers of the
    digits that are read; a long one scrolls.
    """
    shown = _without_counts(_one_head(html.strip()))
    shown = _whole_intervals(
        _SIX_DIGITS.sub(lambda cell: f"{cell[1]}{float(cell[2]):.4g}<", table_in_words(shown))
    )
    shown = _CODE.sub(r"<code>\1</code>", shown)
    kind = "output text_html long" if shown.count("<tr") > LONG_TABLE else "output text_html"
    inside = f'<div class="cell_output"><div class="{kind}">\n{shown}\n</div></div>'
    return f"```{{raw}} html\n{inside}\n```"


def _without_counts(html: str) -> str:
    """Leave out the column that counts a table's rows: without a name, and of whole numbers."""
    head, *rows = html.split("<tr")[1:] or [""]
    heads = [found for row in rows if (found := _HEAD.search(row))]
    first = _HEAD.search(head)
    counts = [re.fullmatch(r"\s*\d+\s*", re.sub(r"<[^>]*>", "", found[0])) for found in heads]
    is_single = all(len(_HEAD.findall(row)) == 1 for row in rows)
    if not first or not _is_blank(first[0]) or not rows or not is_single or not all(counts):
        return html
    parts = html.split("<tr")
    return "<tr".join([parts[0], *(_HEAD.sub("", part, count=1) for part in parts[1:])])


def _one_head(html: str) -> str:
    """Put the names of a table's index, which pandas writes in a row of their own, over their columns."""

    def joined(found: re.Match[str]) -> str:
        first, second = (_HEAD.findall(row) for row in found.groups()[1:])
        names = [not _is_blank(cell) for cell in second]
        if len(first) == len(second) and sum(names) == 1 and names[0] and not _is_blank(first[0]):
            low, high = (
                re.sub(r"<[^>]*>", "", row[0]).strip() for row in (second, first)
            )  # of rows, of columns
            cells = [second[0].replace(low, f"{low} ↓ {high} →"), *first[1:]]
            return f"{found[1]}{''.join(cells)}</tr></thead>"
        if len(first) != len(second) or any(
            name and not _is_blank(cell) for name, cell in zip(names, first, strict=True)
        ):
            return found[0]
        cells = [low if name else high for name, high, low in zip(names, first, second, strict=True)]
        return f"{found[1]}{''.join(cells)}</tr></thead>"

    return _TWO_ROWS.sub(joined, html)


def _is_blank(cell: str) -> bool:
    return not re.sub(r"<[^>]*>|&nbsp;|\s", "", cell)


_HEAD = re.compile(r"(?s)<th\b.*?</th>")
_INTERVAL = re.compile(r"\[(-?[\d.]+(?:e-?\d+)?), (-?[\d.]+(?:e-?\d+)?)\]")
_SIX_DIGITS = re.compile(r"(<td\b[^>]*>)(-?\d+\.\d{6})<")
"""A number as pandas writes it where nobody says how."""
_CODE = re.compile(r"(?<=>)\s*`([^`<]+)`\s*(?=</td>)")
"""A cell as Markdown writes code."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ORIGIN = re.compile(r"(?:\w+: )?recorded: \d{4}-")
"""A printed line that says when and where a table was recorded."""
_TWO_ROWS = re.compile(
    r"(?s)(<thead>\s*<tr\b[^>]*>)((?:\s*<th\b[^>]*>[^<]*</th>)+)\s*</tr>\s*"
    r"<tr\b[^>]*>((?:\s*<th\b[^>]*>[^<]*</th>)+)\s*</tr>\s*</thead>"
)
"""A head of two rows."""

_WRITERS: dict[str, Callable[[str], str]] = {
    "text/markdown": lambda text: _whole_intervals(text.strip()),
    "image/png": str,
    "text/html": _table,
    "text/plain": lambda text: _fenced("text", text),
}
"""What a page shows of an output, the first that is there."""
