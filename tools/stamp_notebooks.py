"""Write copies of the notebooks that can be opened elsewhere: they fetch and install the project themselves.

The sources in ``notebooks/`` run where the library is installed and know no address. For every page that
workflow/notebooks.yml makes of them there is a copy: the cell of tools/set_up_cell.py stands in front of its
parameters, with the repository's address and the branch, tag or commit to check out. Its parameters are those of the
page, but where the page reads recorded tables: there a copy computes, of the page's model, at the size for trying that
the notebook declares. Weights become 4-bit numbers where the GPU is too small for them, so that another model takes one
parameter. Its first cell has a badge that opens the copy on Colab. Colab opens notebooks of GitHub only, so copies for
other hosts have no badge. The copies belong on a branch of their own, ``colab``, in its folder ``notebooks/``;
.github/workflows/pages.yml puts them there.

    python -m tools.stamp_notebooks --repository URL --branch NAME --to FOLDER
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat

from rcblib.runs.command import OneLineParser
from rcblib.runs.records import is_record
from tools.make_pages import name_run
from tools.notebook_list import Notebook, read_notebook_list

ROOT = Path(__file__).resolve().parents[1]

LAUNCH_BRANCH = "colab"
"""Branch that holds the stamped copies and nothing else."""

ON_COLAB = {"quantization": "auto", "batch_size": 8}
"""Parameters of a copy that make any checkpoint fit Colab's smallest GPU; no result depends on how many inputs are read
together, and 8 is less than the 9 answers that a T4 holds of the largest one (``benchmarks.footprint``)."""

_COLAB = "https://colab.research.google.com"
_SET_UP_CELL = Path(__file__).with_name("set_up_cell.py")


def normalize_repository(address: str) -> str | None:
    """Turn a git address into the address of the repository's web page; `None` for one without a page.

    Credentials are dropped; folders and unknown forms have no page.
    """
    address = address.strip()
    ssh = re.fullmatch(r"(?:ssh://)?git@([\w.-]+)[:/](?:\d+/)?(.+)", address)
    web = re.fullmatch(r"https?://(?:[^/@]+@)?([\w.-]+(?::\d+)?)/(.+)", address)
    if not (ssh or web):
        return None
    host, path = (ssh or web).groups()
    return f"https://{host}/{path.rstrip('/').removesuffix('.git')}"


def launch_folder(repository: str) -> str | None:
    """Return the address under which Colab opens the copies; `None` for a host other than GitHub."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository)
    return f"{_COLAB}/github/{found.group(1)}/blob/{LAUNCH_BRANCH}/notebooks" if found else None


def insert_badge(
    notebook: nbformat.NotebookNode, address: str, image: str = f"{_COLAB}/assets/colab-badge.svg"
) -> None:
    """Put a badge that opens `address` below the title, in place of an earlier badge."""
    first = notebook.cells[0] if notebook.cells else None
    title, *rest = first.source.split("\n") if first and first.cell_type == "markdown" else [""]
    if not title.startswith("# "):
        raise ValueError(f"first cell: got {title!r}; accepted: Markdown that begins with '# ' and a title")
    body = "\n".join(line for line in rest if not line.startswith("[![Open in Colab](")).strip("\n")
    first.source = f"{title}\n\n[![Open in Colab]({image})]({address})\n\n{body}".rstrip("\n")


