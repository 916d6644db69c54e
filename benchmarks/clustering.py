"""Cluster more and more points by density peaks: blockwise, with all distances at once, and by scikit-learn.

    python -m benchmarks.clustering --sizes 2000 10000 50000 --output clustering.json

The blockwise form is `rcblib.tensors.clustering.dpc_knn`; the plain one holds all distances, and where memory does not
hold them, "by rows" is the plain one, some rows after the other. Their labels must be the same. scikit-learn has no
density peaks; what it has for clusters of any number of points gives other clusters: how far they agree is the adjusted
Rand index. Each form has a process of its own; memory is that above imports and points, and that of the whole process.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import HDBSCAN, OPTICS, AgglomerativeClustering, Birch, KMeans, MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score

from benchmarks.processes import Measured, measured
from benchmarks.results import Target, write_measured
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import results_file
from rcblib.tensors.clustering import NOISE_SCALE, dpc_knn

N_CLUSTERS, K, WIDTH = 64, 5, 512

TARGET_POINTS, TARGET_BYTES, SPEED_POINTS = 50_000, 2e9, 10_000
"""So many points in so much memory, and how many must take no longer than the plain form."""

GPU_POINTS, GPU_SECONDS = 100_000, 60
"""So many points on one GPU, in a tenth of the time of all benchmarks there."""

ROWS = 1000
"""Rows of distances that the plain form by rows holds."""


def points_of(n: int, width: int, seed: int = 0) -> torch.Tensor:
    """Draw ``(n, width)`` float32 points around as many centres as there are clusters, as tokens crowd around a few."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(N_CLUSTERS, width, generator=generator)
    own = torch.randint(N_CLUSTERS, (n,), generator=generator)
    points = torch.randn(n, width, generator=generator)
    for start in range(0, n, 10_000):  # so that drawing needs no second copy
        points[start : start + 10_000] += centres[own[start : start + 10_000]]
    return points


def noise() -> torch.Generator:
    """Return the generator of the noise that breaks ties, the same for every form."""
    return torch.Generator().manual_seed(0)


def plain(points: torch.Tensor) -> torch.Tensor:
    """Cluster as `dpc_knn`, written down literally, with all ``(n, n)`` distances at once."""
    points = points.double()
    distances = torch.cdist(points, points) / math.sqrt(points.shape[1])
    density = (-distances.topk(K, largest=False).values.square().mean(-1)).exp()
    density += NOISE_SCALE * torch.rand(len(points), generator=noise())
    denser = density[None, :] > density[:, None]
    to_denser = distances.masked_fill(~denser, math.inf).amin(-1).clamp(max=distances.max())
    centres = (density * to_denser).argsort(descending=True, stable=True)[:N_CLUSTERS]
    labels = distances[:, centres].argmin(-1)
    labels[centres] = torch.arange(N_CLUSTERS)
    return labels


def by_rows(points: torch.Tensor) -> torch.Tensor:
    """Cluster as `plain`, with the distances of some rows at once, which are computed again for the second step."""
    points = points.double()
    parts = torch.arange(len(points)).split(ROWS)

    def distances(rows: torch.Tensor) -> torch.Tensor:
        return torch.cdist(points[rows], points).div_(math.sqrt(points.shape[1]))

    nearest, largest = [], 0.0
    for rows in parts:
        block = distances(rows)
        nearest.append(block.topk(K, largest=False).values)
        largest = max(largest, block.max().item())
    density = (-torch.cat(nearest).square().mean(-1)).exp()
    density += NOISE_SCALE * torch.rand(len(points), generator=noise())
    to_denser = torch.cat([
        distances(rows).masked_fill_(density[None, :] <= density[rows, None], math.inf).amin(-1) for rows in parts
    ]).clamp(max=largest)  # fmt: skip
    centres = (density * to_denser).argsort(descending=True, stable=True)[:N_CLUSTERS]
    labels = torch.cat([torch.cdist(points[rows], points[centres]).argmin(-1) for rows in parts])
    labels[centres] = torch.arange(N_CLUSTERS)
    return labels


def blockwise(points: torch.Tensor) -> torch.Tensor:
    """Cluster by the library."""
    return dpc_knn(points, N_CLUSTERS, K, noise())


def _fitted(make: Callable[[], Any]) -> Callable[[torch.Tensor], np.ndarray]:
    return lambda points: make().fit_predict(points.numpy())


