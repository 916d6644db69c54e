"""Cluster the tokens of probed images once, for however many codebooks are made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from rcblib.codebook.criterion import CodebookCriterion
from rcblib.codebook.pooling import Pool, ProbedImage, clusters
from rcblib.records import ImageId, ParameterError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class _Clustered:
    """Hold the clusters of one image after certain others.

    Attributes
    ----------
    number : int
        Tells the images up to this one from others.
    members : numpy.ndarray
        ``(n_tokens,)`` numbers of the image's tokens, cluster by cluster.
    sizes : numpy.ndarray
        ``(n_tokens,)`` size of the cluster of each of them.
    state : torch.Tensor
        Of the generator afterwards.
    """

    number: int
    members: np.ndarray
    sizes: np.ndarray
    state: torch.Tensor


class ProbedImages:
    """Hold what was probed of some images, and cluster the tokens of each once for all recipes.

    Which tokens lie together (stage 1 of a codebook) does not depend on the limits of a criterion. It depends on the
    images before, as these have drawn noise from the same generator: recipes whose images begin alike share the
    clusters of those.

    Parameters
    ----------
    table : pandas.DataFrame
        Table of `rcblib.probe.run.probe`, of all images.
    tokens : Mapping
        Image id to its visual tokens; those that were probed are held in memory.
    seed : int
        Of DPC-KNN's noise.
    """

    def __init__(self, table: pd.DataFrame, tokens: Mapping[ImageId, torch.Tensor], seed: int = 0):
        self.table = table
        rows = table.groupby("image_id", sort=False).indices
        images = [(ProbedImage.from_table(table.iloc[at], tokens), at) for at in rows.values()]
        self._images = {image.image_id: image for image, _ in images}
        self._rows = {image.image_id: at for image, at in images}
        self._tokens: dict[ImageId, torch.Tensor] = {}
        self._start = torch.Generator().manual_seed(seed).get_state()
        self._clustered: dict[tuple, _Clustered] = {}

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def rows(self, ids: Iterable[ImageId]) -> np.ndarray:
        """Return the numbers of the table's rows of some images, image by image."""
        return np.concatenate([self._rows[i] for i in ids])

    def pool(
        self, ids: Sequence[ImageId], criterion: CodebookCriterion, low: np.ndarray
    ) -> tuple[Pool, torch.Generator]:
        """Pool the redundant tokens of some images, as `rcblib.codebook.pooling.pool_tokens` does.

        Parameters
        ----------
        ids : sequence
            In order, at least one.
        criterion : CodebookCriterion
            How tokens are clustered, and how many make a small cluster; its limits do not count here.
        low : numpy.ndarray
            ``(n_rows,)`` booleans on the table's rows: which tokens are low-information.

        Returns
        -------
        pool : Pool
        generator : torch.Generator
            In the state that pooling leaves it in.
        """
        settings, before, kept = (criterion.n_clusters, criterion.n_neighbours), None, {}
        for image_id in ids:
            key = (settings, before.number if before else -1, image_id)
            if key not in self._clustered:
                state = before.state if before else self._start
                self._clustered[key] = self._cluster(image_id, criterion, state)
            before = self._clustered[key]
            members = before.members[before.sizes <= criterion.cluster_size_max]
            kept[image_id] = self._without_copies(image_id, members[low[self._rows[image_id][members]]])
        images = [(self._images[i], rows) for i, rows in kept.items()]
        names = [name for name in ("rows", "positions", "views") if getattr(images[0][0], name) is not None]
        numbers = {name: np.concatenate([getattr(image, name)[at] for image, at in images]) for name in names}
        n_low = int(low[self.rows(kept)].sum())
        pooled = Pool(
            torch.cat([self._read(i)[rows] for i, rows in kept.items()]),
            [i for i, rows in kept.items() for _ in rows],
            {name: values.tolist() for name, values in numbers.items()},
            Counter(n_images=len(kept), n_tokens=len(self.rows(kept)), n_low_information=n_low),
        )
        generator = torch.Generator()
        generator.set_state(before.state)
        return pooled, generator

    def _cluster(self, image_id: ImageId, criterion: CodebookCriterion, state: torch.Tensor) -> _Clustered:
        """Cluster the tokens of an image, grid by grid, with noise from a generator in a state."""
        image, tokens = self._images[image_id], self._read(image_id)
        image.check(criterion)
        generator = torch.Generator()
        generator.set_state(state)
        members, sizes = [], []
        for rows in image.grids().values():
            for own in clusters(tokens[rows], criterion.n_clusters, criterion.n_neighbours, generator):
                members.append(rows[own])
                sizes.append(np.full(len(own), len(own)))
        return _Clustered(
            len(self._clustered), np.concatenate(members), np.concatenate(sizes), generator.get_state()
        )

    def _read(self, image_id: ImageId) -> torch.Tensor:
        """Return the tokens of an image, read and checked once; errors as of `redundant_tokens`."""
        if image_id not in self._tokens:
            tokens, n_tokens = self._images[image_id].read(), len(self._rows[image_id])
            if tokens.ndim != 2 or len(tokens) != n_tokens or not bool(tokens.isfinite().all()):
                given = f"{tuple(tokens.shape)} of image {image_id!r}"
                raise ParameterError("tokens", given, f"({n_tokens}, d_model), all of them finite")
            self._tokens[image_id] = tokens
        return self._tokens[image_id]

    def _without_copies(self, image_id: ImageId, rows: np.ndarray) -> np.ndarray:
        """Leave out tokens that an earlier view of the image has given, to the last bit."""
        views = self._images[image_id].views
        if views is None or len(set(views[rows].tolist())) < 2:
            return rows
        first: dict[bytes, int] = {}
        own = self._read(image_id)[rows].double().numpy()
        is_new = [
            first.setdefault(token.tobytes(), view) == view
            for token, view in zip(own, views[rows], strict=True)
        ]
        return rows[is_new]
