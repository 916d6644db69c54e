"""Run benchmarks, and measure time and memory of work, each in a process of its own.

Such a process is a copy of one that has imported what benchmarks import and has done nothing else: so neither what
another part left in memory nor the time of imports is in what is measured. Where there is a GPU, whose driver allows no
copies, every process imports anew.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

IMPORTED = tuple(
    f"benchmarks.{name}" for name in ("probing", "pruning", "clustering", "neighbours", "pooling", "scale")
)
"""Modules that are imported before the process of a whole benchmark is copied."""


class Measured(NamedTuple):
    """Hold what a piece of work gave and took.

    Attributes
    ----------
    result : object
        What it returned.
    seconds : float
        Of the work, without what was prepared for it.
    peak_bytes : int
        Most memory of the process during the work; what imports and preparing took is among it, but not those pages
        of libraries that were read before it was copied and not since.
    grown_bytes : int
        The same less what the process had before the work.
    """

    result: Any
    seconds: float
    peak_bytes: int
    grown_bytes: int


class Ran(NamedTuple):
    """Hold how a benchmark ended, and beside what.

    Attributes
    ----------
    status : int
        Exit status.
    seconds : float
        From its start to its end.
    others : float
        Share of all cores that processes of others had meanwhile, in [0, 1]: what was measured is slower for it.
    """

    status: int
    seconds: float
    others: float


def measured(prepare: Callable[..., Any], work: Callable[[Any], Any], *given: Any) -> Measured:
    """Prepare and do a piece of work in a new process with as many threads as this one.

    Parameters
    ----------
    prepare, work : callable
        Functions of modules: the second takes what the first makes of `given`.

    Raises
    ------
    RuntimeError
        If the process ends without a result.
    """
    process, here = _started([work.__module__], _in_process, torch.get_num_threads(), prepare, work, given)
    try:
        return here.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__}: its process ended without a result") from None
    finally:
        process.join()


def run_apart(module: str, words: Sequence[str]) -> Ran:
    """Run the command of a benchmark, a module of this package, in a new process."""
    start = time.perf_counter()
    process, here = _started(IMPORTED, _command, f"benchmarks.{module}", list(words))
    parent, began, others = here.recv()
    inner = 0.0
    with contextlib.suppress(EOFError):  # of one that was killed
        inner = here.recv()
    process.join()
    now = time.perf_counter()
    others = (_busy() - _used(parent) - inner - others) / ((now - began) * (os.cpu_count() or 1))
    status = (
        process.exitcode if process.exitcode >= 0 else 128 - process.exitcode
    )  # as a shell tells of signals
    return Ran(status, now - start, max(0.0, others))


def _context(imported: Sequence[str]) -> BaseContext:
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imported))
    return context


def _started(
    imported: Sequence[str], run: Callable[..., None], *given: Any
) -> tuple[BaseProcess, Connection]:
    """Start a function in a new process, a copy of one with these modules; return that and what it sends."""
    context = _context(imported)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(there, *given))
    process.start()
    there.close()
    return process, here


def _in_process(answer: Any, threads: int, prepare: Any, work: Any, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    prepared = prepare(*given)
    before = _peak()
    start = time.perf_counter()
    result = work(prepared)
    seconds, peak = time.perf_counter() - start, _peak()
    answer.send(Measured(result, seconds, peak, peak - before))


def _command(answer: Any, module: str, words: list[str]) -> None:
    parent = os.getppid()  # which imported what is imported by now
    answer.send((parent, time.perf_counter(), _busy() - _used(parent)))
    try:
        sys.exit(importlib.import_module(module).main(words))
    finally:
        answer.send(_used_by_children())


def _peak() -> int:
    """Return the most memory of this process so far, in bytes; pages of files that it has mapped count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _busy() -> float:
    """Return the seconds that all cores have worked since the machine started."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, first)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _used(process: int) -> float:
    """Return the seconds that a process and those of its children that have ended have worked."""
    return sum(map(int, _fields(process)[11:15])) / os.sysconf("SC_CLK_TCK")


def _used_by_children() -> float:
    """Return the same of those of this process's children that are still there: what copies itself, and its copies."""
    used = 0.0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(_fields(int(path.name))[1]) == os.getpid():
                used += _used(int(path.name))
    return used


def _fields(process: int) -> list[str]:
    """Return what the kernel says of a process, from its state on: the second is its parent."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
