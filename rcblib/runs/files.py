"""Write files that are complete or absent, read them back, and name settings by a hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcblib.records import ParameterError
from rcblib.runs.errors import in_one_line
from rcblib.runs.paths import user_path

if TYPE_CHECKING:
    import pandas as pd

_METADATA_KEY = b"rcblib"


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


def why_not_writable(path: Path, is_folder: bool) -> str:
    """Say why a folder or file of results cannot be written, as far as that can be told before any work.

    Returns
    -------
    str
        The rest of a line that begins with the path; empty where nothing speaks against it. Nothing is made.
    """
    folder = path if is_folder else path.parent
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if path.exists() and path.is_dir() != is_folder:
        return "is a file; accepted: a folder" if is_folder else "is no file; accepted: a file"
    if not there.is_dir():
        return f"cannot be made, as {there} is a file"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"cannot be written, as {there} is read-only here"
    return ""


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
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # which a full disk raises without saying where
        raise OSError(error.errno, error.strerror or in_one_line(error), str(path)) from error
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
        return json.loads(user_path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number too long, lists too deep
        raise ParameterError("JSON file", Path(path).name, f"valid JSON ({error})") from None


def file_sha256(path: str | os.PathLike) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with open(user_path(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_table(
    path: str | os.PathLike, frame: pd.DataFrame, metadata: Mapping[str, Any], **settings: Any
) -> None:
    """Write a table as Parquet with its metadata in the file, atomically.

    Parameters
    ----------
    path : path-like
        Parquet file.
    frame : pandas.DataFrame
        Columns are kept, the index is not.
    metadata : Mapping
        Stored as JSON in the schema, such as ``{"config": ..., "provenance": ...}``.
    **settings
        As `pyarrow.parquet.write_table` takes them, such as ``compression``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    text = json.dumps(to_plain(metadata), allow_nan=False).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA_KEY: text})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, **settings)


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
    import pyarrow.parquet as pq

    path = user_path(path)
    with _told_unreadable(path):
        table = pq.ParquetFile(path).read()
    return table.to_pandas(), _own_metadata(table.schema.metadata)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Read the metadata of a table as `read_table` does, without its rows; the errors are the same."""
    import pyarrow.parquet as pq

    path = user_path(path)
    with _told_unreadable(path):
        return _own_metadata(pq.read_metadata(path).metadata)


@contextmanager
def _told_unreadable(path: Path) -> Iterator[None]:
    """Tell in one line of a file that is there and is no readable Parquet."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        if not path.is_file():
            raise
        accepted = f"a readable Parquet file ({in_one_line(error)})"
        raise ParameterError("Parquet file", path.name, accepted) from None


def _own_metadata(found: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    return json.loads((found or {}).get(_METADATA_KEY, b"{}"))
