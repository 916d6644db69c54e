"""Cluster more and more points by density peaks: blockwise, with all distances at once, and by scikit-learn.

    python -m benchmarks.clustering --sizes 1000 3000 10000 --output clustering.json

The blockwise form is `rcblib.tensors.clustering.dpc_knn`; the plain one holds all distances. Both are exact and their
labels must be the same. scikit-learn has no density peaks with k nearest neighbours: its nearest alternatives, k-means
and agglomeration by Ward's rule, give other clusters; how far they agree is reported as the adjusted Rand index.
Peak memory is of each form in a process of its own, above that of the imports and the points.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import adjusted_rand_score

from benchmarks.results import write_measured
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import results_file
from rcblib.tensors.clustering import NOISE_SCALE, dpc_knn

N_CLUSTERS, K, WIDTH = 64, 5, 512

LARGEST = {"plain": 12_000, "Ward": 12_000}
"""Points above which a form would not fit beside others: both hold all distances."""


def points_of(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Draw ``(n, width)`` float32 points around as many centres as there are clusters, as tokens crowd around a few."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(N_CLUSTERS, width, generator=generator)
    own = torch.randint(N_CLUSTERS, (n,), generator=generator)
    return centres[own] + torch.randn(n, width, generator=generator)


def plain(points: torch.Tensor, n_clusters: int, k: int, generator: torch.Generator) -> torch.Tensor:
    """Cluster as `dpc_knn`, written down literally, with all ``(n, n)`` distances at once."""
    points = points.double()
    distances = torch.cdist(points, points) / math.sqrt(points.shape[1])
    density = (-distances.topk(k, largest=False).values.square().mean(-1)).exp()
    density += NOISE_SCALE * torch.rand(len(points), generator=generator)
    denser = density[None, :] > density[:, None]
    to_denser = distances.masked_fill(~denser, math.inf).amin(-1).clamp(max=distances.max())
    centres = (density * to_denser).argsort(descending=True, stable=True)[:n_clusters]
    labels = distances[:, centres].argmin(-1)
    labels[centres] = torch.arange(n_clusters)
    return labels


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "blockwise": lambda points: dpc_knn(points, N_CLUSTERS, K, torch.Generator().manual_seed(0)),
    "plain": lambda points: plain(points, N_CLUSTERS, K, torch.Generator().manual_seed(0)),
    "k-means": lambda points: KMeans(N_CLUSTERS, n_init=1, random_state=0).fit_predict(points.numpy()),
    "Ward": lambda points: AgglomerativeClustering(N_CLUSTERS).fit_predict(points.numpy()),
}


def _in_process(name: str, n: int, width: int, threads: int, answer: Any) -> None:
    torch.set_num_threads(threads)
    points = points_of(n, width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    labels = np.asarray(FORMS[name](points))
    took = time.perf_counter() - start
    answer.put((labels, took, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))


def measured(name: str, n: int, width: int) -> tuple[np.ndarray, float, int]:
    """Return labels, seconds and peak bytes of a form in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_in_process, args=(name, n, width, torch.get_num_threads(), answer))
    process.start()
    result = answer.get()
    process.join()
    return result


def compare(sizes: Sequence[int], width: int) -> pd.DataFrame:
    """Measure all forms at all sizes.

    Returns
    -------
    pandas.DataFrame
        One row a form and size: ``n``, ``width``, ``form``, ``seconds``, ``peak_bytes``, ``same_labels`` (share of
        points with the blockwise form's label) and ``rand_index``, adjusted, of both partitions.
    """
    rows = []
    for n in sizes:
        reference = None
        for name in FORMS:
            if n > LARGEST.get(name, n):
                continue
            labels, took, peak = measured(name, n, width)
            reference = labels if reference is None else reference
            rows.append({
                "n": n, "width": width, "form": name, "seconds": took, "peak_bytes": peak,
                "same_labels": float((labels == reference).mean()),
                "rand_index": float(adjusted_rand_score(reference, labels)),
            })  # fmt: skip
            print(
                f"{n:7} points  {name:10} {took:8.2f} s  {peak / 2**20:8.0f} MiB  same labels "
                f"{rows[-1]['same_labels']:.4f}  Rand {rows[-1]['rand_index']:.3f}",
                flush=True,
            )
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print seconds, memory and agreement of every form and size; write them where asked to."""
    parser = OneLineParser(
        prog="clustering", description="Compare forms of clustering as points become more."
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--output", type=results_file, help="JSON file of the results")
    options = parser.parse_args(arguments)
    return run_command("clustering", lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    table = compare(options.sizes, options.width)
    write_measured("clustering", table, options)


if __name__ == "__main__":
    sys.exit(main())
