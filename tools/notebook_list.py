"""Read workflow/notebooks.yml: stages and notebooks of the book, in order, their models, and what each depends on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from rcblib.runs.records import is_record

IN_PARTS = ("evaluate", "gates")
"""Commands that answer questions, those about so many images together."""

BY_SETTING = ("evaluate", "explorer")
"""Commands that can be run with some of their settings only."""

AT_POSITIONS = ("probe", "truth")
"""Commands that can be run at some positions only."""


@dataclass(frozen=True)
class Recorded:
    """Say how a stage that takes hours is run once, and how a build checks what was recorded of it.

    Attributes
    ----------
    shards : int
        Jobs that share the images.
    first : int
        Images that every build computes again.
    settings : int
        Every so many-th setting, a method with its budget and draw, is computed again about them; 1 for each.
    positions : int
        Every so many-th position that was probed or measured is so again of them; 1 for each.
    absolute, columns, differing
        How far these may be from the record, see `rcblib.runs.agreement.Tolerance`.
    drop : tuple of str
        Columns that nothing reads, and the record does without.
    """

    shards: int = 8
    first: int = 2
    settings: int = 1
    positions: int = 1
    absolute: float = 0.0001
    columns: dict[str, float] = field(default_factory=dict)
    differing: float = 0.0
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Describe one run of a command of the library on one model, for notebooks that read what it finds.

    Attributes
    ----------
    name : str
        Name of the stage, and of the folder that it writes.
    command : str
        ``"probe"``, ``"evaluate"``, ``"gates"``, ``"truth"`` or ``"explorer"``.
    model : str
        Name of the model that replaces the default one; empty for that.
    options : dict
        Options of the command, underscores in place of hyphens; those of a flag are ``True``.
    inputs : tuple of str
        Files on which it depends besides the code, as for a notebook.
    recorded : Recorded, optional
        Of a stage that notebooks read from ``data/recorded``; a build only checks it.
    """

    name: str
    command: str
    model: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    recorded: Recorded | None = None

    @property
    def run(self) -> str:
        """Name the run: of its rule and its log."""
        return f"{self.name}-{self.model}" if self.model else self.name

    @property
    def folder(self) -> str:
        """Return where it keeps what is finished."""
        return f"results/{self.model}/{self.name}" if self.model else f"results/{self.name}"

    @property
    def record(self) -> str:
        """Return the recorded table; `rcblib.runs.records` says what lies beside it."""
        return f"data/recorded/{Path(self.options['model']).name}/{self.name}.parquet"

    @property
    def source(self) -> str:
        """Return what notebooks get: the folder, or the recorded table."""
        return self.record if self.recorded else self.folder

    @property
    def result(self) -> str:
        """Return the file that a build writes last: the table of all it found, or how the record was checked."""
        return f"{self.folder}.checked.json" if self.recorded else f"{self.folder}.parquet"

    @property
    def table(self) -> str:
        """Return the table of all that it found: the recorded one, or that which a build writes."""
        return self.record if self.recorded else self.result

    def arguments(self, folder: str = "") -> list[str]:
        """Return the command's arguments, for another folder than its own if one is given."""
        words = [self.command]
        for name, value in {"folder": folder or self.folder, **self.options}.items():
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return words


@dataclass(frozen=True)
class Notebook:
    """Describe one run of one notebook: as it is, or on another model than its own default.

    Attributes
    ----------
    name : str
        Stem of ``notebooks/<name>.ipynb``.
    model : str
        Name of the model that replaces the default one; empty for the notebook as it is.
    reads_model : str
        Name of the model that it runs on, by its default or not.
    title : str
        What the book calls that model.
    needs : tuple of str
        Runs (see `run`) of notebooks and stages that must have ended before.
    threads : int
        Cores it occupies.
    parameters : dict
        What papermill passes instead of the notebook's own defaults.
    inputs : tuple of str
        Glob patterns of files, relative to the repository, on which it depends besides the code.
    reads : dict
        Parameter to the run of the stage whose folder or recorded table it gets.
    priority : int
        Runs of a higher one start earlier, where several could.
    """

    name: str
    model: str = ""
    reads_model: str = ""
    title: str = ""
    needs: tuple[str, ...] = ()
    threads: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    reads: dict[str, str] = field(default_factory=dict)
    priority: int = 0

    @property
    def run(self) -> str:
        """Name the run: of its rule, its executed copy and its log."""
        return f"{self.name}-{self.model}" if self.model else self.name

    @property
    def page(self) -> str:
        """Return the page that is made of the executed copies, without its suffix, below ``book``."""
        return f"notebooks/{self.name}"

    @property
    def executed(self) -> str:
        """Return the copy that papermill executes."""
        return f"results/executed/{self.run}.ipynb"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the parameters that mean something elsewhere: without folders that only the workflow fills.

        Recorded tables are part of every checkout.
        """
        return {
            name: value
            for name, value in self.parameters.items()
            if name not in self.reads or is_record(value)
        }

    @property
    def results(self) -> str:
        """Return the file of its results; another model's lie in a folder of its name."""
        folder = f"results/{self.model}" if self.model else "results"
        return f"{folder}/{self.name}.json"


