"""Write the parts of the page on results that others handed in: who measured what on what, beside this build.

    python -m tools.make_elsewhere

The page ``book/recorded_elsewhere.md`` includes them from ``book/_build/elsewhere/``. Contributions are data that
nobody vouches for: each is checked by its schema again, and all of its text is escaped.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rcblib.runs.contributed import FOLDER, PublishedRun, Result, Submission, read_contributions
from rcblib.runs.files import read_json
from tools.write_parts import table, write_parts

ROOT = Path(__file__).resolve().parents[1]

NONE_YET = (
    "Nobody has handed in a result yet: every number of this book was computed by its maintainers, on the "
    "hardware that [](status.md) lists.\n"
)


def escaped(text: object) -> str:
    """Write text so that Markdown shows it as it is: no character of it is markup."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(text).split()))


def number(result: Result | None) -> list[str]:
    """Write a value with its interval, and what it was counted over."""
    if result is None:
        return ["–", "–"]
    value = result.value if isinstance(result.value, bool) else f"{result.value:.4g}"
    ends = "" if result.interval is None else " [{:.4g}, {:.4g}]".format(*result.interval)
    return [f"{value}{ends}", "–" if result.n is None else f"{result.n:,}"]


def hashes(named: dict[str, str]) -> str:
    """Write names with the beginnings of their hashes."""
    return ", ".join(f"{escaped(name)} ({digest[:12]})" for name, digest in named.items()) or "–"


def facts_table(submission: Submission) -> str:
    """Write a line a run: when, on what, with which versions, of which code, model and codebook."""
    rows = []
    for notebook, run in submission.runs.items():
        made = run.provenance
        commit = (made.git_commit or "unknown")[:7] + (", changed" if made.git_dirty else "")
        versions = f"torch {made.torch}, transformers {made.transformers}, rcblib {made.rcblib}"
        rows.append([
            escaped(notebook), made.date[:10], escaped(made.cpu if made.gpu == "none" else made.gpu),
            escaped(versions), f"{run.code} ({commit})", hashes(run.models), hashes(run.codebooks),
            f"{run.seconds / 60:.1f}",
        ])  # fmt: skip
    header = ["run", "date", "hardware", "versions", "code (commit)", "model", "codebook", "minutes"]
    return table(header, rows)


def own_results(notebook: str, root: Path) -> dict[str, Result]:
    """Read what this build's leading model gave; nothing where it has not run the notebook."""
    path = root / "results" / f"{notebook}.json"  # a key has no slash
    content = read_json(path)["results"] if path.is_file() else {}
    return {
        name: Result(value=own["value"], n=own["n"], interval=own.get("interval") and tuple(own["interval"]))
        for name, own in content.items()
        if isinstance(own["value"], int | float)
    }


def numbers_table(runs: dict[str, PublishedRun], root: Path) -> str:
    """Write every number that was handed in beside the same of this build's leading model."""
    rows = []
    for notebook, run in runs.items():
        ours = own_results(notebook, root)
        for name, result in run.results.items():
            told = f"{notebook}: {name.replace('_', ' ')}" + (f" ({result.unit})" if result.unit else "")
            rows.append([escaped(told), *number(result), *number(ours.get(name))])
    return table(["number", "handed in", "n", "this build", "n"], rows)


def page_of(submissions: list[Submission], root: Path) -> str:
    """Write a section for every contribution; a sentence where there is none."""
    sections = []
    for own in submissions:
        remark = f"{escaped(own.remark)}\n\n" if own.remark else ""
        sections.append(
            f"## {escaped(own.name)}\n\n{remark}{facts_table(own)}\n{numbers_table(own.runs, root)}"
        )
    return "\n".join(sections) or NONE_YET


def main(root: Path = ROOT) -> int:
    """Write the sections; a file whose text stays the same is left alone, so that Sphinx skips it."""
    parts = {"contributions": page_of(read_contributions(root / FOLDER), root)}
    write_parts(root / "book" / "_build" / "elsewhere", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
