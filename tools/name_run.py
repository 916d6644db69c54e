"""Say in the executed copy of a notebook what was computed by this build and what recorded, and name another model.

Below the first heading of a notebook that reads stages stands what it read: a table of this build, or a recorded one,
with its date, hardware and code. The first command that runs the notebook has all parameters of this run. A notebook
that ran on a further model gains that model's title, so that two pages of one notebook can be told apart; links to
other notebooks lead to the pages of the same model where the book has them, and further commands name the model and
where its results go.

    python -m tools.name_run COPY RUN      COPY is written anew; RUN as in workflow/notebooks.yml, name-model
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

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


def main(arguments: list[str]) -> int:
    """Rewrite one executed copy."""
    parser = OneLineParser(prog="name_run", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path, help="an executed copy, which is rewritten")
    parser.add_argument("run", help="its name in the list of notebooks")
    options = parser.parse_args(arguments)

    def rewrite() -> None:
        notebook = nbformat.read(options.notebook, as_version=4)
        name_run(notebook, options.run, read_notebook_list(ROOT / "workflow" / "notebooks.yml"))
        nbformat.write(notebook, options.notebook)

    return run_command("name_run", rewrite)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
