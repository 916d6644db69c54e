"""Pool the redundant tokens of image after image, in memory or in files that an interrupted run goes on with."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rcblib.codebook.criterion import CodebookCriterion, as_doubles
from rcblib.records import ImageId, ParameterError
from rcblib.runs.digest import code_digest
from rcblib.runs.files import atomic_write, config_hash
from rcblib.runs.paths import user_path
from rcblib.tensors.clustering import dpc_knn
from rcblib.tensors.neighbours import LazyRows, Points

if TYPE_CHECKING:
    import pandas as pd

IMAGES_PER_PART = 256
"""Images whose redundant tokens make up one file of a pool on disk."""

_NUMBERS = ("rows", "positions", "views")


@dataclass(frozen=True, eq=False)
class ProbedImage:
    """Hold what was measured of the probed tokens of one image, and how the tokens are read.

    Attributes
    ----------
    image_id : int or str
        Tells the image from the others.
    read : callable
        Returns the probed tokens, ``(n_tokens, d_model)``.
    rows : numpy.ndarray
        ``(n_tokens,)`` number of each token among those of all images.
    signals : tuple of numpy.ndarray
        Three of ``(n_tokens,)`` float64: top-1 probability of the single-token input, in [0, 1], region and global
        divergence in nats, released form.
    positions, views : numpy.ndarray, optional
        ``(n_tokens,)`` grid position of each token, and number of its grid in the image.
    """

    image_id: ImageId
    read: Callable[[], torch.Tensor]
    rows: np.ndarray
    signals: tuple[np.ndarray, np.ndarray, np.ndarray]
    positions: np.ndarray | None = None
    views: np.ndarray | None = None

    @classmethod
    def from_table(cls, table: pd.DataFrame, tokens: Mapping[ImageId, torch.Tensor]) -> ProbedImage:
        """Take the rows of one image from what was probed.

        Parameters
        ----------
        table : pandas.DataFrame
            As `probe` returns it; its index numbers the rows among those of all images.
        tokens : Mapping
            Image id to ``(n_visual_tokens, d_model)``, such as `ProbeResults.tokens`; read when they are needed.
        """
        image_id, token = table["image_id"].iloc[0], table["token"].to_numpy(copy=True)
        names = ("top1_probability", "region_divergence", "global_divergence")
        return cls(
            image_id.item() if hasattr(image_id, "item") else image_id,
            lambda: tokens[image_id][token],
            table.index.to_numpy(),
            tuple(as_doubles(table[name]) for name in names),
            table["position"].to_numpy(),
            table["view"].to_numpy(),
        )

    def grids(self) -> dict[int | None, np.ndarray]:
        """Return each view's rows, in order of first appearance."""
        if self.views is None:
            return {None: np.arange(len(self.rows))}
        return {view: np.flatnonzero(self.views == view) for view in dict.fromkeys(self.views.tolist())}

    def check(self, criterion: CodebookCriterion) -> None:
        """Raise a `ParameterError` unless the signals are in range and every grid has tokens enough."""
        for name, values in zip(("top1", "region", "global_"), self.signals, strict=True):
            if not np.isfinite(values).all():
                raise ParameterError(name, "NaN or infinite values", "finite values")
        outside = self.signals[0][(self.signals[0] < 0) | (self.signals[0] > 1)]
        if len(outside):
            raise ParameterError("top1", float(outside[0]), "probabilities in [0, 1]")
        n_needed = max(criterion.n_clusters, criterion.n_neighbours)
        for view, rows in self.grids().items():
            if len(rows) < n_needed:
                what, of = ("image", "") if view is None else ("view", f"{view} of image ")
                accepted = f"at least {n_needed} of every {what} (n_clusters, k)"
                raise ParameterError("tokens", f"{len(rows)} of {what} {of}{self.image_id!r}", accepted)


