"""Write below each command of the how-to pages what it prints and how long it takes, from recorded runs.

python -m tools.make_steps                    writes the parts that the pages include, to book/_build/steps/
python -m tools.make_steps record [PAGE...]   runs what `book/steps.yml` lists, minutes: data/recorded/steps/
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.files import read_json
from tools.steps import RECORDS, Block, Step, code_of, read_steps, record, run_here, without_progress
from tools.write_parts import write_parts

ROOT = Path(__file__).resolve().parents[1]

LONGEST_NAME = 96
"""Characters of a command that are repeated where a block holds several."""


def named(step: Step) -> str:
    """Write the beginning of a command as code."""
    first = step.command.split("\n")[0]
    return f"`{first}`" if len(first) <= LONGEST_NAME else f"`{first[:LONGEST_NAME].rsplit(' ', 1)[0]} …`"


def made_on(made: Mapping[str, Any]) -> str:
    """Name the hardware of a recording."""
    return str(made["cpu"] if made["gpu"] == "none" else made["gpu"])


def length_of(seconds: float) -> str:
    """Write seconds, or minutes where they are many."""
    return (
        f"{seconds:.1f} s"
        if seconds < 10
        else f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.1f} min"
    )


def printed_text(step: Step, found: Mapping[str, Any] | None, made: Mapping[str, Any]) -> str:
    """Write the time and the last lines of a step that was recorded; say so where it was not, as it is now."""
    if found is None:
        return "not recorded since the command was changed.\n"
    given = ", ".join(f"`{value}` for `{name}`" for name, value in step.given.items())
    took = f"{length_of(found['cpu_seconds'])} of processor time on {made_on(made)}"
    took += f" ({length_of(found['seconds'])} by the clock)"
    lines = "\n".join(without_progress(found["printed"])[-step.lines :])
    return f"recorded, {took}{f'; with {given}' if given else ''}. It ends with\n\n```text\n{lines}\n```\n"


def record_text(path: Path) -> str:
    """Write what a run of its own recorded."""
    found = read_json(path)
    took, made = length_of(found["seconds"]), made_on(found["provenance"])
    return f"recorded, {took} on {made}. What happened:\n\n```text\n{chr(10).join(found['steps'])}\n```\n"


def block_text(block: Block, recorded: Mapping[str, Any], root: Path) -> str:
    """Write what is said below a block: of each command, or of several that are not run for the same reason."""
    known = {(each["command"], tuple(each["given"].items())): each for each in recorded.get("steps", [])}
    said: list[tuple[list[Step], str]] = []
    for why, group in groupby(block.steps, key=lambda step: step.not_run):
        steps = list(group)
        if why:
            said.append((steps, f"not run here. {why}\n"))
            continue
        for step in steps:
            found = known.get((step.command, tuple(step.given.items())))
            made = recorded.get("provenance", {})
            told = record_text(root / step.record) if step.record else printed_text(step, found, made)
            said.append(([step], told))
    if len(said) == 1:
        return said[0][1][0].upper() + said[0][1][1:]
    items = (
        f"- {', '.join(map(named, steps))}: {textwrap.indent(told, '  ').lstrip()}" for steps, told in said
    )
    return "\n".join(items)


def page_text(blocks: Sequence[Block], recorded: Mapping[str, Any], today: str) -> str:
    """Say at the head of a page where its times come from."""
    if not run_here(blocks):
        return "None of the commands of this page is run here; below each stands why.\n"
    if not recorded:
        return "No command of this page has been recorded yet.\n"
    made = recorded["provenance"]
    commit = (made["git_commit"] or "unknown")[:7]
    by = "the code of today" if recorded["code"] == today else "other code than today's"
    return (
        f"What stands below the commands of this page was recorded on {made['date'][:10]} by {by} (commit {commit}), "
        f"with everything installed and without a network, on {made['cpu']} ({made['n_cpus']} cores, shared with other "
        f"work; GPU: {made['gpu']}), Python {made['python']}, torch {made['torch']}, transformers "
        f"{made['transformers']}. Of a step that was not run it says why.\n"
    )


def parts_of(root: Path) -> dict[str, str]:
    """Return the text of every page and block by name."""
    parts, today = {}, code_of(root)
    for page, blocks in read_steps(root).items():
        path = root / RECORDS / f"{page}.json"
        recorded = read_json(path) if path.is_file() else {}
        parts[page] = page_text(blocks, recorded, today)
        parts |= {f"{page}-{block.name}": block_text(block, recorded, root) for block in blocks}
    return parts


def record_all(pages: Sequence[str], root: Path) -> None:
    """Record some pages, or all of them.

    Raises
    ------
    ParameterError
        If a page is not listed, or one of its commands fails.
    """
    listed = read_steps(root)
    for page in pages:
        if page not in listed:
            raise ParameterError("page", page, ", ".join(listed))
    for page in pages or [name for name, blocks in listed.items() if run_here(blocks)]:
        record(page, listed[page], root)


def main(arguments: Sequence[str] = (), root: Path = ROOT) -> int:
    """Write the parts, or record what they say."""
    parser = OneLineParser(prog="tools.make_steps", description=__doc__.partition("\n")[0])
    parser.add_argument("action", nargs="?", choices=["record"])
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    options = parser.parse_args(list(arguments))
    if options.action:
        return run_command("tools.make_steps", lambda: record_all(options.pages, root))
    write_parts(root / "book/_build/steps", parts_of(root))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
