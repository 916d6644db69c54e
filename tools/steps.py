"""Read which commands the how-to pages show, and run those that can run here in a checkout of their own.

``book/steps.yml`` lists every command in a block of code of its pages, block by block, by its beginning. One that can
run here says how many of its last lines are shown and how long it may take; any other why it is not run, or where it
was recorded.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from rcblib.records import ParameterError
from rcblib.runs.digest import code_digest
from rcblib.runs.files import write_json
from rcblib.runs.provenance import provenance
from tools.notebook_list import read_notebook_list
from tools.record import COMMANDS

LIST, NOTEBOOKS = "book/steps.yml", "workflow/notebooks.yml"
RECORDS = "data/recorded/steps"

# As a session does, show what the last line of a program is worth.
_SESSION = """
import ast, sys
tree = ast.parse(sys.argv[1])
last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
exec(compile(tree, "page", "exec"))
shown = eval(compile(ast.Expression(last.value), "page", "eval")) if last else None
if shown is not None:
    print(shown)
"""
_BAR = re.compile(r"([\w ]+): +\d+%")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PATIENCE = 30
KEPT = 16
"""Last lines of a command that a record keeps."""
LONGEST = 110
"""Characters of a line that is shown."""


@dataclass(frozen=True)
class Step:
    """Hold a command of a page.

    Attributes
    ----------
    command : str
        As the page has it: of a shell on one line, without its comment; a loop, or a program in Python, line by line.
    lines : int
        How many of the last lines that it prints are shown, at most `KEPT`; 0 where it is not run here.
    most_seconds : float
        How long a reader waits at most, in seconds of processor time: a recording that takes more is refused. By the
        clock it may take `PATIENCE` times as long, since a machine that records may be shared.
    given : dict
        What stands for each name in angle brackets, or file, when the command is run here.
    not_run : str
        Why it is not run here, as a sentence.
    record : str
        File that tells of a run of its own: ``seconds``, ``steps`` and ``provenance``.
    """

    command: str
    lines: int = 0
    most_seconds: float = 0
    given: Mapping[str, str] = field(default_factory=dict)
    not_run: str = ""
    record: str = ""

    def __post_init__(self) -> None:
        """Refuse a step that is run in no way, or in several."""
        ways = [self.lines > 0 and self.most_seconds > 0, bool(self.not_run), bool(self.record)]
        if sum(ways) != 1:
            raise ParameterError(self.command, ways, "lines and most_seconds, or not_run, or record")

    @property
    def as_run(self) -> str:
        """Return the command with what is given here."""
        command = self.command
        for name, value in self.given.items():
            command = command.replace(name, value)
        return command


@dataclass(frozen=True)
class Block:
    """Hold a block of code of a page: its part's name, its language and its steps."""

    name: str
    language: str
    steps: tuple[Step, ...]


def blocks_of(text: str) -> list[tuple[str, list[str]]]:
    """Return the language and the commands of every block of a page in a shell's language or in Python."""
    found = re.finditer(r"(?ms)^( *)```(bash|python)\n(.*?)^\1```$", text)
    return [(each[2], commands_of(each[2], textwrap.dedent(each[3]))) for each in found]


def commands_of(language: str, code: str) -> list[str]:
    """Split a block into commands as `Step` holds them; a program in Python is one."""
    if language == "python":
        return [code.strip()]
    lines = [
        re.sub(r"(^|\s+)#.*", "", line).rstrip() for line in re.sub(r"\s*\\\n\s*", " ", code).split("\n")
    ]
    commands: list[str] = []
    is_open = False
    for line in filter(None, lines):
        if is_open:
            commands[-1] += f"\n{line}"
        else:
            commands.append(line)
        is_open = commands[-1].startswith("for ") and line != "done"
    return commands


def read_steps(root: Path) -> dict[str, list[Block]]:
    """Read pages with what their list says of every command: names of pages to their blocks in order.

    Raises
    ------
    ParameterError
        If a page shows another command than its list has at that place, or an entry has unknown keys.
    """
    content = yaml.safe_load((root / LIST).read_text(encoding="utf-8"))
    pages = {}
    for page, listed in content.items():
        shown = blocks_of((root / f"book/{page}.md").read_text(encoding="utf-8"))
        pages[page] = [
            Block(name, language, tuple(_steps(page, commands, entries)))
            for (name, entries), (language, commands) in zip(listed.items(), shown, strict=False)
        ]
        if len(listed) != len(shown):
            raise ParameterError(LIST, f"{len(listed)} blocks of {page}", f"its {len(shown)}")
    return pages


