"""Read a sweep, ``workflow/sweep.yml`` or one like it: every model with every set of images and every seed.

python -m tools.sweep summary SWEEP    lays the tables of a finished sweep side by side
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import pydantic
import yaml

from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.files import atomic_write
from rcblib.runs.records import read_record

Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Positive = Annotated[int, pydantic.Field(ge=1)]
Natural = Annotated[int, pydantic.Field(ge=0)]
Ratio = Annotated[float, pydantic.Field(gt=0, le=1)]
Cosine = Annotated[float, pydantic.Field(ge=-1, le=1)]

CUT_OFF_RULE = "max_cosine"
"""The rule whose scores can be compared with a cut-off, `max_similarity`; those of the others need a share."""


class Part(pydantic.BaseModel):
    """Refuse keys that nobody reads."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Model(Part):
    """Name a model, and what belongs to it alone: its codebook, how that scores, and where and how it is loaded."""

    name: Name
    model: str = ""
    codebook: str = ""
    rule: str = "max_cosine"
    device: str = "auto"
    dtype: str = "auto"
    device_map: str = ""
    quantization: str = ""

    @property
    def has_cut_off(self) -> bool:
        """Tell whether its codebook scores by a rule that takes a cut-off."""
        return self.rule == CUT_OFF_RULE

    def loading(self) -> dict[str, str]:
        """Return the model and how it is loaded, as commands and notebooks name these."""
        how = self.model_dump(include={"device", "dtype", "device_map", "quantization"})
        return {"model": self.model or self.name, **how}


class Images(Part):
    """Name a set of images."""

    name: Name
    images: str = "auto"
    split: str = ""
    n_images: Positive | None = None


class Sharded(Part):
    """Say how many jobs share the images."""

    shards: Positive = 1
    batch_size: Positive = 32


class Probe(Sharded):
    """Say what is probed."""

    positions: Literal["all", "grid", "paper_ranks"] = "all"


class Evaluate(Sharded):
    """Say what is asked, and who answers: methods, shares and cut-offs of one run, in which images are encoded once.

    Cut-offs are those of models whose codebook scores by a rule that has one; others are pruned to the shares alone.
    """

    images_per_part: Positive = 2
    tasks: list[str] = []
    n_per_task: Positive = 8
    n_yes_no: Positive | None = None
    pruner: list[str] = []
    retain_ratio: list[Ratio] = []
    max_similarity: list[Cosine] = []
    random_seeds: Positive = 1
    max_new_tokens: Positive = 32


class Resources(Part):
    """Say what a shard takes."""

    threads: Positive = 1
    gpus: Natural = 0
    mem_mb: Positive = 4000
    minutes: Positive = 60


class Sweep(Part):
    """Hold a sweep.

    Attributes
    ----------
    name : str
        Of the folder below ``runs/sweeps``.
    models, images, seeds : list
        Every one is combined with every other; a seed draws scenes, questions and random tokens.
    on_error : {"stop", "skip"}
        What is done about images that cannot be read.
    probe, evaluate : optional
        What is run of each combination, in how many shards.
    notebooks : list
        Those that are then run on the tables of the first seed.
    resources : Resources
        What one shard takes.
    """

    name: Name
    models: list[Model] = pydantic.Field(min_length=1)
    images: list[Images] = pydantic.Field(min_length=1)
    seeds: list[Natural] = pydantic.Field(default=[0], min_length=1)
    on_error: Literal["stop", "skip"] = "stop"
    probe: Probe | None = None
    evaluate: Evaluate | None = None
    notebooks: list[
        Literal["token_centric", "context_centric", "intermediate_states", "pruned_inference"]
    ] = []
    resources: Resources = Resources()

    @pydantic.model_validator(mode="after")
    def _is_consistent(self) -> Sweep:
        for what in (self.models, self.images):
            names = [each.name for each in what]
            if len(set(names)) < len(names):
                raise ValueError(f"names {names}; accepted: distinct names")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds}; accepted: distinct seeds")
        if self.probe is None and self.evaluate is None:
            raise ValueError("neither probe nor evaluate; accepted: one of them at least")
        if (
            self.evaluate
            and self.evaluate.max_similarity
            and not any(each.has_cut_off for each in self.models)
        ):
            rules = sorted({each.rule for each in self.models})
            raise ValueError(
                f"max_similarity, and rules {rules} alone; accepted: a model with {CUT_OFF_RULE}"
            )
        bare = [each.name for each in self.models if each.has_cut_off and not each.codebook]
        if self.evaluate and self.evaluate.max_similarity and bare:
            raise ValueError(
                f"max_similarity, and no codebook of {bare}; accepted: with a codebook of every model"
            )
        for name in self.notebooks:
            needs = "evaluate" if name == "pruned_inference" else "probe"
            if getattr(self, needs) is None:
                raise ValueError(f"notebook {name} without {needs}; accepted: with it")
        return self


@dataclass(frozen=True)
class Run:
    """Describe one command on one combination, whose images several jobs share.

    Attributes
    ----------
    name, command : str
        Of its rules, and of the library.
    folder : str
        Where its tables, shards and finished images are.
    shards : int
        Jobs.
    options : dict
        Of the command, underscores in place of hyphens; without those that are empty.
    """

    name: str
    command: str
    folder: str
    shards: int
    options: dict[str, Any]

    @property
    def table(self) -> str:
        """Return the merged table."""
        return f"{self.folder}/{self.command}.parquet"

    @property
    def arguments(self) -> list[str]:
        """Return the command's arguments, but for shard and table."""
        words = [self.command, "--folder", f"{self.folder}/{self.command}"]
        for name, value in self.options.items():
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
        return words


