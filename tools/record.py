"""Record what a stage found at its full setting, and check the record with a few images that are computed again.

    python -m tools.record write RUN SHARD...        puts the tables of all shards together into data/recorded
    python -m tools.record check RUN TABLE OUTPUT    fails with a line where a table differs from the record

RUN is a stage as in workflow/notebooks.yml, name-model.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcblib.records import ParameterError
from rcblib.runs.agreement import Tolerance, compare_with_record
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.digest import code_digest
from rcblib.runs.files import file_sha256, read_json, read_table, to_plain, write_json
from rcblib.runs.merging import merge_tables
from rcblib.runs.records import Record, read_record, write_record
from tools.notebook_list import NotebookList, Stage, read_notebook_list

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]

COMMAND = ["rcblib.__main__", "rcblib.data.opening"]
COMMANDS = {
    "probe": [*COMMAND, "rcblib.probe.store", "rcblib.runs.shards"],
    "evaluate": [*COMMAND, "rcblib.evaluate.parts", "rcblib.pruners.asked", "rcblib.data.questions"],
    "gates": [*COMMAND, "rcblib.evaluate.gates", "rcblib.pruners.registry", "rcblib.data.questions"],
    "truth": [*COMMAND, "rcblib.evaluate.truth", "rcblib.data.questions"],
    "explorer": [*COMMAND, "rcblib.reading.explorer.command"],
}
"""Modules that each command runs."""
BY_OPTION = {"every_method": ["rcblib.pruners.every"]}
"""Those that it runs with an option only."""
NUMBERS = {
    "probe": ["rcblib.probe.run"],
    "evaluate": ["rcblib.evaluate.session", "rcblib.pruners.registry", "rcblib.data.questions"],
    "gates": [
        "rcblib.evaluate.session",
        "rcblib.evaluate.swapping",
        "rcblib.evaluate.tokens",
        "rcblib.pruners.oracle",
        "rcblib.data.questions",
    ],
    "truth": ["rcblib.evaluate.truth", "rcblib.data.questions"],
    "explorer": ["rcblib.evaluate.explored", "rcblib.pruners.registry"],
}
"""Those that decide its numbers: a record is not made anew for how results are kept or told."""

PARTS = {
    "settings": " with {n_settings} of {n_settings_recorded} settings",
    "positions": " at {n_positions} of {n_positions_recorded} positions",
}
"""How it is told that a build computed a part only of what was recorded about an image."""

TELLING = {"README.md", "scores.json", "training.json"}
"""Files of a model or codebook that tell about it and decide nothing."""


def files(root: Path, *patterns: str) -> list[str]:
    """List the files below a repository that match glob patterns, sorted."""
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts)


def stage_code(stage: Stage, listed: NotebookList, of: dict[str, list[str]] = COMMANDS) -> str:
    """Return the digest of the code that a stage runs, or of that which decides its numbers."""
    by_option = [modules for option, modules in BY_OPTION.items() if stage.options.get(option)]
    return code_digest(*of[stage.command], *sum(by_option, []), *listed.modules)


def state_of(stage: Stage, listed: NotebookList, root: Path) -> dict[str, Any]:
    """Return all that a stage's table depends on, known without running it: a record of the same state is current."""
    read = [name for name in files(root, *stage.inputs) if Path(name).name not in TELLING]
    inputs = {name: file_sha256(root / name) for name in read}
    code = stage_code(stage, listed, NUMBERS)
    return to_plain({"command": stage.command, "options": stage.options, "code": code, "inputs": inputs})


def is_current(stage: Stage, listed: NotebookList, root: Path) -> bool:
    """Tell whether a stage has been recorded as it would be now, and the record is whole."""
    try:
        recorded = read_record(root / stage.record).facts
    except ParameterError:
        return False
    return recorded.get("stage") == state_of(stage, listed, root)


def chosen_stages(listed: NotebookList, models: list[str], names: list[str]) -> list[Stage]:
    """Return the recorded stages of some models and names, all where none is given.

    Raises
    ------
    ValueError
        If a name is that of no recorded stage or model.
    """
    recorded = [stage for stage in listed.stages if stage.recorded]
    for what, given, known in (
        ("MODELS", models, [stage.options["model"] for stage in recorded]),
        ("STAGES", names, [stage.name for stage in recorded]),
    ):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"{what}: got {unknown}; accepted: {sorted(set(known))}")
    return [
        stage
        for stage in recorded
        if (not models or stage.options["model"] in models) and (not names or stage.name in names)
    ]


def again(stage: Stage, root: Path) -> list[str]:
    """Return the arguments by which a build computes a part of a record again: its first images, and some of each.

    Of the settings in order it is every N-th: at one budget or another many methods have their turn, where N has no
    divisor in common with the number of budgets; of the probed positions every N-th, too. The record's own hash says
    which one is the first: the part stays the same while the record does, and nobody chooses it.
    """
    words, path = ["--first", str(stage.recorded.first)], (root / stage.record).with_suffix(".json")
    if not path.is_file():
        return words
    n_apart = stage.recorded.settings
    if n_apart > 1:
        words += ["--settings", f"{_turn(path, n_apart) + 1}/{n_apart}"]
    n_apart = stage.recorded.positions
    if n_apart > 1:
        probed = _positions(read_record(root / stage.record).table, stage.recorded.first)
        words += ["--positions", ",".join(map(str, probed[_turn(path, n_apart) :: n_apart]))]
    return words


