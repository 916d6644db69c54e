"""Write the tables of the page on the build: what every run took, what was recorded, and what was never run.

    python -m tools.make_status

The page ``book/status.md`` includes them from ``book/_build/status/``. Minutes and memory were measured
when a run was last made (:mod:`tools.warm_start`), the rest stands in the results of the run: nothing is computed here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.checkpoints import CHECKPOINTS
from rcblib.reading.labels import label_of
from rcblib.runs.files import read_json, read_metadata
from tools.make_memory import short
from tools.notebook_list import Notebook, NotebookList, Stage, read_notebook_list
from tools.write_parts import table, whole, write_parts

ROOT = Path(__file__).resolve().parents[1]

VERSIONS = ("python", "torch", "transformers", "numpy", "platform", "cpu", "n_cpus", "gpu", "n_threads")
"""What is the same for most runs of a build, and told once."""


DIGITS = {"minutes": 1, "memory": 2}
"""How what was measured is written."""


def measured_file(run: str) -> str:
    """Return where a run's minutes and memory are written."""
    return f"results/logs/{run}.tsv"


def made_with(entry: Stage | Notebook, root: Path) -> list[Mapping[str, Any]]:
    """Return the provenance of what a run left, one entry a machine; none where it was not run."""
    if isinstance(entry, Notebook):
        path = root / entry.results
        return [read_json(path)["provenance"]] if path.is_file() else []
    path = root / (f"{entry.folder}.first.parquet" if entry.recorded else entry.result)
    return read_metadata(path).get("provenance", []) if path.is_file() else []


def run_rows(listed: NotebookList, root: Path) -> pd.DataFrame:
    """Return a row a run of the build, in the order of the list: minutes and memory are missing where not measured."""
    rows = []
    for entry in (*listed.stages, *listed.notebooks):
        made, path = made_with(entry, root), root / measured_file(entry.run)
        took = pd.read_csv(path, sep="\t").iloc[-1] if path.is_file() else {}
        row = {
            "run": entry.run,
            "what": "notebook" if isinstance(entry, Notebook) else entry.command,
            "minutes": pd.to_numeric(took.get("s"), errors="coerce") / 60 if len(took) else None,
            "memory": pd.to_numeric(took.get("max_rss"), errors="coerce") / 1024 if len(took) else None,
            "date": max((each["date"] for each in made), default=""),
            "commit": ", ".join(dict.fromkeys(commit_of(each) for each in made)),
        }
        rows.append(row | {"made": made})
    return pd.DataFrame(rows)


def commit_of(made: Mapping[str, Any]) -> str:
    """Name the commit of a result, and whether files differed from it."""
    commit = (made.get("git_commit") or "unknown")[:7]
    return f"{commit} with changes" if made.get("git_dirty") else commit


def runs_table(rows: pd.DataFrame) -> str:
    """Write what each run took; – where it was not measured."""
    lines = [
        [
            f"`{row['run']}`", row["what"],
            *("–" if pd.isna(row[name]) else f"{row[name]:.{digits}f}" for name, digits in DIGITS.items()),
            whole(row["date"][:16].replace("T", " ")) or "–", row["commit"] or "–",
        ]
        for row in rows.to_dict("records")
    ]  # fmt: skip
    total = ["all", "", f"{rows['minutes'].sum():.1f}", f"{rows['memory'].max():.2f}", "", ""]
    return table(["run", "what", "minutes", "peak memory (GiB)", "ended (UTC)", "commit"], [*lines, total])


def versions_table(rows: pd.DataFrame) -> str:
    """Write versions and hardware of all runs, and which runs are of others than most."""
    made = [
        (run, {name: each.get(name) for name in VERSIONS})
        for run, own in rows[["run", "made"]].values
        for each in own
    ]
    lines = []
    for name in VERSIONS:
        values = pd.Series([str(each[name]) for _, each in made], dtype=str)
        counts = values.value_counts()
        most = counts.index[0] if len(counts) else "–"
        others = [
            f"{value} ({', '.join(f'`{run}`' for (run, each) in made if str(each[name]) == value)})"
            for value in counts.index[1:]
        ]
        lines.append([name, most, "; ".join(others) or "–"])
    return table(["", "most runs", "others"], lines)


def recorded_facts(root: Path) -> list[tuple[Path, Any]]:
    """Return the files of recorded facts, each with what it holds."""
    return [(path, read_json(path)) for path in sorted((root / "data/recorded").rglob("*.json"))]


def recorded_rows(root: Path) -> Iterable[list[str]]:
    """Yield what was recorded before: where, hours, images, hardware, date and commit."""
    for path, facts in recorded_facts(root):
        made = as_list(facts)
        if not made:
            continue
        machines = ", ".join(
            dict.fromkeys(each["cpu"] if each["gpu"] == "none" else each["gpu"] for each in made)
        )
        seconds, images = facts.get("seconds"), facts.get("samples")
        yield [
            f"`{path.relative_to(root / 'data/recorded').with_suffix('').as_posix()}`",
            "–" if seconds is None else f"{seconds / 60:.1f}", "–" if images is None else len(images), machines,
            whole(max(each["date"] for each in made)[:10]), ", ".join(dict.fromkeys(commit_of(each) for each in made)),
        ]  # fmt: skip


