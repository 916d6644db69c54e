"""Merge tokens that are alike, pair by pair, after the connector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rcblib.mllm.reduced import Reduced
from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, tokens_of
from rcblib.records import VisualView


@dataclass(frozen=True)
class ToMe(Pruner):
    r"""Merge every other token into the most similar one between, the most similar pairs first.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].

    Notes
    -----
    Rule: rounds of bipartite matching: of tokens at even places those whose :math:`\max_j \cos(x_i, x_j)` to the odd
    ones is largest join theirs, as the mean of all tokens in it, until :math:`k` are left; at most half go in a round
    Cost: :math:`\log_2 (n/k)` products of halves of the tokens.
    Fails: the LLM has not learnt to read means of many tokens; objects of equal look may become one token, which
    counting cannot undo.
    Source: ToMe (facebookresearch/ToMe, commit af95e4b), ``bipartite_soft_matching`` and ``merge_wavg``.
    Differs: it is used once, after the connector, where ToMe merges in each layer of the encoder by keys; before each
    round tokens are brought into reading order; a merged token stands where the odd one stood.
    """

    retain_ratio: float

    def reduce(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> Reduced:
        """Merge until the budget is met."""
        tokens = tokens_of(views)
        n_kept = self.budget().n_kept(len(tokens))
        if n_kept in (0, len(tokens)):
            return Reduced(torch.arange(n_kept))
        positions = torch.arange(len(tokens), device=tokens.device)
        rows, sizes = tokens.float(), torch.ones_like(positions)
        while len(rows) > n_kept:
            rows, sizes, positions = merge_pairs(rows, sizes, positions, len(rows) - n_kept)
        return Reduced(positions, rows.to(tokens.dtype), sizes)


def merge_pairs(
    rows: torch.Tensor, sizes: torch.Tensor, positions: torch.Tensor, n_merged: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do one round of matching.

    Parameters
    ----------
    rows, sizes, positions : torch.Tensor
        ``(n, d)`` rows, ``(n,)`` how many tokens each is the mean of, ``(n,)`` where each stands, ascending.
    n_merged : int
        How many rows go; at most half of them do.

    Returns
    -------
    rows, sizes, positions : torch.Tensor
        Of what is left.
    """
    unit = F.normalize(rows, dim=-1)
    closest, target = (unit[::2] @ unit[1::2].T).max(-1)
    order = closest.argsort(descending=True, stable=True)
    n_merged = min(n_merged, len(rows) // 2)
    gone, stays = order[:n_merged], order[n_merged:]
    sums, counts = rows[1::2] * sizes[1::2, None], sizes[1::2].clone()
    sums.index_add_(0, target[gone], (rows * sizes[:, None])[::2][gone])
    counts.index_add_(0, target[gone], sizes[::2][gone])
    positions, order = torch.cat([positions[::2][stays], positions[1::2]]).sort()
    rows = torch.cat([rows[::2][stays], sums / counts[:, None]])[order]
    return rows, torch.cat([sizes[::2][stays], counts])[order], positions
