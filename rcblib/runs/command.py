"""Run commands whose wrong inputs end in one line: a parser and a guard for every command."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rcblib.records import CodebookError, ImageError, ParameterError, UnsupportedModelError
from rcblib.runs.errors import is_out_of_memory

FAILED, WRONG_INPUT, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141
"""Exit statuses: files or memory that failed, a wrong input, Ctrl-C, nobody who reads; the last two as shells count."""


class OneLineParser(argparse.ArgumentParser):
    """Report a wrong argument in one line, with the right one that is nearest; where a command is missing, with all."""

    _commands: Any = None
    _misspelt = ""

    def add_subparsers(self, **options: Any) -> Any:
        """Add commands, as `argparse` does; each reports in one line too."""
        self._commands = super().add_subparsers(**options)
        return self._commands

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse arguments; a misspelt option is named, also where another is then missing."""
        args = list(sys.argv[1:] if args is None else args)
        self._misspelt = self._look_for_misspelt(args)
        found = super().parse_known_args(args, namespace)
        if self._misspelt:
            self.error(self._misspelt)
        return found

    def _look_for_misspelt(self, args: Sequence[str]) -> str:
        """Tell the first option that is none of this parser's; empty where all are."""
        for name in (arg.partition("=")[0] for arg in args):
            if name == "--" or (self._commands and not name.startswith("-")):
                break  # values, or the options of a command
            is_option = re.fullmatch(r"--?[A-Za-z][\w-]*", name)
            if is_option and not any(own.startswith(name) for own in self._option_string_actions):
                return f"unrecognized arguments: {name}{_nearest(name, self._option_string_actions)}"
        return ""

    def error(self, message: str) -> NoReturn:
        """Print the message on standard error and end with `WRONG_INPUT`."""
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            message += _nearest(found[1], re.findall(r"[\w.-]+", found[2]))
        if message.endswith("required: <command>"):
            message += f", one of {', '.join(self._commands.choices)}; --help says what they do"
        if self._misspelt not in message:
            message += f"; {self._misspelt}"
        self.exit(WRONG_INPUT, f"{self.prog}: {message}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End; a reader of the help that went away is no error."""
        with contextlib.suppress(BrokenPipeError):
            _flush()
        super().exit(status, message)


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that a misspelt one is nearest to, if there is one."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def run_command(name: str, run: Callable[[], Any], kept: Path | None = None) -> int:
    """Run a command; tell whatever a user may meet, and each warning once, in one line on standard error.

    Parameters
    ----------
    name : str
        What the lines begin with.
    run : callable
        Does the work, and may return an exit status.
    kept : pathlib.Path, optional
        Folder from which the same command goes on after it was interrupted, or a file could not be written.

    Returns
    -------
    int
        Exit status: 0 or that of `run`, or one of `FAILED`, `WRONG_INPUT`, `INTERRUPTED`, `PIPE_CLOSED`.
    """
    try:
        with _warnings_in_one_line(name):
            status = run()
        _flush()
        return status or 0
    except (ParameterError, UnsupportedModelError, CodebookError, ImageError) as error:
        status, line = WRONG_INPUT, str(error)
    except KeyboardInterrupt:
        status, line = INTERRUPTED, f"interrupted{_remainder(kept)}"
    except BrokenPipeError:
        _flush_nowhere()
        return PIPE_CLOSED
    except OSError as error:
        about = f"{error.filename}: " if error.filename is not None else ""
        status, line = FAILED, f"{about}{error.strerror or error}{_remainder(kept)}"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        status, line = FAILED, f"out of memory; a smaller --batch-size needs less{_remainder(kept)}"
    try:
        _flush()
    except OSError:
        _flush_nowhere()
    print(f"{name}: {' '.join(line.split())}", file=sys.stderr)
    return status


def _remainder(kept: Path | None) -> str:
    """Say where what was finished lies."""
    if kept is None or not kept.is_dir() or not any(kept.iterdir()):
        return ""
    return f"; what was finished is kept in {kept}, and the same command goes on from there"


def _flush() -> None:
    """Write what was printed, so that an error in doing so is met here and not at the end of the process."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _flush_nowhere() -> None:
    """Send what was printed and cannot be written nowhere, or Python would complain of it once more at the end."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file, as tests have
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _warnings_in_one_line(name: str) -> Iterator[None]:
    """Tell the library's warnings once each, on standard error, without a place in the code."""
    told: set[str] = set()

    def tell(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if not issubclass(category, UserWarning):
            shown(message, category, *place, **options)
        elif str(message) not in told:
            told.add(str(message))
            print(f"{name}: warning: {message}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        shown, warnings.showwarning = warnings.showwarning, tell
        yield
