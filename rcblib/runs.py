"""Serve notebooks and batch runs: validated parameters, config hashes, provenance, atomic files."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import random
import subprocess
import tomllib
import types
import typing
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rcblib.records import ParameterError

if TYPE_CHECKING:
    import pandas as pd
    import torch

Config = TypeVar("Config")

_METADATA_KEY = b"rcblib"
_IPYTHON_NAMES = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open"})
_LITERAL_TYPES = (str, int, float, bool, types.NoneType, list, tuple, dict)


def bounded(
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Collection[Any] | None = None,
) -> Any:
    """Declare a field of a config dataclass together with the values it accepts.

    Parameters
    ----------
    default : object, optional
        Value when none is given; without it the parameter is required.
    minimum, maximum : float, optional
        Inclusive bounds of a number, or of every element of a list or tuple.
    above : float, optional
        Exclusive lower bound.
    choices : collection, optional
        The accepted values.

    Returns
    -------
    dataclasses.Field
        For use as ``n_images: int = bounded(24, minimum=1)``.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata=limits)


def _accepted(hint: Any, limits: Mapping[str, Any]) -> str:
    """Say in words which values a parameter accepts."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if limits.get("choices") is not None:
        words = "one of " + ", ".join(repr(choice) for choice in limits["choices"])
    elif origin is Literal:
        words = "one of " + ", ".join(repr(choice) for choice in arguments)
    elif origin in (typing.Union, types.UnionType):
        words = " or ".join(_accepted(argument, {}) for argument in arguments)
    elif origin in (list, tuple):
        words = f"a list of ({_accepted(arguments[0], {})})"
    else:
        words = {
            int: "an integer",
            float: "a finite number (in YAML write 0.002: 2e-3 is read as text)",
            bool: "true or false",
            str: "text",
            types.NoneType: "None",
        }.get(hint, str(hint))
    bounds = [
        f"{sign} {limits[key]}"
        for key, sign in (("minimum", ">="), ("above", ">"), ("maximum", "<="))
        if limits.get(key) is not None
    ]
    return ", ".join([words, *bounds])


def _converted(value: Any, hint: Any) -> Any:
    """Return `value` as the annotated type, or raise TypeError where it is not of it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments:
            return value
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _converted(value, argument)
            except TypeError:
                continue
    elif origin in (list, tuple):
        if isinstance(value, list | tuple):
            return origin(_converted(element, arguments[0]) for element in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif type(value) is hint or (hint is types.NoneType and value is None):
        return value
    raise TypeError


def _within(value: Any, limits: Mapping[str, Any]) -> bool:
    """Tell whether a converted value, or every element of a list, respects the limits."""
    if isinstance(value, list | tuple):
        return all(_within(element, limits) for element in value)
    if limits.get("choices") is not None and value not in limits["choices"]:
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            (limits.get("minimum") is None or value >= limits["minimum"])
            and (limits.get("maximum") is None or value <= limits["maximum"])
            and (limits.get("above") is None or value > limits["above"])
        )
    return True


