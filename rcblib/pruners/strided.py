"""Keep evenly strided tokens: the control that spreads its budget and looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext
from rcblib.records import VisualView


@dataclass(frozen=True)
class StridedPruner(Pruner):
    r"""Keep evenly strided tokens in reading order, the first among them.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].

    Notes
    -----
    Rule: :math:`\{\lfloor i\,n/k \rfloor : i = 0,\dots,k-1\}`
    Cost: none.
    Fails: where the stride divides the grid's width, whole columns of the picture go unseen.
    Source: a control; DivPrune and others compare with it.
    """

    retain_ratio: float

    def select(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Choose every so many tokens."""
        n_tokens = sum(view.n_tokens for view in views)
        n_kept = self.budget().n_kept(n_tokens)
        return torch.arange(n_kept) * n_tokens // max(n_kept, 1)
