"""Run a function in a process of its own that has imported already what this one has."""

import multiprocessing
import os
import sys

import torch


def forked(function, *arguments):
    """Run a function in a copy of this process until it ends or is killed; return its exit code.

    The code is that of `multiprocessing.Process`: the negative number of the signal that killed it.
    """
    process = started(function, *arguments)
    process.join()
    return process.exitcode


def started(function, *arguments):
    """Start a function in a copy of this process, which prints nothing; return the process."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(function, *arguments))
    process.start()
    return process


def _run(function, *arguments):
    sys.stdout = open(os.devnull, "w")
    torch.set_num_threads(1)  # threads of a pool do not survive the copy
    function(*arguments)