def _checked(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """Return a parameter as its annotated type, or raise where type or limits are not met."""
    try:
        converted = _converted(value, hint)
    except TypeError:
        raise ParameterError(name, value, _accepted(hint, limits)) from None
    if not _within(converted, limits):
        raise ParameterError(name, value, _accepted(hint, limits))
    return converted


def _unknown(name: str, value: Any, known: Collection[str]) -> ParameterError:
    """Make the error for a name that is no parameter, with the nearest known one."""
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return ParameterError(name, value, f"no parameter of this name; known: {', '.join(sorted(known))}{hint}")


def validate_parameters(given: Mapping[str, Any], schema: type[Config]) -> Config:
    """Turn given values into one validated config.

    Parameters
    ----------
    given : Mapping
        Name to value, as a ``parameters`` cell or a command line supplies them.
    schema : type
        Dataclass whose annotations say the types (``int``, ``float``, ``bool``, ``str``, ``Literal``,
        optional, ``list`` or ``tuple`` of these) and whose fields may carry the limits of `bounded`.

    Returns
    -------
    object
        An instance of `schema`; integers given for ``float`` are converted, lists for ``tuple`` too.

    Raises
    ------
    ParameterError
        On an unknown name, a missing value, a value of another type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name, value in given.items():
        if name not in fields:
            raise _unknown(name, value, fields)
    hints = typing.get_type_hints(schema)
    values = {}
    for name, field in fields.items():
        if name in given:
            values[name] = _checked(name, given[name], hints[name], field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ParameterError(name, None, _accepted(hints[name], field.metadata))
    return schema(**values)


def check_fields(config: Any) -> None:
    """Check, and convert in place, the fields of a dataclass; for use in its ``__post_init__``.

    Parameters
    ----------
    config : dataclass
        Annotated and bounded as in `validate_parameters`; it may be frozen.

    Raises
    ------
    ParameterError
        On a value of another type or out of range.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = _checked(field.name, getattr(config, field.name), hints[field.name], field.metadata)
        object.__setattr__(config, field.name, value)


def reject_unknown_parameters(
    namespace: Mapping[str, Any], known: Collection[str], baseline_names: Collection[str] = ()
) -> None:
    """Raise where a notebook's namespace holds a plain value that is no parameter.

    papermill only warns on a name that the notebook does not know and then defines it in a cell of its own.
    A notebook that calls this right after its set-up cell notices: what papermill injects are plain literals,
    while a set-up cell makes modules, functions and classes. Constants in capitals are left alone, unless
    they spell a known parameter.

    Parameters
    ----------
    namespace : Mapping
        ``globals()`` of the notebook.
    known : collection of str
        Parameter names.
    baseline_names : collection of str
        Further plain variables that the set-up cell makes on purpose.

    Raises
    ------
    ParameterError
        Naming the unknown parameter and the nearest known one.
    """
    known = set(known)
    allowed = known | set(baseline_names) | _IPYTHON_NAMES
    lowered = {name.lower() for name in known}
    for name, value in list(namespace.items()):
        if name in allowed or name.startswith("_") or type(value) not in _LITERAL_TYPES:
            continue
        if name.isupper() and name.lower() not in lowered:
            continue
        raise _unknown(name, value, known)


def notebook_config(
    namespace: Mapping[str, Any], schema: type[Config], baseline_names: Collection[str] = ()
) -> Config:
    """Read a notebook's parameters from its namespace into one validated config.

    Parameters
    ----------
    namespace : Mapping
        ``globals()`` of the notebook, right after its set-up cell.
    schema : type
        Dataclass as in `validate_parameters`.
    baseline_names : collection of str
        As in `reject_unknown_parameters`.

    Returns
    -------
    object
        An instance of `schema`.

    Raises
    ------
    ParameterError
        On a misspelt name, a missing value, a value of another type or out of range.
    """
    names = [field.name for field in dataclasses.fields(schema)]
    reject_unknown_parameters(namespace, names, baseline_names)
    return validate_parameters({name: namespace[name] for name in names if name in namespace}, schema)


def to_plain(value: Any) -> Any:
    """Reduce a value to what JSON can hold.

    Parameters
    ----------
    value : object
        Dataclasses and mappings become objects; lists, tuples, arrays and tensors become lists; numpy scalars
        become numbers; NaN becomes ``None``; paths become text with forward slashes.

    Returns
    -------
    object
        Nested dictionaries with text keys, lists, text, numbers, booleans and ``None``.

    Raises
    ------
    ParameterError
        On an infinite number or an object of another kind.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ParameterError("value", value, "finite numbers")
        return None if math.isnan(value) else float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(element) for element in value]
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    raise ParameterError("value", value, "what JSON can hold: mappings, lists, text, numbers, booleans, None")


def config_hash(config: Any) -> str:
    """Hash a config so that equal settings give equal names, in any process and key order.

    Parameters
    ----------
    config : dataclass or Mapping
        Reduced by `to_plain` first.

    Returns
    -------
    str
        The first 12 hexadecimal digits of the sha256 of its canonical JSON.
    """
    text = json.dumps(to_plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _declares_project(folder: Path) -> bool:
    """Tell whether a folder's pyproject.toml is this project's."""
    try:
        with open(folder / "pyproject.toml", "rb") as file:
            return tomllib.load(file).get("project", {}).get("name") == "rcblib"
    except (OSError, tomllib.TOMLDecodeError):
        return False


def project_root() -> Path:
    """Find the folder that holds ``codebooks/``, ``data/`` and ``notebooks/``.

    Returns
    -------
    pathlib.Path
        The environment variable ``RCB_ROOT`` where set; else the nearest folder upward from the working
        directory, then from this file, whose ``pyproject.toml`` names ``rcblib``.

    Raises
    ------
    ParameterError
        Where ``RCB_ROOT`` is no folder, or nothing is found.
    """
    given = os.environ.get("RCB_ROOT")
    if given:
        if not Path(given).is_dir():
            raise ParameterError("RCB_ROOT", given, "an existing folder, the root of the project")
        return Path(given).resolve()
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if _declares_project(folder):
                return folder
    raise ParameterError("RCB_ROOT", None, "a folder, as no pyproject.toml of rcblib lies above this one")


def _git_state(root: Path) -> tuple[str | None, bool | None]:
    """Return commit and whether tracked files differ from it; ``None`` where `root` is no git checkout."""
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--show-prefix", "HEAD"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout.split("\n")  # fmt: skip
        # A copy of the project inside another repository has a prefix: that repository's commit says nothing.
        if head[0]:
            return None, None
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head[1], bool(changes.strip())


def _cpu_model() -> str:
    """Name the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    """Return the installed version of a package without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """Record when, with which versions and on what hardware a result was made; no paths.

    Returns
    -------
    dict
        ``date`` (UTC); versions as ``python``, ``rcblib``, ``torch``, ``transformers``, ``numpy``;
        ``platform``, ``cpu``, ``n_cpus``, ``gpu`` (``"none"`` without one), ``n_threads`` (torch's);
        ``git_commit`` and ``git_dirty`` (``None`` outside a checkout).
    """
    import torch

    from rcblib import __version__

    try:
        commit, dirty = _git_state(project_root())
    except ParameterError:
        commit, dirty = None, None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "rcblib": __version__,
        **{package: _version(package) for package in ("torch", "transformers", "numpy")},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "n_cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "n_threads": torch.get_num_threads(),
        "git_commit": commit,
        "git_dirty": dirty,
    }


def set_up(seed: int, n_threads: int | None = None) -> torch.Generator:
    """Seed a run, limit its threads and print what it runs on.

    Parameters
    ----------
    seed : int
        At least 0. Seeds Python and torch for third-party code that draws from their global generators.
    n_threads : int, optional
        Threads that torch may use; ``None`` leaves its choice.

    Returns
    -------
    torch.Generator
        A CPU generator with this seed, to pass on.

    Raises
    ------
    ParameterError
        On a negative seed or fewer than one thread.
    """
    import torch

    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ParameterError("seed", seed, "an integer from 0 to 2**32 - 1")
    if n_threads is not None and (type(n_threads) is not int or n_threads < 1):
        raise ParameterError("n_threads", n_threads, "None or an integer >= 1")
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    random.seed(seed)
    torch.manual_seed(seed)
    facts = provenance()
    print(
        ", ".join(f"{name} {facts[name]}" for name in ("rcblib", "python", "torch", "transformers", "numpy"))
    )
    print(f"device {facts['gpu'] or facts['cpu']}, {facts['n_threads']} threads, seed {seed}")
    return torch.Generator().manual_seed(seed)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place only when the block ends well.

    Parameters
    ----------
    path : path-like
        Final file; its folder is made where it is missing.

    Yields
    ------
    pathlib.Path
        File to write. After an error it is removed and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a file that is either complete or absent.

    Parameters
    ----------
    path : path-like
        File to write or replace.
    data : bytes or str
        Content; text is written as UTF-8.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN becomes null (see `to_plain`)."""
    atomic_write(path, json.dumps(to_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises
    ------
    ParameterError
        Where the content is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ParameterError("JSON file", Path(path).name, f"valid JSON ({error})") from None


def file_sha256(path: str | os.PathLike) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: Exception) -> str:
    """Shorten an error of another library to its first line, at most 160 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def write_table(path: str | os.PathLike, frame: pd.DataFrame, metadata: Mapping[str, Any]) -> None:
    """Write a table as Parquet with its metadata in the file, atomically.

    Parameters
    ----------
    path : path-like
        Parquet file.
    frame : pandas.DataFrame
        Columns are kept, the index is not.
    metadata : Mapping
        Stored as JSON in the schema, such as ``{"config": ..., "provenance": ...}``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    text = json.dumps(to_plain(metadata), allow_nan=False).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA_KEY: text})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_table(path: str | os.PathLike) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table and the metadata that `write_table` stored with it.

    Returns
    -------
    tuple
        ``(frame, metadata)``; the metadata is empty for a file written by others.

    Raises
    ------
    ParameterError
        Where the file is no readable Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        if not Path(path).is_file():
            raise
        accepted = f"a readable Parquet file ({first_line(error)})"
        raise ParameterError("Parquet file", Path(path).name, accepted) from None
    return table.to_pandas(), json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))


def cached_table(
    folder: str | os.PathLike, name: str, config: Any, compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """Compute a table once per config and read it back afterwards.

    Parameters
    ----------
    folder : path-like
        Where tables are kept.
    name : str
        What the table holds; the file is ``<name>-<config_hash>.parquet``.
    config : dataclass or Mapping
        Everything the table depends on; stored in the file with the provenance.
    compute : callable
        Makes the table; called only where no readable file for this config exists.

    Returns
    -------
    pandas.DataFrame
        As read from the file, so first and later calls return the same types.
    """
    path = Path(folder) / f"{name}-{config_hash(config)}.parquet"
    if path.is_file():
        try:
            return read_table(path)[0]
        except ParameterError as error:
            warnings.warn(f"{error}; computing it again", stacklevel=2)
    write_table(path, compute(), {"config": config, "provenance": provenance()})
    return read_table(path)[0]


def write_results(path: str | os.PathLike, results: Mapping[str, Mapping[str, Any]], config: Any) -> None:
    """Write the key numbers that a notebook publishes, with what they were made from.

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