FORMS: dict[str, tuple[Callable[[torch.Tensor], Any], float]] = {
    "blockwise": (blockwise, math.inf),
    "plain": (plain, 12_000),
    "plain, by rows": (by_rows, 25_000),
    "k-means": (_fitted(lambda: KMeans(N_CLUSTERS, n_init=1, random_state=0)), math.inf),
    "mini-batch k-means": (_fitted(lambda: MiniBatchKMeans(N_CLUSTERS, n_init=1, random_state=0)), math.inf),
    "Ward": (_fitted(lambda: AgglomerativeClustering(N_CLUSTERS)), 3000),
    "BIRCH": (_fitted(lambda: Birch(n_clusters=N_CLUSTERS)), 3000),
    "HDBSCAN": (_fitted(lambda: HDBSCAN(min_samples=K, copy=True)), 3000),
    "OPTICS": (_fitted(lambda: OPTICS(min_samples=K)), 3000),
}
"""Ways to cluster, and the most points of each: more would take gigabytes (plain) or a part of a minute and more."""


def _drawn(name: str, n: int, width: int, device: str) -> tuple[str, torch.Tensor]:
    return name, points_of(n, width).to(device)


def _clustered(given: tuple[str, torch.Tensor]) -> tuple[np.ndarray, int]:
    """Return labels, and the most memory of a GPU."""
    name, points = given
    on_gpu = points.device.type == "cuda"
    labels = FORMS[name][0](points)
    labels = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    return labels, torch.cuda.max_memory_allocated() if on_gpu else 0


def compare(sizes: Sequence[int], width: int, forms: Sequence[str], device: str) -> pd.DataFrame:
    """Measure forms at all sizes that they are made for.

    Returns
    -------
    pandas.DataFrame
        One row a form and size: ``n``, ``width``, ``form``, ``seconds``, ``grown_bytes`` beyond the points,
        ``peak_bytes`` of the whole process, ``gpu_bytes``, ``same_labels`` (share of points with the first form's
        label) and ``rand_index``, adjusted, of both partitions.
    """
    rows = []
    for n in sizes:
        reference = None
        for name in forms:
            if n > FORMS[name][1]:
                continue
            found: Measured = measured(_drawn, _clustered, name, n, width, device)
            labels, gpu_bytes = found.result
            reference = labels if reference is None else reference
            rows.append({
                "n": n, "width": width, "form": name, "seconds": found.seconds, "grown_bytes": found.grown_bytes,
                "peak_bytes": found.peak_bytes, "gpu_bytes": gpu_bytes,
                "same_labels": float((labels == reference).mean()),
                "rand_index": float(adjusted_rand_score(reference, labels)),
            })  # fmt: skip
            print(
                f"{n:7} points  {name:18} {found.seconds:8.2f} s  {found.grown_bytes / 2**20:6.0f} MiB, "
                f"{found.peak_bytes / 2**20:6.0f} in all  same labels {rows[-1]['same_labels']:.4f}  "
                f"Rand {rows[-1]['rand_index']:.3f}",
                flush=True,
            )
    return pd.DataFrame(rows)


def targets_of(table: pd.DataFrame) -> list[Target]:
    """Say of what was measured what it was to be."""

    def value(form: str, n: int, column: str) -> float:
        found = table.loc[(table["form"] == form) & (table["n"] == n), column]
        return float(found.iloc[0]) if len(found) else math.nan

    width = int(table["width"].iloc[0])
    if (table["gpu_bytes"] > 0).any():
        seconds = value("blockwise", GPU_POINTS, "seconds")
        return [
            Target(f"clustering {GPU_POINTS:,} x {width} on a GPU", seconds, GPU_SECONDS, "at most", " s")
        ]
    large = f"clustering {TARGET_POINTS:,} x {width}"
    memory = value("blockwise", TARGET_POINTS, "peak_bytes")
    exact = [name for name in ("plain", "plain, by rows") if name in set(table["form"])]
    same = min((table.loc[table["form"] == name, "same_labels"].min() for name in exact), default=math.nan)
    speed = value("plain", SPEED_POINTS, "seconds") / value("blockwise", SPEED_POINTS, "seconds")
    largest = table.loc[table["form"].isin(exact), "n"].max() if exact else 0
    return [
        Target(f"{large}: memory of the whole process", memory / 1e9, TARGET_BYTES / 1e9, "at most", " GB"),
        Target(f"clustering up to {largest:,}: labels as in the plain form", 100 * same, 100, unit="%"),
        Target(f"clustering {SPEED_POINTS:,} x {width}: speed beside the plain form", speed, 1, unit="x"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print seconds, memory and agreement of every form and size; write them where asked to."""
    parser = OneLineParser(
        prog="clustering", description="Compare forms of clustering as points become more."
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--device", default="cpu", help="where the library's form runs (cpu)")
    parser.add_argument("--output", type=results_file, help="JSON file of the results")
    options = parser.parse_args(arguments)
    return run_command("clustering", lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    table = compare(options.sizes, options.width, options.forms, options.device)
    write_measured("clustering", table, options, targets_of(table))


if __name__ == "__main__":
    sys.exit(main())
