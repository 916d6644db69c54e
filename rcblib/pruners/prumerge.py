"""Keep the outliers of attention, and add to each what its key resembles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F

from rcblib.mllm.reduced import Reduced
from rcblib.pruners.base import Pruner
from rcblib.pruners.budget import Budget
from rcblib.pruners.context import PruningContext, connected, signal_of
from rcblib.records import VisualView

N_NEAR = 32
"""Tokens of the most similar keys that are added to a kept one."""


@dataclass(frozen=True)
class PruMerge(Pruner):
    r"""Keep the tokens that [CLS] attends to most, each with its neighbours by key added, and the sum of what is left.

    Parameters
    ----------
    retain_ratio : float, optional
        Share of the tokens to keep, in [0, 1], the sum included. By default the number of outliers and one.

    Notes
    -----
    Rule: :math:`h_i + \sum_{j \in N_{32}(i)} a_j h_j` for the :math:`i` with :math:`a_i > Q_3 + 1.5\,(Q_3 - Q_1)`, or
    the :math:`k-1` largest; :math:`N_{32}(i)` the tokens of the most similar keys, kept ones among them; and
    :math:`\sum_{j\ \mathrm{dropped}} a_j h_j`; before the connector
    Cost: one row of attention, a product of keys, and the connector once more on :math:`k` rows.
    Fails: where attention has few outliers it keeps hardly anything; the connector has not learnt to read sums.
    Source: LLaVA-PruMerge (42Shawn/LLaVA-PruMerge, commit 097c041), ``token_prune_merge_advanced``: queries and keys of
    the encoder's last layer, heads taken as one.
    Differs: tokens stay in reading order, the sum at the place of the last that was dropped; where nothing is dropped,
    nothing is added, so that everything retained is the unpruned model.
    """

    retain_ratio: float | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"last_cls_attention", "last_keys", "hidden_states"})

    def reduce(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> Reduced:
        """Choose tokens, and add others to them."""
        attention = signal_of(views, "last_cls_attention")
        kept = self.chosen(attention)
        if len(kept) == len(attention) or self.retain_ratio == 0:
            return Reduced(kept)
        keys, states = signal_of(views, "last_keys"), signal_of(views, "hidden_states")
        rows, rest = add_neighbours(attention, keys, states, kept)
        positions, place = torch.cat([kept, rest[-1:]]).sort()
        return Reduced(positions, connected(context, rows[place]))

    def chosen(self, attention: torch.Tensor) -> torch.Tensor:
        """Return the tokens that are kept besides the sum, ascending; all of them where all are retained."""
        n_kept = len(outliers(attention))
        if self.retain_ratio is not None:
            n_kept = self.budget().n_kept(len(attention))
            n_kept -= 0 < n_kept < len(attention)
        return Budget(count=n_kept).keep(attention)


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    r"""Keep evenly strided tokens too, about three for each outlier: `PruMerge` with spatial sampling.

    How many tokens stay follows from the attention.

    Notes
    -----
    Rule: as PruMerge; with :math:`o` outliers of :math:`n` tokens also every
    :math:`\lfloor\lfloor n/o \rfloor/3\rfloor`-th token of the first :math:`n-1` is kept
    Cost: as PruMerge, of about four times as many rows.
    Fails: as PruMerge; its budget cannot be chosen.
    Source: LLaVA-PruMerge (42Shawn/LLaVA-PruMerge, commit 097c041), ``token_prune_merge_advanced_plus``, adaptive.
    Differs: as PruMerge; without outliers no token is strided, where the code fails.
    """

    retain_ratio: None = field(default=None, init=False)

    def chosen(self, attention: torch.Tensor) -> torch.Tensor:
        """Return outliers and strided tokens, ascending."""
        found, n_tokens = outliers(attention), len(attention)
        if not len(found):
            return found
        strided = torch.arange(0, n_tokens - 1, max(n_tokens // len(found) // 3, 1))
        return torch.cat([found, strided]).unique()


def outliers(attention: torch.Tensor) -> torch.Tensor:
    """Return the positions of ``(n,)`` values that lie above the upper quartile by 1.5 interquartile ranges."""
    lower, upper = attention.quantile(torch.tensor([0.25, 0.75], dtype=attention.dtype))
    return (attention > upper + 1.5 * (upper - lower)).nonzero().flatten()


def add_neighbours(
    attention: torch.Tensor, keys: torch.Tensor, states: torch.Tensor, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add to kept states those of similar keys, weighed by attention; sum up what is dropped.

    Parameters
    ----------
    attention, keys, states : torch.Tensor
        ``(n,)``, ``(n, d_key)``, ``(n, d)``.
    kept : torch.Tensor
        ``(n_kept,)`` int64 positions, fewer than n.

    Returns
    -------
    rows : torch.Tensor
        ``(n_kept + 1, d)``, the sum last.
    dropped : torch.Tensor
        ``(n - n_kept,)`` int64 positions, ascending.
    """
    unit = F.normalize(keys, dim=-1)
    similarity = unit[kept] @ unit.T
    similarity[torch.arange(len(kept)), kept] = -torch.inf
    near = similarity.topk(min(N_NEAR, len(keys) - 1)).indices  # (n_kept, n_near)
    weighed = attention[:, None] * states
    is_dropped = torch.ones(len(keys), dtype=torch.bool)
    is_dropped[kept] = False
    total = weighed[is_dropped].sum(0, keepdim=True)
    return torch.cat([states[kept] + weighed[near].sum(1), total]), is_dropped.nonzero().flatten()
