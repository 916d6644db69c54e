"""List what workflow/shards.smk runs in shards: recorded stages that are due, or the combinations of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rcblib.runs.digest import code_digest
from tools import record
from tools.notebook_list import NotebookList, Stage
from tools.sweep import Executed, notebooks_of, read_sweep, rule_name, runs_of, takes


@dataclass(frozen=True)
class Work:
    """Describe a command whose images several jobs share, and how their tables are put together.

    Attributes
    ----------
    run, rule : str
        Its name in logs, and among Snakemake's rules.
    arguments : list of str
        Of the library's command, but for shard and table.
    shards : int
        Jobs.
    folder : str
        Where the tables of shards lie.
    inputs : list of str
        Files on which it depends, besides the code of the digest `code`.
    merge, end : str
        Module and arguments that put tables together, before and after these; `result` is what is there then.
    threads, resources
        What one shard takes, as Snakemake names it.
    """

    run: str
    arguments: list[str]
    shards: int
    folder: str
    inputs: list[str]
    code: str
    merge: str
    end: str
    result: str
    threads: int = 1
    resources: dict[str, int] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """Return its name among Snakemake's rules."""
        return rule_name(self.run)


def of_stages(chosen: Sequence[Stage], listed: NotebookList, root: Path) -> list[Work]:
    """Return the stages that have not been recorded as they would be now; tell of each on standard error."""
    works = []
    for stage in chosen:
        is_due = not record.is_current(stage, listed, root)
        print(f"{stage.run}: {'to be recorded' if is_due else 'recorded already'}", file=sys.stderr)
        if is_due:
            folder = f"runs/full/{stage.run}"
            result, made = f"{folder}/recorded.json", Path(stage.record).with_suffix(".json").as_posix()
            works.append(
                Work(
                    run=stage.run,
                    arguments=stage.arguments(f"{folder}/kept"),
                    shards=stage.recorded.shards,
                    folder=folder,
                    inputs=record.files(root, *stage.inputs),
                    code=record.stage_code(stage, listed, record.NUMBERS),
                    merge=f"tools.record write {stage.run}",
                    end=f"&& cp {made} {result}",
                    result=result,
                )
            )
    return works


def of_sweep(path: Path, listed: NotebookList, root: Path) -> tuple[list[Work], list[Executed]]:
    """Return what a sweep runs in shards, and the notebooks that read its tables."""
    sweep = read_sweep(path)
    works = [
        Work(
            run=run.name,
            arguments=run.arguments,
            shards=run.shards,
            folder=f"{run.folder}/{run.command}-shards",
            inputs=record.files(root, f"data/models/{run.options['model']}/**/*"),
            code=code_digest(*record.COMMANDS[run.command], *listed.modules),
            merge="rcblib merge",
            end=f"--table {run.table}",
            result=run.table,
            threads=sweep.resources.threads,
            resources=takes(sweep),
        )
        for run in runs_of(sweep)
    ]
    return works, notebooks_of(sweep)