@dataclass(frozen=True)
class NotebookList:
    """Hold all runs in order, the modules on which every one depends without importing them, and models' titles."""

    modules: tuple[str, ...]
    stages: tuple[Stage, ...]
    notebooks: tuple[Notebook, ...]
    titles: dict[str, str] = field(default_factory=dict)

    def find(self, run: str) -> Notebook | Stage:
        """Return the run of that name."""
        return next(entry for entry in (*self.notebooks, *self.stages) if entry.run == run)

    @property
    def experiments(self) -> dict[str, list[Notebook]]:
        """Return the runs of each notebook, that of the model that leads first, by the notebook's name."""
        return {name: list(runs) for name, runs in groupby(self.notebooks, key=lambda entry: entry.name)}

    @property
    def explored(self) -> list[tuple[Stage, ...]]:
        """List the stages of the command ``explorer``, each with that which probed the same images.

        ``explorer`` goes with ``probing``, ``explorer_plain`` with ``probing_plain``, of the same model; behind each
        pair come those that ask ``more`` about the same images.
        """
        own = [stage for stage in self.stages if stage.command == "explorer"]
        added: dict[tuple[str, str], list[Stage]] = {}
        for stage in own:
            if "more" in stage.options:
                added.setdefault((stage.options["model"], stage.options["images"]), []).append(stage)
        return [
            (
                stage,
                self.find(stage.run.replace("explorer", "probing", 1)),
                *added.get((stage.options["model"], stage.options["images"]), ()),
            )
            for stage in own
            if "more" not in stage.options
        ]

    def output(self, run: str) -> str:
        """Return the file that a run writes last."""
        entry = self.find(run)
        return entry.result if isinstance(entry, Stage) else entry.results