def _positions(table: pd.DataFrame, n_images: int) -> list[int]:
    """List the positions that a table has of each view of its first images, ascending; grids of tiles may differ."""
    first = list(dict.fromkeys(table["image_id"]))[:n_images]
    rows = table[table["image_id"].isin(first)].dropna(subset="position")  # some rows are about no token
    views = rows.groupby(["image_id", "view"] if "view" in rows else ["image_id"])["position"]
    return sorted(set.intersection(*(set(own.astype(int)) for _, own in views)))


def _turn(path: Path, n_apart: int) -> int:
    """Return with which of so many a part of a record begins, from 0, by the hash in the file of its facts."""
    return int(read_json(path)["sha256"], 16) % n_apart


def _of_some_positions(record: Record, table: pd.DataFrame, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a table that was probed at some positions of a record: of its settings, but only of these."""
    description = copy.deepcopy(dict(facts["description"]))
    description["config"]["positions"] = record.description["config"]["positions"]
    found = sorted(set(table["position"].dropna().astype(int)))
    return {**facts, "description": description, "only": {"position": found}}


def _ranked_again(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a record of ranks inside views with the ranks that tokens have among those that are there."""
    import pandas as pd

    from rcblib.evaluate.ranks import PLACE, has_side

    names = [name for name in rows if name not in PLACE and has_side(name)]
    views = rows.groupby(["image_id", "view"])
    n_tokens = views["token"].transform("count")  # rows of other parts are about no token by itself
    ranks = (views[names].rank() - 1).div((n_tokens - 1).clip(lower=1), axis=0)
    return pd.concat([rows.drop(columns=names), ranks], axis=1)[list(rows)]


def write(stage: Stage, listed: NotebookList, shards: list[Path], root: Path) -> None:
    """Write the record of a stage from the tables of its shards."""
    table, facts = merge_tables(shards)
    keys = [name for name in facts["keys"] if name in table]  # some runs of a command lack columns of others
    facts |= {"keys": keys, "stage": state_of(stage, listed, root)}
    write_record(root / stage.record, table, facts, stage.recorded.drop)
    size = (root / stage.record).stat().st_size / 1e6
    print(f"{len(table)} rows of {len(facts['samples'])} images in {stage.record}, {size:.2f} MB")


def check(stage: Stage, path: Path, output: Path, root: Path) -> bool:
    """Compare a table with the record of its stage; write what was found, or print what differs, and tell which."""
    record = read_record(root / stage.record)
    found, facts = read_table(path)
    among_these = None
    if stage.recorded.positions > 1:
        facts = _of_some_positions(record, found, facts)
        among_these = _ranked_again if stage.options.get("ranks") else None
    limits = {name: getattr(stage.recorded, name) for name in ("absolute", "columns", "differing")}
    agreement = compare_with_record(record, found, facts, Tolerance(**limits), among_these)
    if agreement.disagreements:
        first, *others = agreement.disagreements
        more = f"; also {', '.join(problem.column for problem in others)}" if others else ""
        print(f"the record does not agree with what was computed again: {first}{more}", file=sys.stderr)
    else:
        origin = record.origin(facts["description"]["code"])
        checked = {"origin": origin, "n_recorded": len(record.facts["samples"]), "tolerance": limits}
        some, of_these = "", record.table["image_id"].astype(str).isin(list(facts["samples"]))
        for column, values in facts.get("only", {}).items():
            number = f"n_{column}s"
            n_recorded = record.table.loc[of_these, column].nunique()
            checked |= {number: len(values), f"{number}_recorded": n_recorded}
            some += PARTS[f"{column}s"].format(**checked)
        write_json(output, checked | asdict(agreement))
        print(f"{origin}; {agreement.n_images} of {checked['n_recorded']} images computed again{some} agree")
    return not agreement.disagreements


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Run a command; return 1 where a table differs from its record, 2 after a wrong input."""
    parser = OneLineParser(prog="record", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command", metavar="<command>")
    for name in ("write", "check"):
        command = commands.add_parser(name)
        command.add_argument("run")
        command.add_argument(
            "tables" if name == "write" else "table", type=Path, nargs="+" if name == "write" else None
        )
    command.add_argument("output", type=Path)
    options = parser.parse_args(arguments)

    def run() -> int:
        listed = read_notebook_list(root / "workflow" / "notebooks.yml")
        stage = listed.find(options.run)
        if options.command == "write":
            write(stage, listed, options.tables, root)
            return 0
        return int(not check(stage, options.table, options.output, root))

    return run_command("record", run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
