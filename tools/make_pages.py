"""Make pages of executed notebooks: with today's words, what was computed and what recorded, and the model's name.

The words of a page are those of the notebook's source, so that changing them runs nothing. Below the first heading of a
notebook that reads stages stands what it read: a table of this build, or a recorded one, with its date, hardware and
code. The first command that runs the notebook has all parameters of this run. A notebook that ran on a further model
gains that model's title, so that two pages of one notebook can be told apart; links to other notebooks lead to the
pages of the same model where the book has them, and further commands name the model and where its results go.

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
from tools.notebook_list import NotebookList, Stage, read_notebook_list

ROOT = Path(__file__).resolve().parents[1]


def name_run(notebook: nbformat.NotebookNode, run: str, listed: NotebookList, root: Path = ROOT) -> None:
    """Say what was run where; add another model's title to the heading and turn links to its own pages, in place."""
    entry = listed.find(run)
    if entry.reads:
        said = " ".join(_origin(listed.find(stage), root) for stage in entry.reads.values())
        notebook.cells[0].source = re.sub(
            r"\A(# .+)",
            lambda heading: f"{heading[1]}\n\n*{said}*",
            notebook.cells[0].source.lstrip("\n"),
            count=1,
        )
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


def _origin(stage: Stage, root: Path) -> str:
    """Say of a stage whether this build computed it, or what it checked of the record."""
    what = stage.name.replace("_", " ").capitalize()
    if not stage.recorded:
        return f"{what}: computed by this build."
    if not (root / stage.result).is_file():  # a copy of a source, stamped before any build
        return f"{what}: recorded, not computed again here."
    checked = read_json(root / stage.result)
    limit, share = checked["tolerance"]["absolute"], checked["tolerance"]["differing"]
    allowed = f", but for at most {share:.1%} of the rows" if share else ""
    return (
        f"{what}, {checked['origin']}; of {checked['n_recorded']} images this build computed {checked['n_images']} "
        f"again, which agree within {limit:g}{allowed}."
    )


def _options(parameters: Mapping[str, Any]) -> str:
    """Write parameters as papermill's command line takes them."""
    plain = {name: value for name, value in parameters.items() if isinstance(value, str | int | float)}
    others = {name: value for name, value in parameters.items() if name not in plain}
    return " ".join(
        [f"-p {name} {value}" for name, value in plain.items()]
        + [f'-y "{name}: {json.dumps(value)}"' for name, value in others.items()]
    )


def write_pages(root: Path = ROOT) -> int:
    """Write the pages that differ from what is there, so that no other is read again; return how many."""
    listed, n_written = read_notebook_list(root / "workflow" / "notebooks.yml"), 0
    for entry in listed.notebooks:
        notebook = nbformat.read(root / entry.executed, as_version=4)
        take_words(notebook, nbformat.read(root / "notebooks" / f"{entry.name}.ipynb", as_version=4))
        name_run(notebook, entry.run, listed, root)
        page, text = root / "book" / f"{entry.page}.ipynb", nbformat.writes(notebook) + "\n"
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.parent.mkdir(exist_ok=True)
            page.write_text(text, encoding="utf-8")
            n_written += 1
    return n_written


def main(arguments: list[str]) -> int:
    """Write all pages."""
    OneLineParser(prog="make_pages", description=__doc__.splitlines()[0]).parse_args(arguments)
    return run_command("make_pages", lambda: print(f"{write_pages()} pages of notebooks written"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
