"""Run the workflow alone in this folder: ``python -m tools.run_workflow``, with Snakemake's arguments.

Snakemake's own lock outlives a run that was killed, and asks for ``--unlock``; nor does it see jobs that go on after
such a run. This lock is the kernel's and belongs to the input that a run hands on to its jobs: it ends when the last of
them ends, however that may be. A run that finds it taken waits, and then does what is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from pathlib import Path

from tools import warm_start

LOCK = Path(".snakemake/running")

MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Bytes of freed memory that glibc keeps for a job's next tensors. By default it gives large ones back to the kernel at
once and asks for zeroed pages again, which takes a tenth to a fifth of the time of probing small models."""


def settle_times(now: float) -> None:
    """Give files whose time is yet to come the present one: Snakemake makes nothing of them, now or the next time.

    They were written while a clock was wrong. What was made of them is older then, and is made again.
    """
    for folder, inner, names in os.walk("."):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for path in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(OSError):
                if os.lstat(path).st_mtime > now + 1:
                    os.utime(path, (now, now), follow_symlinks=False)


def main(arguments: list[str]) -> None:
    """Become Snakemake, when no other run, and no job of one, is at work in the folder."""
    command = [sys.executable, "-m", "snakemake", *arguments]
    LOCK.parent.mkdir(exist_ok=True)
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                "waiting for another run in this folder, or a job that it left, to end",
                file=sys.stderr,
                flush=True,
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        command.append("--nolock")
        os.dup2(lock, 0)
    except OSError as error:  # a file system without such locks: Snakemake's has to do
        print(
            f"no lock of the kernel's here ({error.strerror}): Snakemake's own is used",
            file=sys.stderr,
            flush=True,
        )
    settle_times(time.time())
    environment = MEMORY | os.environ
    if hasattr(os, "pidfd_open"):  # Linux, where forking what has imported torch is safe
        asked, alive = warm_start.started(environment)
        os.set_inheritable(alive, True)  # the process that forks ends with this one
        environment |= asked
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
