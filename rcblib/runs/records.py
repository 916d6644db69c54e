"""Ship tables that took hours beside a record of how each was made, and refuse those that are not as recorded.

A record is two files, ``data/recorded/<model>/<what>.parquet`` and ``.json``. Whoever reads a live table from a folder
may be given the path of the first file in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcblib.records import ImageId, ParameterError
from rcblib.runs.files import (
    atomic_path,
    config_hash,
    file_sha256,
    read_json,
    read_table,
    write_json,
    write_table,
)
from rcblib.runs.paths import user_path

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 25_000_000
"""All recorded tables of a folder together."""

FEW_VALUES = 1000
"""A column of numbers with at most so many distinct values is kept exactly, as a dictionary costs next to nothing."""

FACTS = ("description", "keys", "samples", "seconds", "provenance")
"""What a table that can be recorded carries in its metadata; see `table_facts`."""


@dataclass(frozen=True, eq=False)
class Record:
    """Hold a recorded table and what is known of it.

    Attributes
    ----------
    name : str
        Model and what was recorded, ``"<model>/<what>"``.
    facts : Mapping
        What `write_record` wrote beside the table; of a table's own facts see `table_facts`.
    path : pathlib.Path
        The table's file, whose content has been checked.
    """

    name: str
    facts: Mapping[str, Any] = field(repr=False)
    path: Path = field(repr=False)

    @property
    def description(self) -> Mapping[str, Any]:
        """Return what the table depends on besides the images."""
        return self.facts["description"]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Read the table, in the types of the one that was recorded; numbers to float32's precision."""
        return read_table(self.path)[0].astype(self.facts["dtypes"])

    def check(self, description: Mapping[str, Any], samples: Mapping[ImageId, str]) -> None:
        """Raise unless the record is of these settings and model, and holds these samples.

        Parameters
        ----------
        description : Mapping
            As recorded; its code and the name of its model may differ.
        samples : Mapping
            Image id to the hash of its identity.

        Raises
        ------
        ParameterError
            With what differs.
        """
        other = differing(self.description, description)
        if other:
            ours, theirs = (
                {name: values.get(name) for name in other} for values in (description, self.description)
            )
            raise ParameterError(self.name, ours, f"what was recorded, {theirs}")
        recorded = self.facts["samples"]
        strangers = [i for i, identity in samples.items() if recorded.get(str(i)) != identity]
        if strangers:
            accepted = f"the {len(recorded)} images that were recorded"
            raise ParameterError(self.name, f"other images of the ids {strangers[:5]}", accepted)

    def origin(self, code: str) -> str:
        """Say in one line when and on what the table was made, and whether by today's code.

        Parameters
        ----------
        code : str
            Today's digest; where one stands for each setting, those of some settings will do.
        """
        made = self.facts["provenance"]
        machines = list(dict.fromkeys(m["cpu"] if m["gpu"] == "none" else m["gpu"] for m in made))
        commits = list(dict.fromkeys((m["git_commit"] or "unknown")[:7] for m in made))
        own = self.description["code"]
        seconds = self.facts["seconds"]
        took = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
        is_own = bool(code) and set(code.split()) <= set(own.split())
        today = "that of today" if is_own else "not that of today: `make full` computes it anew"
        return (
            f"recorded: {max(m['date'] for m in made)[:10]}, {', '.join(machines)}, "
            f"{took}, commit {', '.join(commits)}, code {own[:12]} ({today})"
        )


def is_record(path: str | os.PathLike) -> bool:
    """Tell whether a path names a recorded table rather than a folder of live results."""
    return Path(path).suffix == ".parquet"


def read_written(path: str | os.PathLike) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table that a command wrote with ``--table``, recorded (then it is checked) or not, with its facts."""
    if Path(path).with_suffix(".json").is_file():
        record = read_record(path)
        return record.table, dict(record.facts)
    return read_table(path)


def read_record(path: str | os.PathLike) -> Record:
    """Open a recorded table.

    Parameters
    ----------
    path : path-like
        ``<model>/<what>.parquet``, with the record beside it.

    Raises
    ------
    ParameterError
        If one of the two files is missing, or the table is not the one that was recorded.
    """
    path = user_path(path)
    name = f"{path.parent.name}/{path.stem}"
    if not path.is_file() or not path.with_suffix(".json").is_file():
        raise ParameterError("recorded table", str(path), "a table with its record, .parquet and .json")
    facts = read_json(path.with_suffix(".json"))
    found = file_sha256(path)
    if facts.get("sha256") != found:
        raise ParameterError(
            name, f"a table of sha256 {found[:12]}", f"{facts.get('sha256', '')[:12]}, as recorded"
        )
    return Record(name, facts, path)


def differing(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name what differs between two descriptions, besides the code and the name that the model goes by."""
    names = dict.fromkeys([*recorded, *found])
    return [name for name in names if name not in ("code", "model") and recorded.get(name) != found.get(name)]


