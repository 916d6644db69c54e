"""Say what benchmarks measured beside its targets, write it with all that it depends on, and read it again."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rcblib.records import ParameterError
from rcblib.runs.digest import code_digest
from rcblib.runs.files import read_json, write_json
from rcblib.runs.provenance import project_root, provenance

RECORDED = "data/recorded/benchmarks"
"""Where results lie that pages show, one file a benchmark."""

WHOLE = {"cpu": "run", "gpu": "run-gpu"}
"""Names of the files that tell what each part of a whole run took."""

KINDS = ("at least", "at most")


@dataclass(frozen=True)
class Target:
    """Hold one number that was measured, and what it is to be.

    Attributes
    ----------
    what : str
        What was measured, of which model.
    value, limit : float
        The number and its target; NaN where it could not be measured.
    kind : {"at least", "at most"}
        Which side of `limit` it is to be on.
    unit : str
        Printed behind both, such as ``"x"``, ``"%"`` or ``"GB"``.
    why : str
        What limits it, in a few words, where it falls short.
    """

    what: str
    value: float
    limit: float
    kind: str = "at least"
    unit: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ParameterError("kind", self.kind, ", ".join(KINDS))

    @property
    def met(self) -> bool:
        """Tell whether the number is on the right side of its target."""
        return self.value >= self.limit if self.kind == "at least" else self.value <= self.limit

    def __str__(self) -> str:
        """Tell it in one line."""
        verdict = "met" if self.met else "falls short" + f": {self.why}" * bool(self.why)
        value = "not measured" if math.isnan(self.value) else f"{self.value:.3g}{self.unit}"
        return f"{self.what:<58} {value:>12}, {self.kind} {self.limit:.3g}{self.unit}: {verdict}"


def write_measured(
    name: str, table: pd.DataFrame, options: argparse.Namespace, targets: Iterable[Target] = ()
) -> None:
    """Print the targets of a benchmark, and write its rows to the JSON file that `options.output` names, if it does.

    Parameters
    ----------
    name : str
        Module of the benchmark in this package; the key of its rows.
    table : pandas.DataFrame
        What was measured.
    options : argparse.Namespace
        What the benchmark was asked to do, seeds among it.
    targets : iterable of Target
        Numbers that are to reach something.
    """
    targets = list(targets)
    for target in targets:
        print(target, flush=True)
    if options.output:
        settings = {key: value for key, value in vars(options).items() if key != "output"}
        write_json(options.output, {
            name: table.to_dict("records"),
            "targets": [asdict(target) for target in targets],
            "settings": settings,
            "code": code_digest(f"benchmarks.{name}"),
            "provenance": provenance(),
        })  # fmt: skip


def read_targets(folder: Path, parts: Sequence[str]) -> list[Target]:
    """Read the targets of some benchmarks from the files of a folder, in their order; of none that did not run."""
    files = [path for part in parts if (path := folder / f"{part}.json").is_file()]
    return [
        Target(**{**given, "value": math.nan if given["value"] is None else given["value"]})
        for path in files
        for given in read_json(path).get("targets", ())
    ]


def recorded(part: str) -> dict[str, Any] | None:
    """Read what a benchmark measured when it was recorded.

    Returns
    -------
    dict or None
        Its rows under the name of its module, ``targets``, ``settings``, ``code`` (digest) and ``provenance`` with
        date, versions, hardware and commit; ``None`` where it was never run, as those of a GPU without one.
    """
    path = project_root() / RECORDED / f"{part}.json"
    return read_json(path) if path.is_file() else None


def target_table(parts: Iterable[str]) -> pd.DataFrame:
    """Put the recorded targets of some benchmarks beneath each other.

    Returns
    -------
    pandas.DataFrame
        One row a target: ``part``, the fields of `Target`, ``met``, and ``cpu``, ``gpu``, ``date``, ``commit`` of it.
    """
    rows = []
    for part in parts:
        found = recorded(part) or {"targets": ()}
        for given in found["targets"]:
            target = Target(**{**given, "value": math.nan if given["value"] is None else given["value"]})
            made = found["provenance"]
            rows.append(
                {"part": part, **asdict(target), "met": target.met}
                | {key: made[key] for key in ("cpu", "gpu", "date")}
                | {"commit": made["git_commit"]}
            )
    return pd.DataFrame(rows)
