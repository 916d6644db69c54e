"""Let faults strike a piece of work at chosen points, and tell whether what is there at the end is as without them."""

import errno
import hashlib
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import pyarrow.parquet as pq
from forked import forked

from rcblib.runs.files import read_json

TOUCHING = {"open", "os.rename", "os.remove", "os.mkdir"}
"""What Python tells of the files of a folder being touched."""


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def read_only(path):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


def striking(work, folder, strike, point, until_the_end=False):
    """Run some work in this process; at the n-th time that files of the folder are touched the fault strikes.

    It goes on striking where asked for, but files can be removed: a full disk lets them be.
    """
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in TOUCHING and str(folder) in str(arguments[0]):
            seen += 1
            if seen == point or until_the_end and seen > point and event != "os.remove":
                strike(arguments[0])

    sys.addaudithook(watch)
    warnings.simplefilter("ignore")
    try:
        work(folder)
    except OSError:
        sys.exit(3)


def n_touches(work, folder):
    """Count how often some work touches the files of a folder."""
    told = folder.parent / f"{folder.name}.touches"

    def counted():
        touches = []
        striking(work, folder, touches.append, 1, until_the_end=True)
        told.write_text(str(len(touches)))

    assert forked(counted) == 0
    return int(told.read_text())


def small_files(work, folder, n_bytes):
    """Run some work in this process, in which no file may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    warnings.simplefilter("ignore")
    try:
        work(folder)
    except Exception as error:  # each library that writes says in its own way that there is no room
        sys.exit(3 if "large" in str(error) or isinstance(error, OSError) else 4)


def jumping_clocks(work, folder, generator, stand_still):
    """Run some work in this process, in which every look at a clock shows any time at all, or always the same."""
    choices = [0.0] if stand_still else [-1e6, -1.0, 0.0, 1e-9, 1e6]
    jumps = [float(jump) for jump in generator.choice(choices, size=10_000)]
    shown = [1e9]

    def clock():
        shown.append(shown[-1] + jumps[len(shown) % len(jumps)])
        return shown[-1]

    for name in ("time", "perf_counter", "monotonic"):
        setattr(time, name, clock)
    work(folder)


def content(folder):
    """Return what a folder's files hold, by name: of tables and facts without when and for how long they were made."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            data = pq.read_table(path).replace_schema_metadata(None)
            text = str(data.schema).encode() + b"".join(
                bytes(buffer or b"") for column in data.combine_chunks().columns for chunk in column.chunks
                for buffer in chunk.buffers()
            )  # fmt: skip
        elif path.suffix == ".json":
            facts = read_json(path)
            text = str(
                {k: v for k, v in facts.items() if k not in ("seconds", "provenance", "sha256")}
            ).encode()
        else:
            text = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(text).hexdigest()
    return found


def differences(folder, expected, are_left_overs_allowed=False):
    """Say in a line how a folder's content differs from what it should be, or nothing."""
    found = content(folder)
    if are_left_overs_allowed:  # of a file that was being written when the process was killed
        found = {name: digest for name, digest in found.items() if not Path(name).name.endswith(".tmp")}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"{', '.join(wrong)} differ" if wrong else ""