@dataclass(frozen=True, eq=False)
class Pool:
    """Hold the redundant tokens of some images: low-information ones of small clusters.

    Attributes
    ----------
    tokens : torch.Tensor or LazyRows
        ``(n_pooled, d_model)``.
    image_ids : list of int or str
        ``(n_pooled,)``.
    numbers : dict of str to list of int
        ``rows``, and ``positions`` and ``views`` where they are known, ``(n_pooled,)`` each; as in `ProbedImage`.
    counts : Counter
        ``n_images``, ``n_tokens`` probed and ``n_low_information`` of them.
    """

    tokens: Points
    image_ids: list[ImageId]
    numbers: dict[str, list[int]]
    counts: Counter = field(default_factory=Counter)


def clusters(
    tokens: Points, n_clusters: int, n_neighbours: int, generator: torch.Generator | None
) -> list[list[int]]:
    """Cluster tokens; the members of each cluster in their order, clusters by first appearance."""
    members: dict[int, list[int]] = {}
    for row, label in enumerate(dpc_knn(tokens, n_clusters, n_neighbours, generator).tolist()):
        members.setdefault(label, []).append(row)
    return list(members.values())


def redundant_tokens(
    image: ProbedImage, criterion: CodebookCriterion, generator: torch.Generator | None = None
) -> Pool:
    """Select what one image adds to the pool: low-information tokens in small clusters of their grid (stage 1).

    A token that an earlier view of the image has given, to the last bit, is left out.

    Raises
    ------
    ParameterError
        If tokens are not finite or are not as many as their signals, or as `ProbedImage.check`.
    """
    image.check(criterion)
    tokens, low = image.read(), criterion.low_information(*image.signals)
    if tokens.ndim != 2 or len(tokens) != len(low) or not bool(tokens.isfinite().all()):
        given = f"{tuple(tokens.shape)} of image {image.image_id!r}"
        raise ParameterError("tokens", given, f"({len(low)}, d_model), all of them finite")
    first_view: dict[bytes, int | None] = {}
    kept = []
    for view, rows in image.grids().items():
        of_view = clusters(tokens[rows], criterion.n_clusters, criterion.n_neighbours, generator)
        for members in of_view:
            if len(members) > criterion.cluster_size_max:
                continue
            for row in rows[members]:
                if low[row]:
                    copy = tokens[row].detach().cpu().double().numpy().tobytes()
                    if first_view.setdefault(copy, view) == view:
                        kept.append(row)
    return Pool(
        tokens[kept],
        [image.image_id] * len(kept),
        {name: getattr(image, name)[kept].tolist() for name in _NUMBERS if getattr(image, name) is not None},
        Counter(n_images=1, n_tokens=len(low), n_low_information=int(low.sum())),
    )


def _joined(pools: Iterable[Pool], tokens: Points | None = None) -> Pool:
    """Put pools one after the other; their tokens too, unless those are given."""
    every, image_ids, numbers, counts = [], [], {}, Counter()
    for pool in pools:
        every += [pool.tokens] if tokens is None else []
        image_ids += pool.image_ids
        for name, values in pool.numbers.items():
            numbers.setdefault(name, []).extend(values)
        counts += pool.counts
    if not counts:
        raise ParameterError("images", "none", "at least one")
    return Pool(torch.cat(every) if tokens is None else tokens, image_ids, numbers, counts)


def pool_tokens(
    images: Iterable[ProbedImage], criterion: CodebookCriterion, generator: torch.Generator | None = None
) -> Pool:
    """Pool the redundant tokens of all images in memory; errors are those of `redundant_tokens`."""
    return _joined(redundant_tokens(image, criterion, generator) for image in images)


