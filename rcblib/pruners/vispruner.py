"""Keep what is attended to, and of the rest what is unlike anything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, signal_of
from rcblib.records import VisualView
from rcblib.tensors.checks import check_share

N_EACH = 8
"""Tokens removed in each round of matching."""


@dataclass(frozen=True)
class VisPruner(Pruner):
    r"""Keep tokens that [CLS] attends to, and diverse ones of the rest.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    important_ratio : float
        Share of the kept ones that are chosen by attention, in [0, 1].

    Notes
    -----
    Rule: :math:`\operatorname{top}_{\lfloor rk \rfloor} a_i`; from the rest, in turns, the eight of every other token
    whose :math:`\max_j \cos(h_i, h_j)` to the tokens between is largest are removed until :math:`k` are left
    Cost: one row of attention, a matrix of cosines, and about :math:`(n-k)/8` rounds over the remaining tokens.
    Fails: as [CLS] attention does, softened by the diverse half, which looks at likeness to every other token only.
    Source: VisPruner (Theia-4869/VisPruner, commit aefa01a), ``encode_images``: features before the connector.
    Differs: of an odd count the longer half is matched, where the code fails.
    """

    retain_ratio: float
    important_ratio: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "hidden_states"})
    attention: ClassVar[str] = "cls_attention"

    def __post_init__(self):
        check_share("important_ratio", self.important_ratio)
        super().__post_init__()

    def select(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Choose important tokens, then distinct ones."""
        attention, features = signal_of(views, self.attention), signal_of(views, "hidden_states")
        n_kept = self.budget().n_kept(len(attention))
        n_important = int(n_kept * self.important_ratio)
        order = attention.argsort(descending=True, stable=True)
        rest = order[n_important:]
        distinct = rest[distinct_tokens(features[rest], n_kept - n_important)]
        return torch.cat([order[:n_important], distinct]).sort().values


@dataclass(frozen=True)
class ReceivedVisPruner(VisPruner):
    r"""Keep tokens that patches attend to, and diverse ones of the rest: `VisPruner` for encoders without [CLS].

    Notes
    -----
    Rule: as VisPruner, with the attention :math:`a_i` that a patch receives from all patches
    Cost: as VisPruner, with the whole attention map of one layer.
    Fails: as received attention does, softened by the diverse half.
    Source: VisPruner (Theia-4869/VisPruner, commit aefa01a), ``siglip_encoder.py``.
    Differs: attention is that of the layer that makes the selected hidden state.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"received_attention", "hidden_states"})
    attention: ClassVar[str] = "received_attention"


def distinct_tokens(features: torch.Tensor, n_left: int, n_each: int = N_EACH) -> torch.Tensor:
    """Remove tokens that are like another one, round by round.

    Parameters
    ----------
    features : torch.Tensor
        ``(n, d)``, the most important first.
    n_left : int
        How many stay.
    n_each : int
        How many go in a round, at most.

    Returns
    -------
    torch.Tensor
        ``(n_left,)`` int64 positions, in the order in which the last round leaves them.
    """
    left = torch.arange(len(features), device=features.device)
    if n_left == 0:
        return left[:0]
    unit = F.normalize(features, dim=-1)
    cosine = unit @ unit.T
    while len(left) > n_left:
        first, second = left[::2], left[1::2]
        n_removed = min(n_each, len(left) - n_left, len(first))
        closest = cosine[first[:, None], second].amax(-1)
        order = closest.argsort(descending=True, stable=True)
        left = torch.cat([first[order[n_removed:]], second])
    return left
