"""Keep the tokens that objects do not cover: how badly a method can choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rcblib.pruners.context import PruningContext
from rcblib.pruners.oracle import OraclePruner
from rcblib.records import VisualView


@dataclass(frozen=True)
class AntiOraclePruner(OraclePruner):
    r"""Keep the tokens whose patches objects cover least, then others up to the budget.

    The bound at the other end of `OraclePruner`, with the same parameters.

    Notes
    -----
    Rule: :math:`\operatorname{top}_k\ -c_i`, with :math:`c_i` the share of a patch that objects cover
    Cost: none; masks must be known.
    Fails: where objects are asked about; a model that still answers did not need to see them.
    Source: a bound.
    """

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score by the share of each patch that no object covers; ties in random order."""
        return -super().score(views, context)
