"""Keep all tokens: what every method is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, tokens_of
from rcblib.records import VisualView


@dataclass(frozen=True)
class AllTokens(Pruner):
    r"""Keep every token; the model answers as without a pruner.

    Parameters
    ----------
    position_ids, layout, scope
        As in `Pruner`.

    Notes
    -----
    Rule: :math:`k = n`
    Cost: the LLM reads everything.
    Fails: where the model does.
    Source: the unpruned model.
    """

    retain_ratio: float = field(default=1.0, init=False)

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score all tokens alike."""
        return torch.zeros(len(tokens_of(views)))
