"""Put the tables of shards together, when all are there and are of one run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcblib.records import ParameterError
from rcblib.runs.files import read_metadata, read_table
from rcblib.runs.records import machines, write_record
from rcblib.runs.shards import images_digest

if TYPE_CHECKING:
    import pandas as pd

FACTS = ("description", "keys", "samples", "seconds", "provenance", "shard", "skipped")
"""What a table that can be merged carries in its metadata; see `rcblib.runs.records.table_facts` and `Shard.share`."""


def shard_files(given: Sequence[str | os.PathLike]) -> list[Path]:
    """Return files as they are given, or the tables in a folder.

    Raises
    ------
    ParameterError
        If there is none, or one is no file.
    """
    paths = [Path(each) for each in given]
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(paths[0].glob("*.parquet"))
    wrong = [str(path) for path in paths if not path.is_file()]
    if wrong or not paths:
        raise ParameterError("shards", ", ".join(wrong) or "none", "tables of shards, or a folder of them")
    return paths


def check_shards(paths: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """See that tables are all shards of one run; their rows are not read.

    Returns
    -------
    dict
        Facts of the whole, as one run without shards writes them.

    Raises
    ------
    ParameterError
        If a table carries no facts, two differ in their settings, model, code or images, a shard is missing or there
        twice, or an image is in none or in two of them. Files, shards and images are named.
    """
    read: dict[str, dict[str, Any]] = {}
    for path in shard_files(paths):
        facts = read_metadata(path)
        name = path.name if path.name not in read else str(path)
        if set(FACTS) - set(facts):
            raise ParameterError("table", name, "a table that a command of the library wrote with --table")
        read[name] = facts
    first, facts = next(iter(read.items()))
    for name, other in read.items():
        here, there = (_run_of(each) for each in (facts, other))
        wrong = [key for key in dict.fromkeys([*here, *there]) if here.get(key) != there.get(key)]
        if wrong:
            raise ParameterError(
                "shards", f"{first} and {name} with another {', '.join(wrong)}", "shards of one run"
            )
    by_number: dict[int, list[str]] = {}
    for name, own in read.items():
        by_number.setdefault(own["shard"]["number"], []).append(name)
    n_shards = facts["shard"]["n_shards"]
    doubled = [
        f"shard {number}/{n_shards} in {' and '.join(names)}"
        for number, names in sorted(by_number.items())
        if len(names) > 1
    ]
    missing = [f"{number}/{n_shards}" for number in range(1, n_shards + 1) if number not in by_number]
    if doubled or missing:
        told = [*doubled, *([f"no shard {', '.join(missing)}"] if missing else [])]
        raise ParameterError("shards", "; ".join(told), f"each of the {n_shards} shards once")
    samples: dict[str, str] = {}
    for name, own in read.items():
        if twice := samples.keys() & own["samples"].keys():
            raise ParameterError("shards", f"{name} with images {sorted(twice)[:5]} again", "each image once")
        samples |= own["samples"]
    skipped = {
        key: reason for own in read.values() for key, reason in own["skipped"].items() if key not in samples
    }
    if images_digest({*samples, *skipped}) != facts["shard"]["images"]:
        raise ParameterError(
            "shards", f"{len(samples)} images, and {len(skipped)} left out", "every image of the run"
        )
    return facts | {
        "samples": {key: samples[key] for key in sorted(samples, key=lambda key: (len(key), key))},
        "seconds": sum(own["seconds"] for own in read.values()),
        "provenance": machines(each for own in read.values() for each in own["provenance"]),
        "shard": facts["shard"] | {"number": 1, "n_shards": 1},
        "skipped": {key: skipped[key] for key in sorted(skipped)},
    }


def merge_tables(paths: Sequence[str | os.PathLike]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Put the tables of shards together; the result does not depend on how many there were.

    Parameters
    ----------
    paths : sequence of path-like
        Files, or one folder of them, as commands write them with ``--shard`` and ``--table``.

    Returns
    -------
    tuple
        Table, by ascending image, the rows of an image in the order of its shard; and facts.

    Raises
    ------
    ParameterError
        As `check_shards`.
    """
    import pandas as pd

    paths = list(paths)
    facts = check_shards(paths)
    # Of a shard without images the types say nothing.
    tables = [table for table, _ in map(read_table, shard_files(paths)) if len(table)]
    if not tables:
        raise ParameterError("shards", "no image that could be read", "at least one")
    merged = pd.concat(tables, ignore_index=True).sort_values("image_id", kind="stable", ignore_index=True)
    return merged, facts


def merge_to(path: str | os.PathLike | None, paths: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """Write what `merge_tables` returns as a table with its record beside it, and return the facts.

    The bytes of the table depend on rows alone, not on shards, hardware or time: these stand in the record. It is read
    in place of live results, as those that are shipped (`rcblib.runs.records.read_record`). Without a path shards are
    checked only, and their rows are not read: so it fits in memory, however many there are.

    Raises
    ------
    ParameterError
        As `check_shards`; also if the path does not end in ``.parquet``.
    """
    if path is None:
        return check_shards(paths)
    if Path(path).suffix != ".parquet":
        raise ParameterError("table", str(path), "a path that ends in .parquet")
    table, facts = merge_tables(paths)
    write_record(path, table, facts, is_shipped=False)
    return facts


def _run_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all shards of a run have in common."""
    of_share = {name: value for name, value in facts["shard"].items() if name != "number"}
    return {**facts["description"], "keys": facts["keys"], **of_share}
