"""Measure that what probing many images takes grows with their number alone.

Run it by ``python -m benchmarks.scale``, or with all benchmarks by ``make bench``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.results import Target, write_measured
from rcblib.mllm import load_model
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset
from rcblib.records import ParameterError
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.files import write_table
from rcblib.runs.merging import merge_to
from rcblib.runs.options import results_file
from rcblib.runs.shards import Shard
from worlds.datasets import SceneDataset

LINEAR = {
    "seconds": ("probing time", 1.1),
    "n_files": ("files", 1.05),
    "token_bytes": ("bytes of visual tokens", 1.05),
    "table_bytes": ("bytes of tables", 1.05),
}
"""What is to grow no faster than the number of images, and how closely: times vary more than bytes."""


@dataclass(frozen=True)
class Grown:
    """Hold how a quantity grows with the number of images: the slope in logarithms is 1 where it is proportional."""

    slope: float
    per_image: float


def growth(table: pd.DataFrame, column: str) -> Grown:
    """Return the slope of a column of `measure` in logarithms, and its rate at the largest number of images."""
    slope = np.polyfit(np.log(table["n_images"]), np.log(table[column]), 1)[0]
    return Grown(float(slope), float(table[column].iloc[-1] / table["n_images"].iloc[-1]))


def measure(name: str, sizes: Sequence[int], n_shards: int, seed: int) -> pd.DataFrame:
    """Probe growing numbers of images in shards, merge them, and return a row a number.

    Returns
    -------
    pandas.DataFrame
        ``n_images``; ``seconds`` of probing and ``merge_seconds``; ``n_files``, ``token_bytes`` and ``table_bytes`` of
        what is kept, an image a file of each; ``merged_bytes`` of all rows in one table; ``n_rows``.
    """
    model, processor = load_model(name)
    config = ProbeConfig(positions="grid", batch_size=64)
    probe_dataset(
        model, processor, SceneDataset("train", 1), config, tempfile.mkdtemp(), progress=False
    )  # warm
    rows = []
    for n_images in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder, samples = Path(scratch), SceneDataset("test", n_images, seed=seed)
            n_rows, start = 0, time.perf_counter()
            for number in range(1, n_shards + 1):
                shard = Shard(number, n_shards)
                results = probe_dataset(
                    model, processor, samples, config, folder / "kept", False, shard=shard
                )
                write_table(folder / "shards" / f"{number}.parquet", results.table, results.facts)
                n_rows += len(results.table)
            middle = time.perf_counter()
            merge_to(folder / "merged.parquet", [folder / "shards"])
            kept = [path for path in (folder / "kept").rglob("*") if path.is_file()]
            rows.append({
                "n_images": n_images,
                "seconds": middle - start,
                "merge_seconds": time.perf_counter() - middle,
                "n_files": len(kept),
                "token_bytes": sum(path.stat().st_size for path in kept if path.suffix == ".safetensors"),
                "table_bytes": sum(path.stat().st_size for path in kept if path.suffix == ".parquet"),
                "merged_bytes": (folder / "merged.parquet").stat().st_size,
                "n_rows": n_rows,
            })  # fmt: skip
        print(pd.DataFrame(rows).tail(1).to_string(index=False, header=len(rows) == 1), flush=True)
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the growth; a wrong input ends in one line."""
    parser = OneLineParser(prog="scale", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="llava-scenes", help="a model of drawn scenes (default: llava-scenes)"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64], help="numbers of images")
    parser.add_argument("--shards", type=int, default=4, help="that share them (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--output", type=results_file, help="JSON file of the result")
    options = parser.parse_args(arguments)

    def run() -> None:
        if (
            sorted(set(options.sizes)) != options.sizes
            or len(options.sizes) < 2
            or options.sizes[0] < options.shards
        ):
            raise ParameterError(
                "sizes", options.sizes, f"two or more ascending numbers from {options.shards}, shards"
            )
        torch.manual_seed(options.seed)
        table = measure(options.model, options.sizes, options.shards, options.seed)
        targets = [
            Target(
                f"{label} against images, slope in logarithms", growth(table, column).slope, limit, "at most"
            )
            for column, (label, limit) in LINEAR.items()
        ]
        write_measured("scale", table, options, targets)

    return run_command("scale", run)


if __name__ == "__main__":
    sys.exit(main())