def _steps(page: str, commands: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
    """Join the commands of a block and what is listed of them."""
    for entry, command in zip_longest(entries, commands, fillvalue=None):
        begins = entry and str(entry.get("command", ""))
        if not begins or command is None or not command.startswith(begins):
            raise ParameterError(
                LIST, begins or "nothing", f"{(command or 'nothing')[:60]!r}, which {page}.md shows"
            )
        unknown = set(entry) - set(Step.__dataclass_fields__)
        if unknown:
            raise ParameterError(f"a step of {page}", sorted(unknown), ", ".join(Step.__dataclass_fields__))
        yield Step(**{name: _trimmed(value) for name, value in entry.items()} | {"command": command})


def _trimmed(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def run_here(blocks: Sequence[Block]) -> list[tuple[Block, Step]]:
    """Return the steps that are run here, each with its block."""
    return [(block, step) for block in blocks for step in block.steps if step.lines]


def stale(page: str, blocks: Sequence[Block], recorded: Mapping[str, Any] | None) -> str:
    """Say in one line how a page's record differs from its list; nothing where it does not."""
    wanted = [(step.command, dict(step.given)) for _, step in run_here(blocks)]
    found = [(each["command"], each["given"]) for each in (recorded or {}).get("steps", [])]
    for each in wanted:
        if each not in found:
            first = each[0].split("\n")[0]
            return (
                f"{page}: {first!r} was not recorded as it is now: python -m tools.make_steps record {page}"
            )
    gone = [command for command, given in found if (command, given) not in wanted]
    return f"{page}: recorded, but not in {LIST}: {gone[0]!r}" if gone else ""


def run_step(step: Step, language: str, folder: Path) -> dict[str, Any]:
    """Run a command in a folder, and return what it printed and how long it took.

    Returns
    -------
    dict
        ``command`` and ``given`` of the step; ``seconds`` by the clock and ``cpu_seconds`` of all its processes;
        ``printed``, the last lines.

    Raises
    ------
    ParameterError
        Where it fails, or takes longer than it may.
    """
    shell = ["bash", "-euo", "pipefail", "-c", step.as_run]
    command = shell if language == "bash" else [sys.executable, "-c", _SESSION, step.as_run]
    before, start = _cpu_seconds(), time.monotonic()
    run = subprocess.Popen(
        command, cwd=folder, env=_environment(folder), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        printed, _ = run.communicate(timeout=PATIENCE * step.most_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        raise ParameterError(
            step.as_run, "no end", f"one within {PATIENCE * step.most_seconds:g} s"
        ) from None
    times = {"seconds": round(time.monotonic() - start, 1), "cpu_seconds": round(_cpu_seconds() - before, 1)}
    lines = shortened(printed, folder)
    if run.returncode:
        raise ParameterError(step.as_run, f"status {run.returncode}", f"0; it said: {' '.join(lines[-3:])}")
    if times["cpu_seconds"] > step.most_seconds:
        raise ParameterError(step.as_run, f"{times['cpu_seconds']} s", f"at most {step.most_seconds:g} s")
    return {"command": step.command, "given": dict(step.given), **times, "printed": lines}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of a reader who has activated the project's own, without network."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RCB_", "PYTHON"))}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", "")])
    return own | {"PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def shortened(printed: str, folder: Path) -> list[str]:
    """Return the last lines of what was printed, as a terminal shows them; paths count from the project's folder."""
    for place, name in ((folder, "."), (Path(sys.prefix), ".venv"), (Path.home(), "~")):
        printed = printed.replace(f"{place}/", "" if name == "." else f"{name}/").replace(str(place), name)
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in _ESCAPES.sub("", printed).split("\n")]
    kept = without_progress([line for line in lines if line])[-KEPT:]
    return [line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in kept]


def without_progress(lines: Sequence[str]) -> list[str]:
    """Keep of neighbouring lines that tell how far something has come the last."""
    bars = [_BAR.match(line) for line in lines]
    named = [bar and bar[1] for bar in bars]
    return [
        line
        for line, own, after in zip(lines, named, [*named[1:], None], strict=True)
        if not own or own != after
    ]


def code_of(root: Path) -> str:
    """Return the digest of the code that commands run."""
    modules = {module for own in COMMANDS.values() for module in own}
    return code_digest(*sorted(modules), *read_notebook_list(root / NOTEBOOKS).modules)


def record(page: str, blocks: Sequence[Block], root: Path) -> dict[str, Any]:
    """Run a page's commands one after the other in a checkout of the present commit, and write what they printed.

    Returns
    -------
    dict
        What is written to ``data/recorded/steps/<page>.json``: ``provenance``, ``code``, the ``seconds`` of all, and
        ``steps`` as `run_step` returns them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        subprocess.run(["git", "clone", "--quiet", "--shared", str(root), str(folder)], check=True)
        steps = []
        for block, step in run_here(blocks):
            steps.append(run_step(step, block.language, folder))
            took, first = steps[-1], step.command.split("\n")[0]
            print(f"{page}: {took['seconds']} s, {took['cpu_seconds']} s of CPU: {first}", flush=True)
    seconds = round(sum(each["seconds"] for each in steps), 1)
    content = {"provenance": provenance(), "code": code_of(root), "seconds": seconds, "steps": steps}
    write_json(root / RECORDS / f"{page}.json", content)
    return content