def table_facts(
    description: Mapping[str, Any],
    keys: Sequence[str],
    samples: Mapping[ImageId, str],
    units: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Gather what a table must carry to be recorded, as metadata of its file.

    Parameters
    ----------
    description : Mapping
        What the table depends on besides the images, with the digest of its ``code``; the same for every shard.
    keys : sequence of str
        Columns that tell a row from the others of its image.
    samples : Mapping
        Image id to the hash of its identity.
    units : iterable of Mapping
        Metadata of the files that the table was put together from: ``seconds`` and ``provenance``.
    """
    units = list(units)
    settings = {name: value for name, value in description.items() if name != "code"}
    return {
        "description": dict(description),
        "config_hash": config_hash(settings),
        "keys": list(keys),
        "samples": {str(image_id): identity for image_id, identity in samples.items()},
        "seconds": sum(unit.get("seconds", 0.0) for unit in units),
        "provenance": machines(unit["provenance"] for unit in units),
    }


def write_record(
    path: str | os.PathLike,
    table: pd.DataFrame,
    facts: Mapping[str, Any],
    drop: Iterable[str] = (),
    *,
    is_shipped: bool = True,
) -> None:
    """Write a table and its record; of one that is shipped as small as its readers can do with.

    Parameters
    ----------
    path : path-like
        ``<folder>/<model>/<what>.parquet``.
    table, facts
        As `rcblib.runs.merging.merge_tables` returns them; further facts are kept.
    drop : iterable of str
        Columns that nothing reads.
    is_shipped : bool
        Whether long columns are narrowed to float32's precision, and `MAX_BYTES` is a limit.

    Raises
    ------
    ParameterError
        If a column to drop is unknown or a key, or the shipped records of the folder exceed `MAX_BYTES`; the table is
        not written.
    """
    path, drop = user_path(path), list(drop)
    wrong = [name for name in drop if name not in table or name in ("image_id", *facts["keys"])]
    if wrong:
        raise ParameterError("drop", wrong, "columns of the table that are no keys")
    table = table.drop(columns=drop)
    dtypes = {name: str(dtype) for name, dtype in table.dtypes.items() if dtype.kind in "fiub"}
    long = [name for name in table if table[name].dtype.kind == "f" and table[name].nunique() > FEW_VALUES]
    narrow = {name: "float32" for name in long if is_shipped and table[name].dtype.itemsize > 4}
    settings = {
        "compression": "zstd",
        "compression_level": 19 if is_shipped else 3,
        "use_dictionary": [name for name in table if name not in long],
        "use_byte_stream_split": long,
    }
    with atomic_path(path) as temporary:
        write_table(temporary, table.astype(narrow), {}, **settings)
        records = path.parents[1].rglob("*.parquet") if is_shipped else ()
        n_bytes = sum(other.stat().st_size for other in records if other != path) + temporary.stat().st_size
        if is_shipped and n_bytes > MAX_BYTES:
            raise ParameterError(
                "recorded tables", f"{n_bytes / 1e6:.1f} MB", f"at most {MAX_BYTES / 1e6:g} MB"
            )
        sha256 = file_sha256(temporary)
    own = {"n_rows": len(table), "dtypes": dtypes, "sha256": sha256}
    write_json(path.with_suffix(".json"), {**facts, **own})


def sample_hash(identity: Mapping[str, Any]) -> str:
    """Shorten the identity of a sample to what a record keeps of it."""
    return config_hash(identity)


def machines(made: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List where and with what something was made, once each, with the latest date."""
    latest: dict[str, dict[str, Any]] = {}
    for each in made:
        key = config_hash({name: value for name, value in each.items() if name != "date"})
        if key not in latest or latest[key]["date"] < each["date"]:
            latest[key] = dict(each)
    return [latest[key] for key in sorted(latest)]
