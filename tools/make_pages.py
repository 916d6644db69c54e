"""Make pages of executed notebooks, one an experiment: with today's words, and every model's results as tabs.

The words of a page are those of the notebook's source, so that changing them runs nothing. What was computed and what
recorded is told for each model: a table of this build, or a recorded one, with its date, hardware and code.
`tools.compose_page` puts all of it in reading order. Where a page of another model used to be, a short one leads on.

    python -m tools.make_pages      writes those that differ from what is there
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.files import read_json
from tools.compose_page import Run, compose
from tools.notebook_list import Notebook, NotebookList, Stage, read_notebook_list
from tools.record import PARTS

ROOT = Path(__file__).resolve().parents[1]

_KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
_MOVED = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Moved</title>
<meta http-equiv="refresh" content="0; url={address}"></head>
<body><a href="{address}">The page of this model is a tab now.</a></body></html>
"""


def name_run(notebook: nbformat.NotebookNode, run: str, listed: NotebookList) -> None:
    """Add another model's title to a copy's heading and turn links to its own copies, in place."""
    entry = listed.find(run)
    pages = {other.name: other.run for other in listed.notebooks if other.model == entry.model}

    def own_page(link: re.Match[str]) -> str:
        return f"]({pages.get(link[1], link[1])}.ipynb)"

    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown":
            continue
        always = {name: entry.parameters[name] for name in ("model", "results_folder") if entry.model}
        if given := _options(entry.settings if number == 0 else always):
            cell.source = re.sub(
                r"(papermill notebooks/\w+\.ipynb out\.ipynb)(?![^`]* -p model)",
                lambda command, given=given: f"{command[1]} {given}",
                cell.source,
            )
        if number == 0 and entry.model:
            cell.source = re.sub(r"\A(# .+)", rf"\1: {entry.title}", cell.source.lstrip("\n"), count=1)
        cell.source = re.sub(r"\]\(([a-z0-9_]+)\.ipynb\)", own_page, cell.source)


def take_words(executed: nbformat.NotebookNode, source: nbformat.NotebookNode) -> None:
    """Put the words of a source around the executed cells of code, in place.

    Raises
    ------
    ParameterError
        If the cells of code are not those of the source, besides what papermill injects.
    """
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    injected = [cell for cell in ran if "injected-parameters" in cell.metadata.get("tags", [])]
    waiting = [cell for cell in ran if cell not in injected]
    if [cell.source for cell in waiting] != [
        cell.source for cell in source.cells if cell.cell_type == "code"
    ]:
        raise ParameterError(
            "executed notebook", "other cells of code", "those of its source: make book runs it"
        )
    executed.cells = []
    for cell in source.cells:
        executed.cells.append(waiting.pop(0) if cell.cell_type == "code" else copy.deepcopy(cell))
        if "parameters" in cell.metadata.get("tags", []):
            executed.cells += injected


def origin_of(stage: Stage, root: Path) -> str:
    """Say of a stage whether this build computed it, or what it checked of the record."""
    what = stage.name.replace("_", " ").capitalize()
    if not stage.recorded:
        return f"{what}: computed by this build."
    if not (root / stage.result).is_file():  # a copy of a source, stamped before any build
        return f"{what}: recorded, not computed again here."
    checked = read_json(root / stage.result)
    limit, share = checked["tolerance"]["absolute"], checked["tolerance"]["differing"]
    allowed = f", but for at most {share:.1%} of the rows" if share else ""
    some = next((part.format(**checked) for name, part in PARTS.items() if f"n_{name}" in checked), "")
    return (
        f"{what}, {checked['origin']}; of {checked['n_recorded']} images this build computed {checked['n_images']} "
        f"again{some}, which agree within {limit:g}{allowed}."
    )


def _options(parameters: Mapping[str, Any]) -> str:
    """Write parameters as papermill's command line takes them."""
    plain = {name: value for name, value in parameters.items() if isinstance(value, str | int | float)}
    others = {name: value for name, value in parameters.items() if name not in plain}
    return " ".join(
        [f"-p {name} {value}" for name, value in plain.items()]
        + [f'-y "{name}: {json.dumps(value)}"' for name, value in others.items()]
    )


def run_of(entry: Notebook, listed: NotebookList, root: Path = ROOT) -> Run:
    """Read what a page tells of one run."""
    notebook = nbformat.read(root / entry.executed, as_version=4)
    take_words(notebook, nbformat.read(root / "notebooks" / f"{entry.name}.ipynb", as_version=4))
    own = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    command = f"papermill notebooks/{entry.name}.ipynb out.ipynb {_options(entry.settings)}".rstrip()
    origin = " ".join(origin_of(listed.find(stage), root) for stage in entry.reads.values())
    return Run(entry.run, entry.reads_model, entry.title, own, origin, command)


def write_pages(root: Path = ROOT) -> int:
    """Write the pages that differ from what is there, so that no other is read again; return how many."""
    listed, n_written = read_notebook_list(root / "workflow" / "notebooks.yml"), 0
    for name, entries in listed.experiments.items():
        page = compose(name, [run_of(entry, listed, root) for entry in entries])
        cell = nbformat.v4.new_markdown_cell(page.text, id="page")
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": _KERNEL})
        target = root / "book" / f"{entries[0].page}.ipynb"
        n_written += _write(target, (nbformat.writes(notebook) + "\n").encode())
        for file, data in page.pictures.items():
            _write(target.parent / file, data)
        for path in set((target.parent / name).glob("*")) - {target.parent / file for file in page.pictures}:
            path.unlink()
        for entry in entries[1:]:
            moved = _MOVED.format(address=f"{name}.html?model={entry.model}")
            _write(root / f"book/_build/extra/notebooks/{entry.run}.html", moved.encode())
    return n_written


def _write(path: Path, data: bytes) -> bool:
    """Write a file unless it holds this already; return whether it was written."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return True


def main(arguments: list[str]) -> int:
    """Write all pages."""
    OneLineParser(prog="make_pages", description=__doc__.splitlines()[0]).parse_args(arguments)
    return run_command("make_pages", lambda: print(f"{write_pages()} pages of notebooks written"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
