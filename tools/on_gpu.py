"""Run a command on one of this machine's GPUs that no other such command uses: ``python -m tools.on_gpu COMMAND...``.

Jobs that share a machine take one GPU each, whichever is free, and see it alone (``CUDA_VISIBLE_DEVICES``). A GPU is
held by a lock of the kernel's, which ends with the command however that ends. Where a scheduler gives jobs their GPUs,
or there is none, the command runs as it is.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")


def visible_gpus(environment: Mapping[str, str], driver: Path = DRIVER) -> list[str]:
    """Return the names of the GPUs that may be used: of ``CUDA_VISIBLE_DEVICES``, or all that the driver lists."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(driver.glob("*"))]


def hold_one(gpus: Sequence[str], folder: Path, wait: float = 0.5) -> str:
    """Wait until one of some GPUs is free, hold it until this process ends, and return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for name in gpus:
            lock = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            os.set_inheritable(lock, True)  # so that the command holds it
            return name
        time.sleep(wait)


def main(command: Sequence[str]) -> None:
    """Become the command, with a GPU of its own where this machine has several to share."""
    gpus = visible_gpus(os.environ)
    if gpus and "SLURM_JOB_ID" not in os.environ:
        folder = Path(tempfile.gettempdir()) / f"rcblib-gpus-{os.getuid()}"
        os.environ["CUDA_VISIBLE_DEVICES"] = hold_one(gpus, folder)
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    main(sys.argv[1:])
