"""Compare the key results of the notebooks with the committed expectations.

``data/expected/<notebook>.json`` maps the name of a result in ``results/<notebook>.json`` to the value
expected and the tolerance: ``{"name": {"value": 0.87, "absolute": 0.02}}``; for another model than the default both
files lie in a folder of the model's name. An entry with ``"difference": ["a", "b"]`` is about the result a minus the
result b of that file, for what is read from which of two is larger. A number agrees within
``absolute + relative * |expected|`` (each 0 where absent); anything else must be equal.

Numbers are the same in every run on one machine; between machines rounding may turn single answers. So a share of n
answers is given about three of them, 3 / n, what is continuous a few thousandths, and a difference less than its size.

    python -m tools.check_expected [--table FILE]     fails with a table where a result left its tolerance
    python -m tools.check_expected --update           writes the measured values, keeping the tolerances
    python -m tools.check_expected --against FOLDER   shows what was measured beside the results in another folder
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser, run_command

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Comparison:
    """Hold one expected value beside the measured one."""

    notebook: str
    name: str
    expected: Any
    measured: Any
    tolerance: float
    agrees: bool


def is_number(value: Any) -> bool:
    """Tell whether a value is compared with a tolerance (booleans are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_of(name: str, entry: dict[str, Any], results: dict[str, Any]) -> Any:
    """Return the result that an expectation is about, or the difference of its two; ``"missing"`` without them."""
    values = [
        results[each]["value"] if each in results else "missing" for each in entry.get("difference", [name])
    ]
    if len(values) == 1 or not all(map(is_number, values)):
        return values[0] if len(values) == 1 else "missing"
    return values[0] - values[1]


def compare(notebook: str, expected: dict[str, Any], results: dict[str, Any]) -> list[Comparison]:
    """Compare the expectations for one notebook with its results; a missing result disagrees.

    Raises
    ------
    ValueError
        If an expectation lacks its value, holds an unknown key or a negative tolerance.
    """
    rows = []
    for name, entry in expected.items():
        if "value" not in entry or set(entry) - {"value", "absolute", "relative", "difference"}:
            raise ValueError(
                f"{notebook}: {name}: got {entry}; accepted: value, absolute, relative, difference"
            )
        value = entry["value"]
        absolute, relative = entry.get("absolute", 0), entry.get("relative", 0)
        if min(absolute, relative) < 0:
            raise ValueError(f"{notebook}: {name}: got {entry}; accepted: tolerances of at least 0")
        measured = value_of(name, entry, results)
        tolerance = absolute + relative * abs(value) if is_number(value) else 0.0
        if is_number(value) and is_number(measured):
            # A difference of exactly the tolerance agrees, whatever the last bit of the subtraction.
            agrees = math.isclose(measured, value, rel_tol=1e-9, abs_tol=tolerance * (1 + 1e-9))
        else:
            agrees = measured == value
        rows.append(Comparison(notebook, name, value, measured, tolerance, agrees))
    return rows


def compare_folders(expected_folder: Path, results_folder: Path) -> list[Comparison]:
    """Compare every file of expectations with the results of the same name.

    Raises
    ------
    ValueError
        If a file of results does not exist.
    """
    rows = []
    for path in sorted(expected_folder.rglob("*.json")):
        name = path.relative_to(expected_folder)
        measured = results_folder / name
        if not measured.is_file():
            raise ValueError(f"{measured} does not exist, but {name} holds expectations for it")
        results = json.loads(measured.read_text(encoding="utf-8"))["results"]
        rows += compare(
            name.with_suffix("").as_posix(), json.loads(path.read_text(encoding="utf-8")), results
        )
    return rows


def to_table(rows: list[Comparison]) -> str:
    """Format comparisons as lines of tab-separated values, with a header."""
    lines = ["notebook\tresult\texpected\tmeasured\ttolerance\tagrees"]
    for row in rows:
        cells = (row.notebook, row.name, row.expected, row.measured, f"{row.tolerance:g}", row.agrees)
        lines.append("\t".join(str(cell) for cell in cells))
    return "\n".join(lines) + "\n"


def to_difference_table(old: list[Comparison], new: list[Comparison]) -> str:
    """Format what two builds measured for the same expectations, with the change of every number."""
    lines = ["notebook\tresult\told\tnew\tchange\ttolerance"]
    for before, after in zip(old, new, strict=True):
        values = (before.measured, after.measured)
        change = f"{values[1] - values[0]:+.2g}" if all(map(is_number, values)) else ""
        written = [f"{value:.6g}" if is_number(value) else str(value) for value in values]
        lines.append("\t".join([after.notebook, after.name, *written, change, f"{after.tolerance:g}"]))
    return "\n".join(lines) + "\n"


def update(expected_folder: Path, results_folder: Path) -> None:
    """Write the measured values into the files of expectations; names and tolerances stay."""
    for path in sorted(expected_folder.rglob("*.json")):
        expected = json.loads(path.read_text(encoding="utf-8"))
        results = json.loads(
            (results_folder / path.relative_to(expected_folder)).read_text(encoding="utf-8")
        )["results"]
        updated = {
            name: {**entry, "value": value_of(name, entry, results)} for name, entry in expected.items()
        }
        path.write_text(json.dumps(updated, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Compare, write the table of all comparisons, print those that disagree; return 1 if there are any."""
    parser = OneLineParser(prog="check_expected", description=__doc__.splitlines()[0])
    parser.add_argument("--expected", type=Path, default=ROOT / "data" / "expected")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--table", type=Path, help="where to write the table of all comparisons")
    parser.add_argument(
        "--update", action="store_true", help="write the measured values instead of comparing"
    )
    parser.add_argument("--against", type=Path, help="folder of another build's results to show beside these")
    options = parser.parse_args(arguments)
    return run_command("check_expected", lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    if options.update:
        update(options.expected, options.results)
    rows = compare_folders(options.expected, options.results)
    if not rows:
        raise ParameterError("expected", str(options.expected), "a folder with files of expectations")
    if options.against:
        print(to_difference_table(compare_folders(options.expected, options.against), rows), end="")
    wrong = [row for row in rows if not row.agrees]
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(to_table(rows), encoding="utf-8")
    if wrong:
        print(to_table(wrong), end="")
    print(f"{len(rows) - len(wrong)} of {len(rows)} key results agree with the committed expectations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
