"""Look for nearest neighbours exactly and by libraries that may miss some, and say what that does to a codebook.

    python -m benchmarks.neighbours --model llava-scenes --n-images 70 --output neighbours.json

The points are visual tokens of a model. Each way gives the neighbours from which density peaks take their densities;
everything else is exact and the same. So labels and prototypes that change are what exactness is worth, seconds what it
costs. faiss and pynndescent are extras (`pip install 'rcblib[benchmarks]'`); what is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors

from benchmarks.precision import n_moved
from benchmarks.processes import measured
from benchmarks.results import Target, write_measured
from rcblib.data.opening import open_dataset
from rcblib.mllm import adapter_for, load_model
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import results_file
from rcblib.tensors.clustering import dpc_knn
from rcblib.tensors.neighbours import diameter, exact_distances, nearest

N_CLUSTERS, K, MIN_SHARE = 64, 5, 0.1
"""Clusters, neighbours that make a density, and the share of images that a cluster of prototypes must exceed."""


def _exact(points: torch.Tensor) -> np.ndarray:
    return nearest(points, K, 16).indices[:, :K].numpy()


def _sklearn(points: torch.Tensor) -> np.ndarray:
    values = points.numpy()
    return NearestNeighbors(n_neighbors=K, algorithm="brute").fit(values).kneighbors(values)[1]


def _faiss(points: torch.Tensor, factory: str, **search: int) -> np.ndarray:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    values = points.numpy()
    index = faiss.index_factory(values.shape[1], factory)
    for name, value in search.items():
        faiss.ParameterSpace().set_index_parameter(index, name, value)
    index.train(values)
    index.add(values)
    return index.search(values, K)[1]


def _pynndescent(points: torch.Tensor) -> np.ndarray:
    from pynndescent import NNDescent

    found = NNDescent(points.numpy(), n_neighbors=15, random_state=0, n_jobs=torch.get_num_threads())
    return found.neighbor_graph[0][:, :K]


WAYS: dict[str, tuple[str, Callable[[torch.Tensor], np.ndarray]]] = {
    "exact, blockwise": ("torch", _exact),
    "scikit-learn, brute force": ("sklearn", _sklearn),
    "faiss, flat": ("faiss", lambda points: _faiss(points, "Flat")),
    "faiss, inverted lists": (
        "faiss",
        lambda points: _faiss(points, f"IVF{round(math.sqrt(len(points)))},Flat", nprobe=8),
    ),
    "faiss, HNSW": ("faiss", lambda points: _faiss(points, "HNSW32", efSearch=64)),
    "pynndescent": ("pynndescent", _pynndescent),
}
"""Ways to search and the package of each; the first two and flat faiss look at all pairs."""


def tokens_of(model: str, images: str, n_images: int) -> tuple[torch.Tensor, np.ndarray]:
    """Encode images; return the visual tokens of all, ``(n, d_model)`` float32, and the image of each."""
    adapter = adapter_for(*load_model(model))
    tokens = [
        torch.cat([view.tokens for view in adapter.encode([sample.image])[0].views]).float().cpu()
        for sample in open_dataset(images, split="train", n=n_images)
    ]
    return torch.cat(tokens), np.repeat(np.arange(len(tokens)), [len(own) for own in tokens])


def labels_by(points: torch.Tensor, neighbours: np.ndarray) -> torch.Tensor:
    """Cluster as `dpc_knn` with densities of given neighbours, ``(n, K)``; all the rest is exact."""
    scale = math.sqrt(points.shape[1])
    near = points[torch.from_numpy(neighbours).long()].double()
    distances = exact_distances(points.double()[:, None], near)[:, 0] / scale
    density = (-distances.square().mean(-1)).exp()
    rows = torch.arange(len(points))
    found = nearest(points, 1, 8, rows, lambda rows, columns: density[None, columns] > density[rows, None])
    to_denser = found.distances[:, 0].clamp(max=diameter(points, found)) / scale
    centres = (density * to_denser).argsort(descending=True, stable=True)[:N_CLUSTERS]
    labels = exact_distances(points.double(), points[centres].double()).argmin(-1)
    labels[centres] = torch.arange(N_CLUSTERS)
    return labels


def prototypes(labels: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """Tell which points are in clusters that draw from more than a share of the images."""
    n_images = pd.Series(image_of).groupby(labels).nunique()
    return (n_images[labels] > MIN_SHARE * (image_of.max() + 1)).to_numpy()


def compare(points: torch.Tensor, image_of: np.ndarray) -> pd.DataFrame:
    """Search by every way that is installed.

    Returns
    -------
    pandas.DataFrame
        One row a way: ``way``, ``n``, ``width``, ``seconds``, ``peak_bytes`` of its process; ``recall``, share of the
        true neighbours that are found (those as near as the farthest true one count); ``changed_labels``, share of the
        points that are in another cluster, clusters being paired; ``n_prototypes`` and ``changed_prototypes``, those
        that are in one of both sets only, as a share of the exact ones.
    """
    exact = dpc_knn(points, N_CLUSTERS, K).numpy()
    kept = prototypes(exact, image_of)
    farthest = nearest(points, K, 16).distances[:, K - 1]
    rows = []
    for name, (package, _) in WAYS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: left out, as {package} is not installed", flush=True)
            continue
        found = measured(_given, _searched, name, points)
        distances = exact_distances(
            points.double()[:, None], points[torch.from_numpy(found.result)].double()
        )[:, 0]
        recall = (distances <= farthest[:, None] * (1 + 1e-9)).double().mean()
        labels = labels_by(points, found.result).numpy()
        others = prototypes(labels, image_of)
        rows.append({
            "way": name, "n": len(points), "width": points.shape[1], "seconds": found.seconds,
            "peak_bytes": found.peak_bytes, "recall": float(recall),
            "changed_labels": n_moved(exact, labels) / len(points), "n_prototypes": int(others.sum()),
            "changed_prototypes": float((kept != others).sum() / kept.sum()),
        })  # fmt: skip
        print(
            f"{name:26} {found.seconds:7.2f} s  recall {recall:.4f}  labels changed "
            f"{rows[-1]['changed_labels']:.2%}  prototypes changed {rows[-1]['changed_prototypes']:.2%}",
            flush=True,
        )
    return pd.DataFrame(rows)


def _given(name: str, points: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Search some of the points first, so that no import and no compiling, a minute of pynndescent's, is timed."""
    WAYS[name][1](points[:1000])
    return name, points


def _searched(given: tuple[str, torch.Tensor]) -> np.ndarray:
    name, points = given
    return np.ascontiguousarray(WAYS[name][1](points)).astype(np.int64)


def targets_of(table: pd.DataFrame) -> list[Target]:
    """Say that what the library finds is exact."""
    recall = table.loc[table["way"] == "exact, blockwise", "recall"].iloc[0]
    what = f"nearest neighbours of {table['n'].iloc[0]:,} tokens: recall"
    return [Target(what, 100 * recall, 100, unit="%")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print time, recall and what changes of every way; write them where asked to."""
    parser = OneLineParser(prog="neighbours", description="Compare ways to find nearest neighbours.")
    parser.add_argument(
        "--model", default="llava-scenes", help="a model's name, a folder, or a Hugging Face id"
    )
    parser.add_argument("--images", default="scenes", help="a world's name or a folder")
    parser.add_argument("--n-images", type=int, default=70)
    parser.add_argument("--output", type=results_file, help="JSON file of the results")
    options = parser.parse_args(arguments)
    return run_command("neighbours", lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    table = compare(*tokens_of(options.model, options.images, options.n_images))
    write_measured("neighbours", table, options, targets_of(table))


if __name__ == "__main__":
    sys.exit(main())