def unknown_commits(root: Path) -> str:
    """Say which commits of recorded results the repository's history does not hold; nothing where git cannot tell."""
    made = [each for _, facts in recorded_facts(root) for each in as_list(facts)]
    cited = sorted({each["git_commit"] for each in made if each.get("git_commit")})
    git = ["git", "-C", str(root)]
    try:
        shallow = subprocess.run(
            [*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True, check=True
        )
        listed = subprocess.run([*git, "rev-list", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    known = set(listed.stdout.split())
    unknown = [commit[:7] for commit in cited if commit not in known]
    if shallow.stdout.strip() != "false" or not unknown:
        return ""
    return (
        f"Of {len(cited)} commits {len(unknown)} are not in the history of this repository, as their changes were put "
        f"on top of others before they were published: {', '.join(f'`{commit}`' for commit in unknown)}.\n"
    )


def absent_runs(rows: pd.DataFrame) -> str:
    """Say which runs of the list left nothing."""
    absent = rows.loc[rows["made"].map(len) == 0, "run"]
    return f"Runs of the list that left nothing here: {', '.join(f'`{run}`' for run in absent) or 'none'}.\n"


def never_run(rows: pd.DataFrame, root: Path) -> str:
    """Say of GPUs, published checkpoints, COCO and public benchmarks whether a run used them, and which models none."""
    records = [facts for _, facts in recorded_facts(root)]
    machines = [*rows["made"].explode().dropna(), *(made for facts in records for made in as_list(facts))]
    live = [
        read_json(path) for path in sorted((root / "results").rglob("*.json")) if "checked" not in path.name
    ]
    asked = [facts["stage"]["options"] for facts in records if isinstance(facts, dict) and "stage" in facts]
    asked += [facts["config"] for facts in live if isinstance(facts, dict) and "config" in facts]
    used = {
        "GPU": {each["gpu"] for each in machines if each.get("gpu", "none") != "none"},
        "published checkpoint": {f"`{Path(str(each.get('model'))).name}`" for each in asked}
        & set(map(short, CHECKPOINTS)),
        "photograph of COCO": {
            str(each["images"]) for each in asked if "coco" in str(each.get("images")).lower()
        },
        "public benchmark": {str(each["tasks"]) for each in asked if "retain_ratios" in each} - {"embedded"},
    }
    missing = {
        "published checkpoint": f", of 7B or of any other size: not {', '.join(map(short, CHECKPOINTS))}",
        "public benchmark": ": where lmms-eval was run, it asked about drawn scenes",
    }
    lines = [
        f"- **{kind}:** {', '.join(sorted(names))}."
        if names
        else f"- **No {kind}** was used{missing.get(kind, '')}."
        for kind, names in used.items()
    ]
    shipped = {path.name for path in (root / "data/models").glob("*") if path.is_dir()}
    asked_of = {path.parent.name for path in (root / "data/recorded").glob("*/*.json")}
    if left := sorted(shipped - asked_of):
        lines.append(f"- **Shipped, and never judged:** {', '.join(map(label_of, left))}.")
    return "\n".join(lines) + "\n"


def effort_text(rows: pd.DataFrame, pages: int) -> str:
    """Say what a whole build takes: runs, minutes of all of them together, and pages."""
    minutes = rows["minutes"].sum()
    took = f"{minutes:.0f} minutes together, two side by side" if minutes else "not measured in this build"
    return f"`make book` makes all {pages} pages anew from {len(rows)} runs ({took}).\n"


def as_list(facts: Any) -> list[Mapping[str, Any]]:
    """Return the provenance of a recorded file as a list; empty where it has none."""
    made = facts.get("provenance") if isinstance(facts, dict) else None
    return [made] if isinstance(made, dict) else list(made or [])


def n_pages(listed: NotebookList, root: Path) -> int:
    """Count the pages that are written by hand or made from notebooks; those of the library's docstrings are more."""
    return len(list((root / "book").glob("*.md"))) + len({entry.page for entry in listed.notebooks})


def parts_of(listed: NotebookList, root: Path) -> dict[str, str]:
    """Return all tables by name."""
    rows = run_rows(listed, root)
    header = ["recorded", "minutes", "images", "hardware", "date", "commit"]
    return {
        "runs": runs_table(rows),
        "versions": versions_table(rows),
        "recorded": table(header, recorded_rows(root)),
        "commits": unknown_commits(root),
        "never": never_run(rows, root),
        "absent": absent_runs(rows),
        "effort": effort_text(rows, n_pages(listed, root)),
    }


def main(root: Path = ROOT) -> int:
    """Write the tables; files whose text stays the same are left alone, so that Sphinx skips them."""
    parts = parts_of(read_notebook_list(root / "workflow" / "notebooks.yml"), root)
    write_parts(root / "book" / "_build" / "status", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