def read_notebook_list(path: Path) -> NotebookList:
    """Read and check the list, a run for the leading model and for each further model of a stage or a notebook.

    The leading model is the list's ``default_model``, or that of the stage or notebook; what ``models`` says of it is
    for the run without a name. What a run on a further model needs is the same model's run of it, where there is one,
    else the leading one's; a notebook that is not run model by model needs all of them.

    Raises
    ------
    ValueError
        If a key or a model is unknown, a name unusable or repeated, or a notebook needs or reads what is not listed
        before it.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    _check_keys(content, {"inputs", "modules", "default_model", "models", "stages", "notebooks"}, str(path))
    default, titles = content.get("default_model", ""), content.get("models") or {}
    stages: list[Stage] = []
    for entry in content.get("stages") or []:
        keys = {"name", "command", "options", "inputs", "models", "recorded", "default_model"}
        name = _name(entry, keys, path, stages)
        leading = entry.get("default_model", default)
        for model, own in _by_model(entry, leading, titles, path).items():
            options = {"model": model or leading} | (entry.get("options") or {}) | own
            options = _for_model(options, model or leading)
            recorded = _recorded(options.pop("recorded", entry.get("recorded")), f"{path}: {name}")
            if recorded and entry.get("command") in IN_PARTS and "images_per_part" not in options:
                raise ValueError(f"{path}: {name} is recorded; accepted: with the option images_per_part")
            if recorded and recorded.settings != 1 and entry.get("command") not in BY_SETTING:
                raise ValueError(f"{path}: {name} has settings; accepted: with the commands {BY_SETTING}")
            if recorded and recorded.positions != 1 and entry.get("command") not in AT_POSITIONS:
                raise ValueError(f"{path}: {name} has positions; accepted: with the commands {AT_POSITIONS}")
            inputs = _inputs(content, entry, model or leading)
            stages.append(Stage(name, entry.get("command", ""), model, options, inputs, recorded))
    notebooks: list[Notebook] = []
    for entry in content.get("notebooks") or []:
        keys = {
            "name",
            "needs",
            "reads",
            "threads",
            "priority",
            "parameters",
            "inputs",
            "models",
            "default_model",
        }
        name = _name(entry, keys, path, [*stages, *notebooks])
        for what, before in (("needs", [*stages, *notebooks]), ("reads", stages)):
            wanted = entry.get(what) or {}
            known = list(dict.fromkeys(other.name for other in before))
            unknown = sorted(set(wanted.values() if isinstance(wanted, dict) else wanted) - set(known))
            if unknown:
                raise ValueError(
                    f"{path}: {name} {what} {unknown}; accepted: what is listed before it, {known}"
                )
        reads, leading = entry.get("reads") or {}, entry.get("default_model", default)
        for model, given in _by_model(entry, leading, titles, path).items():
            own = {"model": model, "results_folder": f"results/{model}"} if model else {}
            read = {key: _stage(stage, stages, model, f"{path}: {name}") for key, stage in reads.items()}
            own |= {key: stage.source for key, stage in read.items()}
            notebooks.append(
                Notebook(
                    name=name,
                    model=model,
                    reads_model=model or leading,
                    title=titles.get(model or leading, model or leading),
                    needs=_runs(
                        entry.get("needs") or [], [*stages, *notebooks], model, bool(entry.get("models"))
                    ),
                    threads=entry.get("threads", 1),
                    priority=entry.get("priority", 0),
                    parameters=_for_model(own | (entry.get("parameters") or {}) | given, model or leading),
                    inputs=_inputs(content, entry, model or leading),
                    reads={key: stage.run for key, stage in read.items()},
                )
            )
    return NotebookList(tuple(content.get("modules") or []), tuple(stages), tuple(notebooks), titles)


def _name(entry: Any, keys: set[str], path: Path, before: Sequence[Stage | Notebook]) -> str:
    """Return the checked name of an entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{path}: got {entry!r}; accepted: an entry such as {{name: probing, needs: []}}")
    name = entry["name"]
    _check_keys(entry, keys, f"{path}: {name}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{path}: name {name!r}; accepted: lower-case letters, digits and underscores")
    if name in {other.name for other in before}:
        raise ValueError(f"{path}: {name} is listed twice")
    return name


def _by_model(
    entry: dict[str, Any], leading: str, titles: dict[str, str], path: Path
) -> dict[str, dict[str, Any]]:
    """Return what is given for each model, first, without its name, for the leading one."""
    models = entry.get("models") or {}
    _check_keys(models, {*titles, leading}, f"{path}: models of {entry['name']}")
    given = {"" if model == leading else model: own or {} for model, own in models.items()}
    return {"": given.pop("", {})} | given


def _inputs(content: dict[str, Any], entry: dict[str, Any], model: str) -> tuple[str, ...]:
    patterns = [*(content.get("inputs") or []), *(entry.get("inputs") or [])]
    return tuple(pattern.replace("{model}", model) for pattern in patterns)


def _for_model(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Put the model's name into texts, and those of lists, that ask for it."""

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(own) for own in value]
        return value.replace("{model}", model) if isinstance(value, str) else value

    return {name: put(value) for name, value in settings.items()}


def _recorded(given: Any, where: str) -> Recorded | None:
    if not isinstance(given, dict):
        return Recorded() if given else None
    _check_keys(given, {entry.name for entry in fields(Recorded)}, f"{where}: recorded")
    return Recorded(**given | {"drop": tuple(given.get("drop") or ())})


def _stage(name: str, stages: Sequence[Stage], model: str, where: str) -> Stage:
    found = [stage for stage in stages if (stage.name, stage.model) == (name, model)]
    if not found:
        raise ValueError(f"{where} reads {name}, which is not run on {model}")
    return found[0]


def _runs(
    names: list[str], before: Sequence[Stage | Notebook], model: str, by_model: bool
) -> tuple[str, ...]:
    runs = {(entry.name, entry.model): entry.run for entry in before}
    if by_model:
        return tuple(runs.get((name, model), runs[name, ""]) for name in names)
    return tuple(run for name in names for (other, _), run in runs.items() if other == name)


def _check_keys(entry: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(f"{where}: unknown {unknown}; accepted: {sorted(known)}")
