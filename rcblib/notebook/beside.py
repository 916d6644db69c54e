"""Put what came out of a notebook beside what an embedded model gave: the same numbers, of the same pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rcblib.data.samples import sample_identity
from rcblib.reading.statistics import mean_interval
from rcblib.records import ParameterError, Sample
from rcblib.runs.provenance import project_path
from rcblib.runs.records import Record, is_record, read_record, sample_hash

EMBEDDED = "llava-photographs"
"""Embedded model whose records others are put beside: it leads the book, and its pictures are photographs."""

SAME_RECORD = "This is the record of the embedded model itself: there is nothing to put beside it."
NO_RECORD = (
    "No record of an embedded model is here to put beside it: that comes with a checkout of the project."
)


def embedded_record(what: str) -> Record | None:
    """Open what the embedded model gave, ``"probing"`` or ``"pruning"``; ``None`` without a checkout of the project."""
    try:
        return read_record(project_path("data/recorded") / EMBEDDED / f"{what}.parquet")
    except ParameterError:
        return None


def beside_embedded(
    table: pd.DataFrame,
    samples: Iterable[Sample],
    config: Any,
    what: str,
    values: Sequence[str],
    by: Sequence[str] = (),
    key: Sequence[str] = ("image_id",),
) -> Any:
    """Compare means of a notebook's table with those of the embedded model's record.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a token or answer, with ``image_id``.
    samples : iterable of Sample
        The notebook's images. Where the record has some of them, by their content, only these are compared.
    config : dataclass
        The notebook's parameters: where one of them names a record of the embedded model, nothing is compared.
    what : {"probing", "pruning"}
        Which record.
    values : sequence of str
        Columns of numbers; those that one of the tables lacks are left out.
    by : sequence of str
        Columns that form groups; groups that one of the tables lacks are left out.
    key : sequence of str
        Columns that say what was asked: of the same images, only rows are compared whose key the other table has.

    Returns
    -------
    pandas.DataFrame or IPython.display.Markdown
        A row a value and group: ``here`` and ``embedded`` as mean with 95 % interval over images, with their ``n``, and
        ``intervals`` (``"apart"`` or ``"overlap"``); the name of its columns says of which pictures. A sentence
        where there is nothing to compare.

    Raises
    ------
    ParameterError
        If the tables share no value.
    """
    from IPython.display import Markdown

    record = embedded_record(what)
    if record is None:
        return Markdown(NO_RECORD)
    given = (getattr(config, name, "") for name in ("probed", "evaluated"))
    if any(path and is_record(path) and Path(path).resolve() == record.path.resolve() for path in given):
        return Markdown(SAME_RECORD)
    other, pictures = record.table, "other pictures"
    recorded = record.facts["samples"]
    same = [s.image_id for s in samples if recorded.get(str(s.image_id)) == sample_hash(sample_identity(s))]
    if same:
        pictures = f"the same {len(same)} pictures"
        table, other = (frame[frame["image_id"].isin(same)] for frame in (table, other))
        asked = [pd.MultiIndex.from_frame(frame[list(key)]) for frame in (table, other)]
        table, other = table[asked[0].isin(asked[1])], other[asked[1].isin(asked[0])]
    shared = [name for name in values if name in table and name in other]
    if not shared:
        raise ParameterError("values", list(values), f"columns of both tables, as {list(other)[:8]}")
    rows = []
    for group, ours, theirs in _groups(table, other, list(by)):
        for name in shared:
            found = [_mean(frame, name) for frame in (ours, theirs)]
            if None in found:
                continue
            is_apart = found[0].low > found[1].high or found[1].low > found[0].high
            rows.append([*group, name, str(found[0]), found[0].n, str(found[1]), found[1].n, is_apart])
    columns = [*by, "number", "here", "n here", "embedded", "n embedded", "intervals"]
    compared = pd.DataFrame(rows, columns=columns)
    compared["intervals"] = np.where(compared["intervals"].astype(bool), "apart", "overlap")
    compared.columns.name = f"{EMBEDDED}, {pictures}"
    return compared


def _groups(
    ours: pd.DataFrame, theirs: pd.DataFrame, by: list[str]
) -> Iterable[tuple[tuple[Any, ...], pd.DataFrame, pd.DataFrame]]:
    """Yield the groups that both tables have, in the order of the first."""
    if not by:
        yield (), ours, theirs
        return
    other = dict(iter(theirs.groupby(by, sort=False)))
    for group, rows in ours.groupby(by, sort=False):
        if group in other:
            yield group, rows, other[group]


def _mean(frame: pd.DataFrame, name: str) -> Any:
    """Return the mean of a column over rows that have it, with an interval over images; ``None`` without any."""
    rows = frame[frame[name].notna()]
    generator = np.random.default_rng(0)  # of its own, so that a notebook's further draws stay what they are
    return mean_interval(rows[name], rows["image_id"], generator=generator) if len(rows) else None
