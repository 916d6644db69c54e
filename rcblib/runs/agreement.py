"""Compare what was computed now with what was recorded: the rows of some images, column by column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rcblib.records import ImageId, ParameterError
from rcblib.runs.parameters import Weight, checked
from rcblib.runs.records import Record

if TYPE_CHECKING:
    import pandas as pd


@checked
class Tolerance:
    """Say how far a table that is computed again may be from its record.

    Attributes
    ----------
    absolute : float
        Largest difference of a number. Integers, truth values and text must be equal.
    columns : dict
        The same for single columns, integers among them.
    differing : float
        Share of a column's rows that may differ by more, in [0, 1]: between machines rounding may turn single answers.
    """

    absolute: Weight = 0.0001
    columns: dict[str, Weight] = field(default_factory=dict)
    differing: Weight = 0.0


@dataclass(frozen=True)
class Disagreement:
    """Hold the first row of a column in which two tables differ, and in how many rows they do."""

    table: str
    column: str
    image_id: ImageId
    recorded: Any
    found: Any
    n_rows: int
    n_differing: int

    def __str__(self) -> str:
        """Tell it in one line."""
        return (
            f"{self.table}: column {self.column}, image {self.image_id}: recorded {self.recorded}, found {self.found} "
            f"({self.n_differing} of {self.n_rows} rows differ)"
        )


@dataclass(frozen=True)
class Agreement:
    """Hold what a comparison found.

    Attributes
    ----------
    n_images, n_rows : int
        What was compared.
    largest : dict
        Column of numbers to its largest difference.
    disagreements : tuple of Disagreement
        Empty where all agrees.
    """

    n_images: int
    n_rows: int
    largest: dict[str, float]
    disagreements: tuple[Disagreement, ...]


def compare_with_record(
    record: Record,
    found: pd.DataFrame,
    facts: Mapping[str, Any],
    tolerance: Tolerance | None = None,
    among_these: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> Agreement:
    """Compare every row of the images that a table holds with the record of the same images.

    Parameters
    ----------
    record : Record
        What was recorded; columns that it has left out are not compared.
    found : pandas.DataFrame
        The same table of some of the images, in any order.
    facts : Mapping
        Those of `found`, see `rcblib.runs.records.table_facts`; ``sampled``, if it is there, names by key and value
        the rows of which the record may have more; ``only`` lists by key the values that were computed, so that rows
        of the record with another one are not compared, but for those without any.
    tolerance : Tolerance, optional
        By default 0.0001 for numbers, and no row may differ.
    among_these : callable, optional
        Makes of the record's rows that are compared what they would be without the others, such as ranks among them.

    Returns
    -------
    Agreement
        An image or row that only one of the tables has disagrees in the column of its key.

    Raises
    ------
    ParameterError
        If the tables are of different settings or models, an image is another or was not recorded, there is none, or a
        tolerance is for no column of the record.
    """
    import pandas as pd

    tolerance = tolerance or Tolerance()
    samples = facts["samples"]
    if not samples:
        raise ParameterError(record.name, "no image", "at least one image to compare with the record")
    record.check(facts["description"], samples)
    keys = ["image_id", *record.facts["keys"]]
    expected = record.table[record.table["image_id"].astype(str).isin(list(samples))]
    for column, values in facts.get("only", {}).items():
        expected = expected[expected[column].isna() | expected[column].isin(values)]
    expected = expected if among_these is None else among_these(expected)
    columns = [name for name in expected if name not in keys]
    if unknown := sorted(set(tolerance.columns) - set(columns)):
        raise ParameterError(f"tolerance of {record.name}", unknown, f"some of the columns {columns}")
    numbered = [
        table.assign(_turn=table.groupby(keys, dropna=False).cumcount()) for table in (expected, found)
    ]
    both = pd.merge(
        *numbered, on=[*keys, "_turn"], how="outer", suffixes=(" recorded", " found"), indicator="_where"
    )
    for column, value in facts.get("sampled", {}).items():
        if not (found[column] == value).any():
            raise ParameterError(
                record.name, f"no row whose {column} is {value}", "one to compare with the record"
            )
        both = both[(both["_where"] != "left_only") | (both[column] != value)]
    problems = []
    alone = both[both["_where"] != "both"]
    if len(alone):
        row = alone.iloc[0]
        said = ("a row", "none") if row["_where"] == "left_only" else ("none", "a row")
        named = ", ".join(f"{name} {row[name]}" for name in keys[1:])
        problems.append(Disagreement(record.name, named, row["image_id"], *said, len(both), len(alone)))
    shared, largest = both[both["_where"] == "both"], {}
    for name in columns:
        if name not in found:
            first = expected["image_id"].iloc[0]
            problems.append(
                Disagreement(record.name, name, first, "a column", "none", len(shared), len(shared))
            )
            continue
        old, new = shared[f"{name} recorded"], shared[f"{name} found"]
        same = (old == new) | (old.isna() & new.isna())
        if expected[name].dtype.kind in "fiu" and (
            expected[name].dtype.kind == "f" or name in tolerance.columns
        ):
            apart = (old.astype(float) - new.astype(float)).abs()
            largest[name] = float(apart.fillna(0).max()) if len(apart) else 0.0
            same |= apart <= tolerance.columns.get(name, tolerance.absolute)
        wrong = shared[~same.fillna(False).astype(bool)]
        if len(wrong) > tolerance.differing * len(shared):
            row = wrong.iloc[0]
            values = row[f"{name} recorded"], row[f"{name} found"]
            problems.append(
                Disagreement(record.name, name, row["image_id"], *values, len(shared), len(wrong))
            )
    return Agreement(len(samples), len(shared), largest, tuple(problems))
