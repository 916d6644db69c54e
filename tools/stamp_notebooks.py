"""Write copies of the notebooks that can be opened elsewhere: they know where the project is to be had from.

The sources in ``notebooks/`` know no address. For every page that workflow/notebooks.yml makes of them there is a copy:
its set-up cell holds the repository's address and the branch, tag or commit to check out, its parameters are those of
the page, and its first cell has a badge that opens the copy on Colab. Colab opens notebooks of GitHub only, so copies
for other hosts have no badge. The copies belong on a branch of their own, ``colab``, in its folder ``notebooks/``;
.github/workflows/pages.yml puts them there.

    python tools/stamp_notebooks.py --repository URL --branch NAME --to FOLDER
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.name_run import name_run  # noqa: E402
from tools.notebook_list import read_notebook_list  # noqa: E402

LAUNCH_BRANCH = "colab"
"""Branch that holds the stamped copies and nothing else."""

_COLAB = "https://colab.research.google.com"
_COLAB_BADGE = f"{_COLAB}/assets/colab-badge.svg"
_BADGE_TEXT = "Open in Colab"


def launch_folder(repository: str) -> str | None:
    """Return the address under which Colab opens the stamped copies; `None` for a host that it does not open.

    Parameters
    ----------
    repository : str
        Address of the repository's web page, as ``https://github.com/<owner>/<name>``.
    """
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository)
    return f"{_COLAB}/github/{found.group(1)}/blob/{LAUNCH_BRANCH}/notebooks" if found else None


def insert_badge(notebook: nbformat.NotebookNode, address: str, image: str = _COLAB_BADGE) -> None:
    """Put a badge that opens `address` below the title in the first cell, in place of an earlier badge.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Changed in place.
    address : str
        What the badge opens.
    image : str
        Address or path of the badge's picture.

    Raises
    ------
    ValueError
        Where the first cell is no Markdown that begins with a title.
    """
    first = notebook.cells[0] if notebook.cells else None
    lines = first.source.split("\n") if first and first.cell_type == "markdown" else [""]
    if not lines[0].startswith("# "):
        raise ValueError(
            f"first cell: got {lines[0]!r}; accepted: Markdown that begins with '# ' and a title"
        )
    rest = [line for line in lines[1:] if not line.startswith(f"[![{_BADGE_TEXT}](")]
    body = "\n".join(rest).strip("\n")
    first.source = f"{lines[0]}\n\n[![{_BADGE_TEXT}]({image})]({address})\n\n{body}".rstrip("\n")


def set_parameters(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Write values into the lines ``name: type = literal`` of the cell tagged ``parameters``, in place.

    Raises
    ------
    ValueError
        Where the cell has no line for a name.
    """
    cell = _tagged(notebook, "parameters")
    lines = cell.source.splitlines()
    values = {
        node.target.id: node.value for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)
    }
    for name, value in parameters.items():
        if name not in values:
            raise ValueError(f"{name}: got no parameter of this name; accepted: {', '.join(values)}")
        old = values[name]
        literal = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        # Offsets of syntax trees count bytes.
        line = lines[old.lineno - 1].encode()
        lines[old.lineno - 1] = b"".join(
            [line[: old.col_offset], literal.encode(), line[old.end_col_offset :]]
        ).decode()
    cell.source = "\n".join(lines)


def stamp(notebook: nbformat.NotebookNode, page: str, repository: str, branch: str) -> nbformat.NotebookNode:
    """Return a copy of a notebook that knows the repository's address; stamping it again changes nothing.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Stays as it is.
    page : str
        Stem of the copy's file, to which the badge leads.
    repository : str
        Address that git can fetch from.
    branch : str
        Branch, tag or commit that the set-up cell checks out.

    Raises
    ------
    ValueError
        Where `repository` or `branch` is empty or could be taken for an option, the address holds credentials, or
        the set-up cell has no place for them.
    """
    for parameter, value in (("repository", repository), ("branch", branch)):
        # The set-up cell hands both to git, for which a leading dash makes an option.
        if not value or value.startswith("-"):
            raise ValueError(f"{parameter}: got {value!r}; accepted: text that does not begin with a dash")
    if re.match(r"https?://[^/]*@", repository):
        raise ValueError("repository: got an address with credentials; accepted: one without")
    notebook = copy.deepcopy(notebook)
    cell = _tagged(notebook, "setup")
    for constant, value in (("REPOSITORY", repository), ("REVISION", branch)):
        pattern = re.compile(rf'^{constant} = ".*"$', re.MULTILINE)
        if len(pattern.findall(cell.source)) != 1:
            raise ValueError(f'set-up cell: got no single line {constant} = ""; accepted: one')
        line = f"{constant} = {json.dumps(value)}"
        cell.source = pattern.sub(lambda _, line=line: line, cell.source)
    folder = launch_folder(repository)
    if folder:
        insert_badge(notebook, f"{folder}/{page}.ipynb")
    return notebook


def stamp_project(root: Path, target: Path, repository: str, branch: str) -> list[Path]:
    """Write a stamped copy for every page of a notebook, and delete copies that have no page any more.

    Parameters
    ----------
    root, target : pathlib.Path
        The project, whose sources stay as they are, and the folder of the copies, made where needed.
    repository, branch : str
        As for `stamp`.

    Returns
    -------
    list of pathlib.Path
        The copies, in the order of the book.

    Raises
    ------
    ValueError
        Where the copies would replace the sources, and as `stamp`.
    """
    if (root / "notebooks").resolve() == target.resolve():
        raise ValueError(f"--to: got {target.name}, the folder of the sources; accepted: another folder")
    listed = read_notebook_list(root / "workflow" / "notebooks.yml")
    stamped = {}
    for entry in listed.notebooks:
        source = nbformat.read(root / "notebooks" / f"{entry.name}.ipynb", as_version=4)
        try:
            set_parameters(source, entry.parameters)
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


def _tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    found = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    if len(found) != 1:
        raise ValueError(f"got {len(found)} cells tagged {tag}; accepted: one")
    return found[0]


def main(arguments: list[str]) -> int:
    """Stamp the notebooks of the project."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", required=True, help="address that git can fetch from")
    parser.add_argument("--branch", default="main", help="branch, tag or commit to check out")
    parser.add_argument("--to", type=Path, required=True, help="folder for the copies")
    options = parser.parse_args(arguments)
    from tools.make_config import normalize_repository  # which imports this module

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