def pool_on_disk(
    images: Iterable[ProbedImage],
    criterion: CodebookCriterion,
    generator: torch.Generator | None,
    folder: str | os.PathLike,
    source: Mapping[str, Any],
    device: str | torch.device = "cpu",
) -> Pool:
    """Pool the redundant tokens of all images in files, of which those that are there already are not made again.

    Parameters
    ----------
    images : iterable of ProbedImage
        Each is let go before the next is read.
    criterion, generator
        As for `pool_tokens`, which gives the same tokens in the same order; the generator ends in the same state.
    folder : path-like
        Made where it is missing. ``part-00000.safetensors`` is of the first `IMAGES_PER_PART` images, and so on; what
        was made with other settings, signals, images or code is replaced.
    source : Mapping
        What the tokens depend on besides: their model, the settings of probing.
    device : str or torch.device
        Where tokens are read to.

    Returns
    -------
    Pool
        Its tokens are read from the files when asked for.

    Raises
    ------
    ParameterError
        As `redundant_tokens`, when the image is reached.
    """
    folder = user_path(folder, "pool")
    state = None if generator is None else hashlib.sha256(generator.get_state().numpy()).hexdigest()
    key = config_hash(
        {"criterion": criterion, "state": state, "source": source, "code": code_digest(__name__)}
    )
    parts, pools, images = [], [], iter(images)
    while some := list(islice(images, IMAGES_PER_PART)):
        key = _key_of(some, key)
        parts.append(folder / f"part-{len(parts):05}.safetensors")
        if (pool := _read_part(parts[-1], key, generator)) is None:
            pool = pool_tokens(some, criterion, generator)
            _write_part(parts[-1], key, pool, generator)
        pools.append(Pool(torch.empty(0), pool.image_ids, pool.numbers, pool.counts))
    for left_over in set(folder.glob("part-*.safetensors")) - set(parts):
        left_over.unlink()
    return _joined(pools, StoredRows(parts, torch.device(device)) if parts else None)


def _key_of(images: Iterable[ProbedImage], before: str) -> str:
    """Name images, what was measured of them, and all images before them."""
    digest = hashlib.sha256(before.encode())
    for image in images:
        digest.update(json.dumps([image.image_id, len(image.rows)]).encode())
        for values in (image.rows, image.positions, image.views, *image.signals):
            digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _write_part(path: Path, key: str, pool: Pool, generator: torch.Generator | None) -> None:
    tensors = {"tokens": pool.tokens.detach().cpu().contiguous()}
    if generator is not None:
        tensors["generator"] = generator.get_state()
    facts = {"image_ids": pool.image_ids, "numbers": pool.numbers, "counts": pool.counts}
    atomic_write(path, save(tensors, {"key": key, "facts": json.dumps(facts)}))


def _read_part(path: Path, key: str, generator: torch.Generator | None) -> Pool | None:
    """Read a part but for its tokens, and set the generator to the state after it; nothing where it is another."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            facts = json.loads(file.metadata()["facts"])
            if generator is not None:
                generator.set_state(file.get_tensor("generator"))
    except (OSError, SafetensorError):  # missing or damaged
        return None
    return Pool(torch.empty(0), facts["image_ids"], facts["numbers"], Counter(facts["counts"]))


class StoredRows(LazyRows):
    """Read rows of ``tokens`` from some files as if these were one matrix.

    Files are opened for each reading, so that no more of them stays in memory than was asked for.

    Parameters
    ----------
    paths : list of pathlib.Path
        Safetensors files with rows of one width and dtype, at least one.
    device : torch.device
        Where rows are read to.
    """

    def __init__(self, paths: list[Path], device: torch.device):
        self.device, self._paths = device, paths
        shapes, self.dtype = [], torch.float32
        for path in paths:
            with safe_open(path, framework="pt") as file:
                shapes.append(file.get_slice("tokens").get_shape())
                self.dtype = file.get_slice("tokens")[:0].dtype
        self._ends = list(accumulate(n for n, _ in shapes))
        self.shape = (self._ends[-1], shapes[-1][1])

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Read some rows, by a slice or by their numbers, as ``(n_rows, d)``."""
        numbers = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows.cpu()
        read = torch.empty(len(numbers), self.shape[1], dtype=self.dtype)
        part = torch.bucketize(numbers, torch.tensor(self._ends), right=True)
        for i in part.unique().tolist():
            own = (part == i).nonzero().flatten()
            inside = numbers[own] - (self._ends[i - 1] if i else 0)
            first, last = int(inside.min()), int(inside.max())  # of a slice, no row between is read in vain
            with safe_open(self._paths[i], framework="pt") as file:
                read[own] = file.get_slice("tokens")[first : last + 1][inside - first]
        return read.to(self.device)
