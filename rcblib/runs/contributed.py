"""Hand results on to others, and read those that others hand in, as data that nobody vouches for.

A contribution is one file, ``data/recorded/contributed/<name>/submission.json``: key numbers of notebooks with config,
versions, hardware and hashes of code, models and codebooks. It holds numbers and short texts of plain characters, so
that nothing in it can be run, or be taken for markup by a page that shows it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, StringConstraints

from rcblib.records import ParameterError
from rcblib.runs.files import atomic_write, read_json
from rcblib.runs.paths import user_path

FOLDER = "data/recorded/contributed"
"""Where contributions lie, below the project's root."""

FILE = "submission.json"
MOST_BYTES = 200_000
"""Of one contribution."""
MOST_IN_ALL = 100
"""Contributions that a page shows."""

_PLAIN = r"A-Za-z0-9 ._,:;()/+@=%-"
_MOST_CHARACTERS = 120
Text = Annotated[str, StringConstraints(pattern=rf"^[{_PLAIN}]*$", max_length=_MOST_CHARACTERS)]
"""Short text of characters that HTML, Markdown and TeX take for themselves here; a page escapes it all the same."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{1,39}$")]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,79}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{7,64}$")]
Date = Annotated[str, StringConstraints(pattern=r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Integer = Annotated[int, Field(ge=-(10**15), le=10**15)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Plain = bool | Integer | Number | Text | None


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Result(_Model):
    """Hold one key number: ``n`` is what it was counted over, ``interval`` its 95 % interval."""

    value: bool | Integer | Number
    n: Count | None
    interval: tuple[Number, Number] | None = None
    n_clusters: Count | None = None
    unit: Text = ""


class Made(_Model):
    """Hold when, with what and on what a result was made, as `rcblib.runs.provenance.provenance` has it."""

    date: Date
    python: Text
    rcblib: Text
    torch: Text | None
    transformers: Text | None
    numpy: Text | None
    platform: Text
    cpu: Text
    n_cpus: Count | None
    gpu: Text
    n_threads: Count
    git_commit: Hash | None
    git_dirty: bool | None


class PublishedRun(_Model):
    """Hold what one notebook published, as `rcblib.runs.results.write_results` wrote it."""

    results: dict[Key, Result] = Field(max_length=200)
    config: dict[Key, Plain | Annotated[list[Plain], Field(max_length=100)]] = Field(max_length=100)
    config_hash: Hash
    seed: Count | None
    code: Hash
    models: dict[Text, Hash] = Field(max_length=10)
    codebooks: dict[Text, Hash] = Field(max_length=10)
    seconds: Annotated[Number, Field(ge=0)]
    provenance: Made


class Submission(_Model):
    """Hold what somebody hands in."""

    format: Literal[1] = 1
    name: Name
    remark: Text = ""
    runs: dict[Key, PublishedRun] = Field(min_length=1, max_length=30)


def gather(results: Iterable[str | os.PathLike], name: str, remark: str = "") -> Submission:
    """Gather results that notebooks of this project wrote.

    What is text among the results, such as verdicts, stays behind; of absolute paths in a config the last part is kept,
    and of long or unusual text only what a contribution may hold.

    Parameters
    ----------
    results : iterable of path-like
        JSON files of results, or folders that hold some.
    name : str
        What the contribution is called: letters, digits and dashes.
    remark : str
        A line about it.

    Raises
    ------
    ParameterError
        If a file is none of results, two are of one notebook or of different models, there is none, or the name or
        remark is not plain.
    """
    runs: dict[str, Any] = {}
    models: set[str] = set()
    for path in _files_of(results):
        content = read_json(path)
        if not isinstance(content, Mapping) or not {"results", "config_hash", "provenance"} <= content.keys():
            raise ParameterError("results", path.name, "the JSON files in results/ that notebooks wrote")
        if path.stem in runs:
            raise ParameterError(
                "results", f"{path.stem} twice", "one of a notebook: a submission is of one model"
            )
        runs[path.stem] = _plain_run(content)
        models |= {Path(str(content["config"]["model"])).name} if content["config"].get("model") else set()
    if len(models) > 1:
        accepted = "those of one model: name its files, or give each model a folder of results"
        raise ParameterError("results", f"of {', '.join(sorted(models))}", accepted)
    if not runs:
        raise ParameterError(
            "results", "no file of results", "the JSON files in results/ that notebooks wrote"
        )
    return _checked(json.dumps({"name": name, "remark": remark, "runs": runs}).encode(), "submission")


def write_submission(folder: str | os.PathLike, submission: Submission) -> Path:
    """Write a contribution into a folder of contributions, in one of its name; return the file.

    Raises
    ------
    ParameterError
        If there is one of that name already, or it takes more than `MOST_BYTES`.
    """
    place = user_path(folder, "folder") / submission.name
    if place.exists():
        raise ParameterError("name", submission.name, "one that is not there yet")
    data = (submission.model_dump_json(indent=1) + "\n").encode()
    if len(data) > MOST_BYTES:
        raise ParameterError("submission", f"{len(data)} bytes", f"at most {MOST_BYTES}")
    atomic_write(place / FILE, data)
    return place / FILE


def read_submission(folder: str | os.PathLike) -> Submission:
    """Read and check one contribution.

    Raises
    ------
    ParameterError
        If the folder holds anything but the one plain file, the file is too large, or not as `Submission` says; its
        name is that of its folder.
    """
    place = user_path(folder, "folder")
    found = sorted(path.name for path in place.iterdir()) if place.is_dir() and not place.is_symlink() else []
    path = place / FILE
    if found != [FILE] or path.is_symlink() or not path.is_file():
        raise ParameterError("submission", f"{place.name}: {found}", f"a folder with {FILE} and nothing else")
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ParameterError("submission", f"{place.name}: too large", f"at most {MOST_BYTES} bytes")
    submission = _checked(data, place.name)
    if submission.name != place.name:
        raise ParameterError("submission", f"{place.name}: named {submission.name}", "the name of its folder")
    return submission


def read_contributions(folder: str | os.PathLike) -> list[Submission]:
    """Read all contributions of a folder, by name; files beside them are passed over.

    Raises
    ------
    ParameterError
        As `read_submission`, or if there are more than `MOST_IN_ALL`.
    """
    place = user_path(folder, "folder")
    folders = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    if len(folders) > MOST_IN_ALL:
        raise ParameterError("contributions", len(folders), f"at most {MOST_IN_ALL}")
    return [read_submission(path) for path in folders]


def _files_of(results: Iterable[str | os.PathLike]) -> Iterable[Path]:
    """List files that are named, and those of folders that hold results."""
    for given in results:
        path = user_path(given, "results")
        if not path.is_dir():
            yield path
            continue
        for file in sorted(path.glob("*.json")):
            content = read_json(file)
            if isinstance(content, Mapping) and "config_hash" in content:
                yield file


def _plain_run(content: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a file of results what a contribution holds."""
    results = {
        name: {key: result[key] for key in Result.model_fields if key in result}
        for name, result in content["results"].items()
        if not isinstance(result["value"], str | None)
    }
    made = {key: _plain(content["provenance"].get(key)) for key in Made.model_fields}
    hashes = {kind: {_plain(k): v for k, v in content[kind].items()} for kind in ("models", "codebooks")}
    own = {key: content[key] for key in ("config_hash", "seed", "code", "seconds")}
    return {"results": results, "config": _plain(content["config"]), "provenance": made, **hashes, **own}


def _plain(value: Any) -> Any:
    """Reduce text to what a contribution may hold: no place on a machine, no unusual character."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if re.match(r"([a-z]+:)?([/~\\]|[A-Za-z]:\\)", value):
        value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return re.sub(rf"[^{_PLAIN}]", "?", value).replace("?", ".")[:_MOST_CHARACTERS]


def _checked(data: bytes, name: str) -> Submission:
    """Check a contribution; the first thing that is wrong is told in a line."""
    try:
        return Submission.model_validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # What was given is not repeated: whoever reads the line may read it on a page.
        where = ".".join(re.sub(rf"[^{_PLAIN}]", ".", str(part))[:40] for part in first["loc"]) or FILE
        raise ParameterError(f"submission {name}", where, re.sub(r"\s+", " ", first["msg"])) from None
