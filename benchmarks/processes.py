"""Measure time and memory of work in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Measured(NamedTuple):
    """Hold what a piece of work gave and took.

    Attributes
    ----------
    result : object
        What it returned.
    seconds : float
        Of the work, without what was prepared for it.
    peak_bytes : int
        Most memory of the process during the work, imports and what was prepared among it.
    grown_bytes : int
        The same less what the process had before the work.
    """

    result: Any
    seconds: float
    peak_bytes: int
    grown_bytes: int


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
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    arguments = (there, torch.get_num_threads(), prepare, work, given)
    process = context.Process(target=_in_process, args=arguments)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__}: its process ended without a result") from None
    finally:
        process.join()


def _in_process(answer: Any, threads: int, prepare: Any, work: Any, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    prepared = prepare(*given)
    before = _peak()
    start = time.perf_counter()
    result = work(prepared)
    seconds, peak = time.perf_counter() - start, _peak()
    answer.send(Measured(result, seconds, peak, peak - before))


def _peak() -> int:
    """Return the most memory of this process so far, in bytes; pages of files that it has mapped count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