def set_parameters(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Write values into the lines ``name: type = literal  # meaning`` of the parameters, in place."""
    cell = notebook.cells[_parameters_at(notebook)]
    for name, value in parameters.items():
        literal = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        cell.source, n_found = re.subn(
            rf"(?m)^({name}: [^=]+ = ).*?(?=  # )", lambda line, text=literal: line[1] + text, cell.source
        )
        if not n_found:
            known = ", ".join(re.findall(r"(?m)^(\w+): ", cell.source))
            raise ValueError(f"{name}: got no parameter of this name; accepted: {known}")


def stamp(notebook: nbformat.NotebookNode, page: str, repository: str, branch: str) -> nbformat.NotebookNode:
    """Return a copy that fetches and installs a revision of the project; stamping it again changes nothing.

    The badge leads to the copy as `page`. A repository or a branch that git would take for an option is refused, as are
    credentials in an address.
    """
    for parameter, value in (("repository", repository), ("branch", branch)):
        if not value or value.startswith("-"):
            raise ValueError(f"{parameter}: got {value!r}; accepted: text that does not begin with a dash")
    if re.match(r"https?://[^/]*@", repository):
        raise ValueError("repository: got an address with credentials; accepted: one without")
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.get("id") != "set-up"]
    source = _SET_UP_CELL.read_text(encoding="utf-8").rstrip("\n")
    for name, value in (("REPOSITORY", repository), ("REVISION", branch)):
        source = source.replace(f'\n{name} = ""\n', f"\n{name} = {json.dumps(value)}\n")
    cell = nbformat.v4.new_code_cell(source, id="set-up", metadata={"tags": ["hide-input", "setup"]})
    notebook.cells.insert(_parameters_at(notebook), cell)
    if folder := launch_folder(repository):
        insert_badge(notebook, f"{folder}/{page}.ipynb")
    return notebook


def stamp_project(root: Path, target: Path, repository: str, branch: str) -> list[Path]:
    """Write the stamped copy of every page, in the order of the book; copies of pages that are gone are removed.

    The project's sources stay as they are. Nothing is written where one of them cannot be stamped.
    """
    if (root / "notebooks").resolve() == target.resolve():
        raise ValueError(f"--to: got {target.name}, the folder of the sources; accepted: another folder")
    listed = read_notebook_list(root / "workflow" / "notebooks.yml")
    listed = replace(listed, notebooks=tuple(map(_without_records, listed.notebooks)))
    stamped = {}
    for entry in listed.notebooks:
        source = nbformat.read(root / "notebooks" / f"{entry.name}.ipynb", as_version=4)
        try:
            set_parameters(source, entry.settings | _fitting(source))
            name_run(source, entry.run, listed)
            stamped[target / f"{entry.run}.ipynb"] = stamp(source, entry.run, repository, branch)
        except ValueError as error:
            raise ValueError(f"{entry.name}: {error}") from None
    target.mkdir(parents=True, exist_ok=True)
    for path in set(target.glob("*.ipynb")) - set(stamped):
        path.unlink()
    for path, notebook in stamped.items():
        nbformat.write(notebook, path)
    return list(stamped)


def _without_records(entry: Notebook) -> Notebook:
    """Return a run that reads no table of one model, recorded or shared, and so takes any by its parameter.

    What takes hours was recorded; so a run that would have read such a table keeps the notebook's own size.
    """
    if entry.reads:
        of_model = {k: v for k, v in entry.parameters.items() if k in ("model", "results_folder")}
        return replace(entry, parameters=of_model, reads={})
    recorded = [
        name for name, value in entry.parameters.items() if isinstance(value, str) and is_record(value)
    ]
    return replace(entry, parameters={k: v for k, v in entry.parameters.items() if k not in recorded})


def _fitting(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Return those of `ON_COLAB` that a notebook has, where it loads a model."""
    declared = notebook.cells[_parameters_at(notebook)].source
    own = set(re.findall(r"(?m)^(\w+): ", declared))
    return {name: value for name, value in ON_COLAB.items() if {name, "quantization"} <= own}


def _parameters_at(notebook: nbformat.NotebookNode) -> int:
    """Return the place of the cell tagged ``parameters``."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    found = [place for place, of_cell in enumerate(tags) if "parameters" in of_cell]
    if len(found) != 1:
        raise ValueError(f"got {len(found)} cells tagged parameters; accepted: one")
    return found[0]


def main(arguments: list[str]) -> int:
    """Stamp the notebooks of the project."""
    parser = OneLineParser(prog="stamp_notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", required=True, help="address that git can fetch from")
    parser.add_argument("--branch", default="main", help="branch, tag or commit to check out")
    parser.add_argument("--to", type=Path, required=True, help="folder for the copies")
    options = parser.parse_args(arguments)
    repository = normalize_repository(options.repository) or options.repository
    try:
        written = stamp_project(ROOT, options.to, repository, options.branch)
    except ValueError as error:
        parser.error(str(error))
    reason = "" if launch_folder(repository) else "; no badges: Colab opens notebooks of GitHub only"
    print(f"stamped {len(written)} notebooks{reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
