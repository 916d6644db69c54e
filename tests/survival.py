"""Try inputs that may kill: in a process of its own, with little memory and a time limit for each."""

import faulthandler
import json
import multiprocessing
import resource
import signal
import tempfile
import warnings
from pathlib import Path

import torch

from rcblib.records import CodebookError, ImageError, ParameterError, UnsupportedModelError

PER_POINT = 60
"""Damaged inputs of a kind for each point: one point in ``make test``, 20 in the long form."""
OWN_ERRORS = (ParameterError, ImageError, CodebookError, UnsupportedModelError)
SECONDS, MEMORY = 20, 2**31
"""Limits of one input, in seconds and in bytes beyond what the process holds already."""


def outcomes_of(inputs, attempt, seconds=SECONDS, memory=MEMORY):
    """Attempt each input; yield for each an empty text, or in a line what went wrong.

    Parameters
    ----------
    inputs : Mapping
        Name to input.
    attempt : callable
        Takes an input, and checks what comes of it. All is well where it returns, or raises an error of the project's
        own in one line; any other error is none, nor is a crash, a hang, or a demand for much memory.
    """
    names, done = list(inputs), 0
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        while done < len(names):
            told.write_text("")
            left = {name: inputs[name] for name in names[done:]}
            arguments = (left, attempt, told, seconds, memory)
            process = multiprocessing.get_context("fork").Process(target=_attempt_all, args=arguments)
            process.start()
            process.join()
            found = [json.loads(line) for line in told.read_text().splitlines()]
            done += len(found)
            yield from found
            if done < len(names) and process.exitcode == 0:
                raise RuntimeError("the attempts ended before the inputs did")
            if done < len(names):
                died = "no end" if process.exitcode == -signal.SIGALRM else f"exit code {process.exitcode}"
                yield f"{names[done]}: {died}"
                done += 1


def _attempt_all(inputs, attempt, told, seconds, memory):
    faulthandler.disable()  # a crash is told by its exit code
    torch.set_num_threads(1)  # threads of a pool do not survive the copy
    warnings.simplefilter("ignore")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with told.open("a") as file:
        for name, value in inputs.items():
            signal.setitimer(signal.ITIMER_REAL, seconds)
            outcome = _attempt(name, value, attempt)
            signal.setitimer(signal.ITIMER_REAL, 0)
            file.write(json.dumps(outcome) + "\n")
            file.flush()


def _attempt(name, value, attempt):
    try:
        attempt(value)
    except OWN_ERRORS as error:
        return f"{name}: an error of {len(str(error).splitlines())} lines" if "\n" in str(error) else ""
    except Exception as error:
        return f"{name}: {type(error).__name__}: {str(error)[:300]!r}"
    return ""
