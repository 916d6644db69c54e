"""Keep tables under a hash of what they depend on, and publish the key numbers of a notebook."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcblib.records import ParameterError
from rcblib.runs.files import config_hash, read_table, to_plain, write_json, write_table
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import provenance

if TYPE_CHECKING:
    import pandas as pd


_STARTED = time.monotonic()
_USED: dict[str, dict[str, str]] = {}


def note_used(kind: str, name: str, digest: str) -> None:
    """Remember a model or codebook that this process has opened, for what it writes about its results.

    Parameters
    ----------
    kind : {"models", "codebooks"}
    name, digest : str
        What it is called, and the hash of its content.
    """
    _USED.setdefault(kind, {})[name] = digest


def loaded_code() -> str:
    """Hash the files of this project's packages that are imported here, in 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in ("rcblib", "worlds", "benchmarks") and getattr(module, "__file__", None):
            digest.update(name.encode() + Path(module.__file__).read_bytes())
    return digest.hexdigest()[:12]


def cached_table(
    folder: str | os.PathLike, name: str, config: Any, code: str, compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """Compute a table once per config and code, and read it back afterwards.

    Parameters
    ----------
    folder : path-like
        Where tables are kept.
    name : str
        What the table holds; the file is ``<name>-<hash of config and code>.parquet``.
    config : dataclass or Mapping
        Every setting that the table depends on; stored in the file with the code's digest, the time and the provenance.
    code : str
        Digest of the code that it depends on, as `rcblib.runs.digest.code_digest` gives it.
    compute : callable
        Makes the table; called only where no readable file for this config and code exists.

    Returns
    -------
    pandas.DataFrame
        As read from the file, so first and later calls return the same types.
    """
    return cached_unit(folder, name, config, code, compute)[0]


def cached_unit(
    folder: str | os.PathLike, name: str, config: Any, code: str, compute: Callable[[], pd.DataFrame]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Do as `cached_table`; return the metadata of the file with the table: ``seconds`` it took, and provenance."""
    made_with = {"config": config, "code": code}
    path = user_path(folder, "folder") / f"{name}-{config_hash(made_with)}.parquet"
    if path.is_file():
        try:
            return read_table(path)
        except ParameterError as error:
            warnings.warn(f"{error}; computing it again", stacklevel=3)
    start = time.perf_counter()
    table = compute()
    took = {"seconds": time.perf_counter() - start, "provenance": provenance()}
    write_table(path, table, made_with | took)
    return read_table(path)


def write_results(path: str | os.PathLike, results: Mapping[str, Mapping[str, Any]], config: Any) -> None:
    """Write the key numbers that a notebook publishes, with what they were made from.

    Beside config, its hash and the provenance stand the seed, the hash of the code that is imported, those of the
    models and codebooks that were opened (`note_used`), and the seconds since this module was imported.

    Parameters
    ----------
    path : path-like
        JSON file.
    results : Mapping
        Name to ``{"value": ..., "n": ..., "interval": [low, high] or None}``; further keys, such as
        ``unit``, are kept.
    config : dataclass or Mapping
        The notebook's config.

    Raises
    ------
    ParameterError
        Where a result lacks its value or its n, or its interval is not an ascending pair.
    """
    for name, result in results.items():
        if not isinstance(result, Mapping) or "value" not in result or "n" not in result:
            raise ParameterError(f"results[{name!r}]", result, "a mapping with at least value and n")
        interval = result.get("interval")
        if interval is not None and (len(interval) != 2 or not interval[0] <= interval[1]):
            raise ParameterError(f"results[{name!r}]['interval']", interval, "None or [low, high], ascending")
    content = {
        "results": {name: {"interval": None, **result} for name, result in results.items()},
        "config": to_plain(config),
        "config_hash": config_hash(config),
        "seed": to_plain(config).get("seed"),
        "code": loaded_code(),
        **{kind: _USED.get(kind, {}) for kind in ("models", "codebooks")},
        "seconds": round(time.monotonic() - _STARTED, 1),
        "provenance": provenance(),
    }
    write_json(path, content)


def results_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Lay the key numbers of a notebook out for reading: one line a result, all as text.

    Parameters
    ----------
    results : Mapping
        As `write_results` takes them.

    Returns
    -------
    pandas.DataFrame
        Indexed by name: ``value`` and ``interval`` to four digits, ``n`` and ``unit``; blank where there is none, and
        without columns that would be blank throughout.
    """
    import pandas as pd

    def written(value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}"

    lines = {
        name.replace("_", " "): {
            "value": written(result["value"]),
            "interval": "[{}, {}]".format(*map(written, result["interval"]))
            if result.get("interval")
            else "",
            "n": written(result["n"]),
            "unit": result.get("unit", ""),
        }
        for name, result in results.items()
    }
    table = pd.DataFrame.from_dict(lines, orient="index", columns=["value", "interval", "n", "unit"])
    return table.loc[:, (table != "").any()]
