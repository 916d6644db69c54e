"""Run commands whose wrong inputs end in one line: a parser and a guard that every command line here shares."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rcblib.records import CodebookError, ImageError, ParameterError, UnsupportedModelError

WRONG_INPUT = 2
"""Exit status after a wrong input."""


class OneLineParser(argparse.ArgumentParser):
    """Report a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message on standard error and end with `WRONG_INPUT`."""
        self.exit(WRONG_INPUT, f"{self.prog}: {message}\n")


def run_command(name: str, run: Callable[[], Any]) -> int:
    """Run a command; tell a wrong input, and each warning once, in one line on standard error.

    Parameters
    ----------
    name : str
        What the lines begin with.
    run : callable
        Does the work.

    Returns
    -------
    int
        Exit status: 0, or `WRONG_INPUT`.
    """
    try:
        with _warnings_in_one_line(name):
            run()
    except (ParameterError, UnsupportedModelError, CodebookError, ImageError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return WRONG_INPUT
    return 0


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
