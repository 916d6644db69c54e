"""Name the model in the executed copy of a notebook that ran on another model than its own default.

The first heading gains the model's title, so that two pages of one notebook can be told apart, links to other notebooks
lead to the pages of the same model where the book has them, and commands that run a notebook name the model: the first
with all parameters of this run, the others with the model and where its results go.

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

from tools.notebook_list import NotebookList, read_notebook_list

ROOT = Path(__file__).resolve().parents[1]


def name_run(notebook: nbformat.NotebookNode, run: str, listed: NotebookList) -> None:
    """Add the model's title to the heading and turn links to the model's own pages, in place."""
    entry = listed.find(run)
    if not entry.model:
        return
    pages = {other.name: other.run for other in listed.notebooks if other.model == entry.model}

    def own_page(link: re.Match[str]) -> str:
        return f"]({pages.get(link[1], link[1])}.ipynb)"

    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown":
            continue
        always = {name: entry.parameters[name] for name in ("model", "results_folder")}
        given = _options(entry.settings if number == 0 else always)
        cell.source = re.sub(
            r"(papermill notebooks/\w+\.ipynb out\.ipynb)(?![^`]* -p model)", rf"\1 {given}", cell.source
        )
        if number == 0:
            cell.source = re.sub(r"\A(# .+)", rf"\1: {entry.title}", cell.source.lstrip("\n"), count=1)
        cell.source = re.sub(r"\]\(([a-z0-9_]+)\.ipynb\)", own_page, cell.source)


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
    path, run = Path(arguments[0]), arguments[1]
    notebook = nbformat.read(path, as_version=4)
    name_run(notebook, run, read_notebook_list(ROOT / "workflow" / "notebooks.yml"))
    nbformat.write(notebook, path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
