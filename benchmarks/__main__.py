"""Run the benchmarks that fit into a quarter of an hour on two cores, print each beside its target, and record them.

    python -m benchmarks                      # one part after the other, each in a process, then all targets
    python -m benchmarks --only clustering    # one part; the table has the others as they were last measured
    python -m benchmarks --record             # nothing runs: results become those that pages show

On a GPU (`--gpu`) probing, memory and pruning are of LLaVA-1.5-7B's architecture at full size with random weights.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import speed
from benchmarks.processes import Ran, run_apart
from benchmarks.results import RECORDED, WHOLE, Target, read_targets
from rcblib.records import ParameterError
from rcblib.runs.command import INTERRUPTED, OneLineParser, run_command
from rcblib.runs.files import read_json, write_json
from rcblib.runs.options import results_folder
from rcblib.runs.provenance import project_root, provenance

METHODS = "--no-targets --retain-ratio 0.2 --batch-size 1 4 --repeats 3"
"""All methods at one budget."""

BUDGETS = "--pruner codebook --retain-ratio 0.1 0.2 0.35 0.5 --batch-size 1 4"
"""The codebook at more budgets, and in as many rounds as targets of a few milliseconds take to be measured."""

PHOTOGRAPHS = "--model llava-photographs --images photographs --codebook llava-photographs"

SMALL = {
    "scenes": "--model llava-scenes --codebook llava-scenes",
    "next": "--model llava-next-scenes --codebook llava-next-scenes",
    "onevision": "--model llava-onevision-scenes --codebook llava-onevision-scenes",
    "qwen": "--model qwen2_5_vl",
}

FEW = "--model llava-photographs --positions 4 --repeats 2"
HALF = "--dtype bfloat16 --sharing always"

CPU = {
    "probing-embedded": ("probing", ""),
    "probing-photographs": ("probing", FEW),
    "probing-photographs-half": ("probing", f"{FEW} {HALF} --released-dtype float32"),
    "clustering": ("clustering", "--sizes 2000 10000 20000 50000"),
    "neighbours": ("neighbours", ""),
    "pooling": ("pooling", "--sizes 800 2400 --repeats 2"),
    **{
        f"pruning-{name}{part}": ("pruning", f"{words} {of}")
        for name, words in SMALL.items()
        for part, of in (("", METHODS), ("-budgets", f"{BUDGETS} --repeats 15"))
    },
    "pruning-photographs": (
        "pruning",
        f"{PHOTOGRAPHS} --no-targets --retain-ratio 0.2 --new 2 --repeats 1",
    ),
    "pruning-photographs-budgets": ("pruning", f"{PHOTOGRAPHS} {BUDGETS} --repeats 2"),
    "scale": ("scale", "--sizes 8 16 32"),
}

FULL_SIZE = "--model llava-hf/llava-1.5-7b-hf --random"

GPU = {
    "probing-7b": ("probing", f"{FULL_SIZE} {HALF} --positions 4 --repeats 2"),
    "probing-7b-compiled": ("probing", f"{FULL_SIZE} {HALF} --positions 4 --repeats 2 --compiled"),
    "memory-7b": ("memory", FULL_SIZE),
    "pruning-7b": ("pruning", f"{FULL_SIZE} --dtype bfloat16 --batch-size 1 8 --repeats 3"),
    "clustering-gpu": ("clustering", "--device cuda --sizes 100000 --width 4096 --forms blockwise"),
}

MINUTES = {"cpu": 15, "gpu": 10}
"""Most that all parts may take, one after the other."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark after the other; what falls short of its target is said, and does not stop the others.

    Returns
    -------
    int
        0, or the highest exit status of those that could not run.
    """
    parser = OneLineParser(prog="benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="those of full size instead")
    parser.add_argument("--only", nargs="+", help="some of them by name")
    parser.add_argument(
        "--output", type=results_folder, default=Path("results/benchmarks"), help="folder of the results"
    )
    parser.add_argument(
        "--record", action="store_true", help=f"run nothing, copy the results to {RECORDED}, which pages show"
    )
    options = parser.parse_args(arguments)
    listed = GPU if options.gpu else CPU
    unknown = set(options.only or ()) - set(listed)
    if unknown:
        parser.error(f"--only: got {', '.join(sorted(unknown))}; accepted: {', '.join(listed)}")
    if options.record:
        return run_command("benchmarks", lambda: _record(options, listed))
    if options.gpu and not torch.cuda.is_available():
        parser.error("--gpu: got a machine without a GPU that torch can use; accepted: one with, or no --gpu")
    options.output.mkdir(parents=True, exist_ok=True)
    told = options.output / f"{whole(listed)}.json"
    told.unlink(missing_ok=True)  # of parts that run alone it would say what is not so
    ran: dict[str, Ran] = {}
    start = time.perf_counter()
    product = speed()
    print(product, flush=True)
    for name, (module, words) in listed.items():
        if options.only and name not in options.only:
            continue
        print(f"\n{name}: {words or 'as it is'}", flush=True)
        own = run_apart(module, [*shlex.split(words), "--output", str(options.output / f"{name}.json")])
        print(f"{own.seconds:.0f} s, others had {own.others:.0%} of the cores", flush=True)
        if own.status == INTERRUPTED:
            return INTERRUPTED
        ran[name] = own
    if not options.only:
        limit = MINUTES["gpu" if options.gpu else "cpu"]
        target = Target(
            "all parts, one after the other", (time.perf_counter() - start) / 60, limit, "at most", " min"
        )
        write_json(told, {
            "run": [{"part": name, **own._asdict()} for name, own in ran.items()],
            "product": product._asdict(),
            "targets": [asdict(target)],
            "provenance": provenance(),
        })  # fmt: skip
    targets = read_targets(options.output, [*listed, whole(listed)])
    print(f"\n{sum(target.met for target in targets)} of {len(targets)} targets are met", *targets, sep="\n")
    return max((own.status for own in ran.values()), default=0)


def whole(listed: dict[str, Any]) -> str:
    """Return the name of the file that tells of all parts as one run."""
    return WHOLE["gpu" if listed is GPU else "cpu"]


def _record(options: argparse.Namespace, listed: dict[str, Any]) -> None:
    """Copy results of a clean checkout to where pages read them."""
    folder = project_root() / RECORDED
    files = [
        path
        for name in options.only or [*listed, whole(listed)]
        if (path := options.output / f"{name}.json").is_file()
    ]
    dirty = [path.stem for path in files if read_json(path)["provenance"]["git_dirty"] is not False]
    if dirty or not files:
        given = f"results with uncommitted changes: {', '.join(dirty)}" if dirty else "no results"
        raise ParameterError("record", given, "results that benchmarks wrote in a checkout without changes")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{whole(listed)}.json").unlink(missing_ok=True)  # the same
    for path in files:
        shutil.copyfile(path, folder / path.name)
    print(f"{len(files)} results in {RECORDED}")


if __name__ == "__main__":
    sys.exit(run_command("benchmarks", main))
