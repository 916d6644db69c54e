"""Read workflow/notebooks.yml: the notebooks of the book, in reading order, their models, and what each depends on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Notebook:
    """Describe one run of one notebook: as it is, or on another model than its own default.

    Attributes
    ----------
    name : str
        Stem of ``notebooks/<name>.ipynb``.
    model : str
        Name of the model that replaces the default one; empty for the notebook as it is.
    title : str
        What the book calls that model.
    needs : tuple of str
        Runs (see `run`) that must have ended before.
    threads : int
        Cores it occupies.
    parameters : dict
        What papermill passes instead of the notebook's own defaults.
    inputs : tuple of str
        Glob patterns of further files, relative to the repository, on which it depends.
    """

    name: str
    model: str = ""
    title: str = ""
    needs: tuple[str, ...] = ()
    threads: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    @property
    def run(self) -> str:
        """Name the run: of its rule, its page and its log."""
        return f"{self.name}-{self.model}" if self.model else self.name

    @property
    def page(self) -> str:
        """Return the executed copy, without its suffix, below ``book``."""
        return f"notebooks/{self.run}"

    @property
    def results(self) -> str:
        """Return the file of its results; another model's lie in a folder of its name."""
        folder = f"results/{self.model}" if self.model else "results"
        return f"{folder}/{self.name}.json"


@dataclass(frozen=True)
class NotebookList:
    """Hold all runs in order, and the glob patterns of files on which every one depends."""

    inputs: tuple[str, ...]
    notebooks: tuple[Notebook, ...]

    def find(self, run: str) -> Notebook:
        """Return the run of that name."""
        return next(notebook for notebook in self.notebooks if notebook.run == run)


def read_notebook_list(path: Path) -> NotebookList:
    """Read and check the list, a run for the default model and for each of a notebook's further models.

    What a run on a further model needs is the same model's run of it, where there is one, else the default's; a
    notebook that is not run model by model needs all of them.

    Raises
    ------
    ValueError
        If a key or a model is unknown, a name unusable or repeated, or a notebook needs one not listed before it.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    _check_keys(content, {"inputs", "models", "notebooks"}, str(path))
    titles = content.get("models") or {}
    notebooks: list[Notebook] = []
    for entry in content.get("notebooks") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(
                f"{path}: got {entry!r}; accepted: an entry such as {{name: probing, needs: []}}"
            )
        name = entry["name"]
        _check_keys(entry, {"name", "needs", "threads", "parameters", "inputs", "models"}, f"{path}: {name}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{path}: name {name!r}; accepted: lower-case letters, digits and underscores")
        earlier = [notebook.name for notebook in notebooks]
        if name in earlier:
            raise ValueError(f"{path}: {name} is listed twice")
        unknown = sorted(set(entry.get("needs") or []) - set(earlier))
        if unknown:
            known = list(dict.fromkeys(earlier))
            raise ValueError(f"{path}: {name} needs {unknown}; accepted: notebooks listed before it, {known}")
        models = entry.get("models") or {}
        _check_keys(models, set(titles), f"{path}: models of {name}")
        for model in ("", *models):
            own = {"model": model, "results_folder": f"results/{model}"} if model else {}
            notebooks.append(
                Notebook(
                    name=name,
                    model=model,
                    title=titles.get(model, ""),
                    needs=_needs(entry.get("needs") or [], notebooks, model, bool(models)),
                    threads=entry.get("threads", 1),
                    parameters=(entry.get("parameters") or {}) | own | (models.get(model) or {}),
                    inputs=tuple(entry.get("inputs") or []),
                )
            )
    return NotebookList(inputs=tuple(content.get("inputs") or []), notebooks=tuple(notebooks))


def _needs(names: list[str], before: list[Notebook], model: str, by_model: bool) -> tuple[str, ...]:
    runs = {(notebook.name, notebook.model): notebook.run for notebook in before}
    if by_model:
        return tuple(runs.get((name, model), runs[name, ""]) for name in names)
    return tuple(run for name in names for (other, _), run in runs.items() if other == name)


def _check_keys(entry: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(f"{where}: unknown {unknown}; accepted: {sorted(known)}")
