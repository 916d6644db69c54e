"""Prune without looking at redundancy: the baselines of the release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from rcblib.pruners.base import Pruner, PruningContext
from rcblib.records import ParameterError
from rcblib.tensors.geometry import check_integer


@dataclass
class RandomPruner(Pruner):
    """Keep random tokens, in reading order: of an image, of each tile, of each frame of a video.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    seed : int
        Seed, at least 0. The same seed keeps the same positions in the n-th image of a context, however the
        images are spread over batches; other images of the context, tiles and frames get other positions.

    Notes
    -----
    Source: the random-token baselines of the release for images and videos. Differs: positions depend on seed and
    image order only.
    """

    retain_ratio: float
    seed: int = 0

    reads_prompt: ClassVar[bool] = False

    def __post_init__(self):
        check_integer("seed", self.seed, 0)
        super().__post_init__()

    def score(self, tokens: torch.Tensor, context: PruningContext | None = None) -> torch.Tensor:
        """Draw a score for every token; outside of `generate`, as for a first image."""
        place = (context.image_index, context.view_index) if context else (0, 0)
        return torch.from_numpy(np.random.default_rng((self.seed, *place)).random(len(tokens)))


@dataclass
class ClsSimilarityPruner(Pruner):
    """Keep the tokens most, or least, similar to the vision encoder's [CLS], in reading order.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    keep : {"most", "least"}
        Which end of the order survives.

    Notes
    -----
    Source: the ``high_sim_patch`` and ``low_sim_patch`` modes of the release. Similarity is the cosine of
    patch and [CLS] rows of the selected hidden state, before the connector.
    Differs: ``round(n_tokens * retain_ratio)`` tokens are kept, equal values by position; the release cuts
    at the value of the k-th largest, which keeps one token fewer at the upper end and drops ties.
    """

    retain_ratio: float
    keep: str = "most"

    needs: ClassVar[frozenset[str]] = frozenset({"cls_similarity"})
    reads_prompt: ClassVar[bool] = False

    def __post_init__(self):
        if self.keep not in ("most", "least"):
            raise ParameterError("keep", self.keep, "'most' or 'least'")
        super().__post_init__()

    def score(self, tokens: torch.Tensor, context: PruningContext | None = None) -> torch.Tensor:
        """Score by dissimilarity to [CLS] (``"most"``) or by similarity (``"least"``)."""
        if context is None or "cls_similarity" not in context.view.signals:
            raise ParameterError("context", context, "a context whose view has cls_similarity")
        similarity = context.view.signals["cls_similarity"]
        return -similarity if self.keep == "most" else similarity
