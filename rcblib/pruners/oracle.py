"""Keep the tokens that objects cover: what a method could do that knows the masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import COVERAGE, PruningContext, signal_of
from rcblib.records import VisualView
from rcblib.tensors.checks import check_integer


@dataclass(frozen=True)
class OraclePruner(Pruner):
    r"""Keep the tokens whose patches objects cover most, then others up to the budget.

    No method for use: it asks whether pruning to a budget can succeed at all. The masks come from the samples of an
    evaluation; a context entered otherwise has none, which is an error of one line.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    seed : int
        Draws the order among equally covered tokens, such as those that no object touches. At least 0.
    position_ids : {"kept", "renumbered", "auto"}
        As in `Pruner`, but by default tokens keep their positions.

    Notes
    -----
    Rule: :math:`\operatorname{top}_k\ c_i`, with :math:`c_i` the share of a patch that objects cover
    Cost: none; masks must be known.
    Fails: where an answer depends on what no mask covers, or not on pictures at all.
    Source: a bound.
    """

    retain_ratio: float
    seed: int = 0
    position_ids: str = "kept"

    needs: ClassVar[frozenset[str]] = frozenset({COVERAGE})

    def __post_init__(self):
        check_integer("seed", self.seed, 0)
        super().__post_init__()

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score by the share of each patch that objects cover; ties in random order."""
        place = (context.image_index, context.view_index) if context else (0, 0)
        coverage = signal_of(views, COVERAGE).double()
        drawn = np.random.default_rng((self.seed, *place)).random(len(coverage))
        return coverage + 1e-6 * torch.from_numpy(drawn)
