"""Let a notebook compute a share of its images, write that as a table, and end there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcblib.records import ParameterError
from rcblib.runs.files import write_table
from rcblib.runs.records import is_record
from rcblib.runs.shards import Shard

if TYPE_CHECKING:
    import pandas as pd


def shard_of(config: Any) -> Shard | None:
    """Return which share the parameters ``shard`` and ``n_shards`` ask for; ``None`` for the whole notebook.

    Raises
    ------
    ParameterError
        If there is no such share, or what is to be computed is read from a record.
    """
    if not 0 <= config.shard <= config.n_shards or (config.n_shards > 1 and not config.shard):
        raise ParameterError("shard", config.shard, f"1 to {config.n_shards}, n_shards")
    for name in ("probed", "evaluated", "measured"):
        if config.shard and is_record(given := getattr(config, name, "")):
            raise ParameterError(name, given, "a folder or nothing, where a shard is computed")
    return Shard(config.shard, config.n_shards) if config.shard else None


def end_shard(config: Any, name: str, table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """Write the table of a shard and end the notebook; do nothing where it runs as a whole.

    Parameters
    ----------
    config : dataclass
        The parameters, with ``shard``, ``n_shards`` and ``results_folder``.
    name : str
        The notebook's; the table is ``shards/<name>/<shard>-of-<n_shards>.parquet`` of the folder of results.
    table, facts
        As a command of the library writes them for a shard; `rcblib.runs.merging` puts them together.

    Raises
    ------
    SystemExit
        With status 0, at which papermill stops without an error.
    """
    shard = shard_of(config)
    if shard is None:
        return
    of_all = f"{shard.number}-of-{shard.n_shards}"
    path = Path(config.results_folder) / "shards" / name / f"{of_all}.parquet"
    write_table(path, table, facts)
    left_out = f", {len(facts['skipped'])} left out" if facts["skipped"] else ""
    print(f"shard       {of_all}: {len(table)} rows of {len(facts['samples'])} images{left_out} in {path}")
    sys.exit(0)
