"""Keep random tokens: the baseline that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext
from rcblib.records import VisualView
from rcblib.tensors.checks import check_integer


@dataclass(frozen=True)
class RandomPruner(Pruner):
    r"""Keep random tokens, in reading order: of an image, of each tile, of each frame of a video.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    seed : int
        Seed, at least 0. The same seed keeps the same positions in the n-th image of a context, however the
        images are spread over batches; other images of the context, tiles and frames get other positions.

    Notes
    -----
    Rule: :math:`k` of :math:`n` tokens, each set as likely as any other
    Cost: none.
    Fails: on objects of a few tokens, which it misses as often as not.
    Source: the random-token baselines of the release for images and videos. Differs: positions depend on seed and
    image order only.
    """

    retain_ratio: float
    seed: int = 0

    def __post_init__(self):
        check_integer("seed", self.seed, 0)
        super().__post_init__()

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Draw a score for every token; outside of a pruner's context, as for a first image."""
        place = (context.image_index, context.view_index) if context else (0, 0)
        n_tokens = sum(view.n_tokens for view in views)
        return -torch.from_numpy(np.random.default_rng((self.seed, *place)).random(n_tokens))
