"""Keep tokens that are far from each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, tokens_of
from rcblib.records import VisualView


@dataclass(frozen=True)
class DivPrune(Pruner):
    r"""Keep tokens whose smallest distance from each other is large.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].

    Notes
    -----
    Rule: :math:`S \leftarrow S \cup \{\arg\max_{i \notin S} \min_{j \in S} (1 - \cos(x_i, x_j))\}`, begun with
    the token whose nearest neighbour is farthest
    Cost: a matrix of :math:`n^2` cosines after the connector, and :math:`k` steps over :math:`n` tokens.
    Fails: it keeps outliers whatever they show, and thins out a large object as it does a plain background.
    Source: DivPrune (vbdi/divprune, commit 799e2d9), ``DivPrune`` of ``llava_arch.py``.
    Differs: a token is never chosen twice, as it may be there where tokens are copies of each other.
    """

    retain_ratio: float

    def select(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Choose tokens one by one."""
        tokens = tokens_of(views)
        return farthest_tokens(tokens, self.budget().n_kept(len(tokens))).sort().values


def farthest_tokens(tokens: torch.Tensor, n_kept: int) -> torch.Tensor:
    """Return the positions of `n_kept` of ``(n_tokens, d)`` tokens, in the order in which they are chosen."""
    if n_kept >= len(tokens):
        return torch.arange(len(tokens), device=tokens.device)
    unit = F.normalize(tokens.float(), dim=-1)
    distance = 1 - unit @ unit.T
    nearest = distance.topk(2, dim=0, largest=False).values[1]
    chosen: list[torch.Tensor] = []
    for _ in range(n_kept):
        chosen.append(nearest.argmax())
        nearest = distance[chosen[-1]] if len(chosen) == 1 else torch.minimum(nearest, distance[chosen[-1]])
        nearest[chosen[-1]] = -torch.inf
    return torch.stack(chosen) if chosen else torch.arange(0, device=tokens.device)
