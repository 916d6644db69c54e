"""Read workflow/notebooks.yml: the notebooks of the book, in reading order, and what each depends on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Notebook:
    """Describe one notebook of the workflow.

    Attributes
    ----------
    name : str
        Stem of ``notebooks/<name>.ipynb``, of its executed copy and of ``results/<name>.json``.
    needs : tuple of str
        Notebooks that must have run before.
    threads : int
        Cores it occupies.
    parameters : dict
        What papermill passes instead of the notebook's own defaults.
    inputs : tuple of str
        Glob patterns of further files, relative to the repository, on which it depends.
    """

    name: str
    needs: tuple[str, ...] = ()
    threads: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotebookList:
    """Hold all notebooks in order, and the glob patterns of files on which every one depends."""

    inputs: tuple[str, ...]
    notebooks: tuple[Notebook, ...]


def read_notebook_list(path: Path) -> NotebookList:
    """Read and check the list.

    Raises
    ------
    ValueError
        If a key is unknown, a name unusable or repeated, or a notebook needs one not listed before it.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    _check_keys(content, {"inputs", "notebooks"}, str(path))
    notebooks: list[Notebook] = []
    for entry in content.get("notebooks") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(
                f"{path}: got {entry!r}; accepted: an entry such as {{name: probing, needs: []}}"
            )
        name = entry["name"]
        _check_keys(entry, set(Notebook.__dataclass_fields__), f"{path}: {name}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{path}: name {name!r}; accepted: lower-case letters, digits and underscores")
        earlier = [notebook.name for notebook in notebooks]
        if name in earlier:
            raise ValueError(f"{path}: {name} is listed twice")
        unknown = sorted(set(entry.get("needs") or []) - set(earlier))
        if unknown:
            raise ValueError(
                f"{path}: {name} needs {unknown}; accepted: notebooks listed before it, {earlier}"
            )
        notebooks.append(
            Notebook(
                name=name,
                needs=tuple(entry.get("needs") or []),
                threads=entry.get("threads", 1),
                parameters=entry.get("parameters") or {},
                inputs=tuple(entry.get("inputs") or []),
            )
        )
    return NotebookList(inputs=tuple(content.get("inputs") or []), notebooks=tuple(notebooks))


def _check_keys(entry: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(f"{where}: unknown {unknown}; accepted: {sorted(known)}")