@dataclass(frozen=True)
class Executed:
    """Describe a notebook on the merged table of a run."""

    name: str
    notebook: str
    table: str
    output: str
    parameters: dict[str, Any]
    resources: dict[str, int] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """Return its name among Snakemake's rules."""
        return rule_name(self.name)


def rule_name(run: str) -> str:
    """Write the name of a run in letters that Snakemake takes."""
    return re.sub(r"\W", "_", run)


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep.

    Raises
    ------
    ParameterError
        In one line, with the place of the first mistake.
    """
    try:
        return Sweep.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError("sweep", str(path), f"a YAML file ({str(error).splitlines()[0]})") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "sweep"
        raise ParameterError(
            f"{path.name}: {where}", first["input"] if first["loc"] else path.name, first["msg"]
        ) from None


def combinations(sweep: Sweep) -> Iterator[tuple[Model, Images, int, str]]:
    """Yield every model with every set of images and every seed, and the folder of the three."""
    for model in sweep.models:
        for images in sweep.images:
            for seed in sweep.seeds:
                yield model, images, seed, f"runs/sweeps/{sweep.name}/{model.name}/{images.name}/seed-{seed}"


def takes(sweep: Sweep) -> dict[str, int]:
    """Return what a job of a sweep takes, as Snakemake names it."""
    asked = sweep.resources
    return {"mem_mb": asked.mem_mb, "runtime": asked.minutes} | ({"gpu": asked.gpus} if asked.gpus else {})


def runs_of(sweep: Sweep) -> list[Run]:
    """Return what is run, each with all of its options."""
    runs = []
    for model, images, seed, folder in combinations(sweep):
        for command in ("probe", "evaluate"):
            what = getattr(sweep, command)
            if what is None:
                continue
            options = model.loading() | images.model_dump(exclude={"name"})
            options |= {"seed": seed, "on_error": sweep.on_error}
            options |= what.model_dump(exclude={"shards"})
            if command == "evaluate" and model.codebook:
                options |= {"codebook": model.codebook, "rule": model.rule}
            if not model.has_cut_off:
                options.pop("max_similarity", None)
            options = {name: value for name, value in options.items() if value not in ("", None, [])}
            name = f"{command}-{folder.partition('/sweeps/')[2].replace('/', '-')}"
            runs.append(Run(name, command, folder, what.shards, options))
    return runs


def notebooks_of(sweep: Sweep) -> list[Executed]:
    """Return the notebooks that are run on the merged tables of the first seed."""
    executed = []
    tables = {(run.folder, run.command): run.table for run in runs_of(sweep)}
    for model, images, seed, folder in combinations(sweep):
        if seed != sweep.seeds[0]:
            continue
        common = model.loading() | images.model_dump(exclude={"name"}, exclude_none=True)
        common |= {"on_error": sweep.on_error, "seed": seed}
        for name in sweep.notebooks:
            command, reads = ("evaluate", "evaluated") if name == "pruned_inference" else ("probe", "probed")
            table = tables[folder, command]
            own = {reads: table, "results_folder": f"{folder}/results"}
            if command == "probe":
                own |= sweep.probe.model_dump(include={"positions", "batch_size"})
            else:
                asked = sweep.evaluate
                own |= {"n_questions": asked.n_per_task, "n_yes_no": asked.n_yes_no or asked.n_per_task}
                own |= {
                    "tasks": asked.tasks,
                    "max_new_tokens": asked.max_new_tokens,
                    "batch_size": asked.batch_size,
                }
                own |= {"budgets": asked.retain_ratio} if asked.retain_ratio else {}
                own |= {"codebook": model.codebook} if model.codebook else {}
            given = {key: value for key, value in (common | own).items() if value != ""}
            where = folder.partition("/sweeps/")[2]
            executed.append(
                Executed(
                    f"{name}-{where.replace('/', '-')}",
                    name,
                    table,
                    f"{folder}/{name}.ipynb",
                    given,
                    takes(sweep),
                )
            )
    return executed


def summary(sweep: Sweep) -> pd.DataFrame:
    """Lay all merged tables side by side: a row for each combination, and method at a budget on a task.

    A method's row has its mean score, and ``retained``, the mean share of the visual tokens that stayed.
    """
    rows = []
    for model, images, seed, folder in combinations(sweep):
        where = {"model": model.name, "images": images.name, "seed": seed}
        for command in ("probe", "evaluate"):
            if getattr(sweep, command) is None:
                continue
            record = read_record(f"{folder}/{command}.parquet")
            facts, table = record.facts, record.table
            took = {
                "n_images": len(facts["samples"]),
                "n_left_out": len(facts["skipped"]),
                "seconds": round(facts["seconds"], 1),
            }
            if command == "probe":
                rows.append(where | {"what": "probing"} | took | {"n": len(table)})
                continue
            keys = ["method", "retain_ratio", "max_similarity", "settings", "task"]
            for key, own in table.groupby(keys, sort=False, dropna=False):
                retained = (own["n_retained"] / own["n_visual_tokens"]).mean()
                said = {"n": len(own), "retained": round(retained, 4), "score": round(own["score"].mean(), 4)}
                rows.append(where | {"what": "evaluation"} | took | dict(zip(keys, key, strict=True)) | said)
    return pd.DataFrame(rows)


def main(arguments: list[str]) -> int:
    """Write the summary of a finished sweep beside its tables, and print it."""
    parser = OneLineParser(prog="sweep", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["summary"])
    parser.add_argument("sweep", type=Path)
    options = parser.parse_args(arguments)

    def run() -> None:
        sweep = read_sweep(options.sweep)
        table = summary(sweep)
        atomic_write(f"runs/sweeps/{sweep.name}/summary.tsv", table.to_csv(sep="\t", index=False))
        print(table.to_string(index=False, na_rep="–"))

    return run_command("sweep", run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
