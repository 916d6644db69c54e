"""Keep what is attended to, and merge the rest before the connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from rcblib.mllm.reduced import Reduced
from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, connected, signal_of, tokens_of
from rcblib.records import VisualView
from rcblib.tensors.checks import check_share


@dataclass(frozen=True)
class VisionZip(Pruner):
    r"""Keep the tokens that [CLS] attends to most, and merge the others into some of them that are evenly strided.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1], merged ones included.
    contextual_ratio : float
        Share of the kept ones that are merged, in [0, 1]; published: 10 of 64, 20 of 128, 30 of 192.

    Notes
    -----
    Rule: dominant: :math:`\operatorname{top}_{k-m} \sum_h a^h_{\mathrm{cls},i}`; contextual: of what is left every so
    many is a target :math:`t`, :math:`m` in all, and the others join the target of the most similar key:
    :math:`h_t + \frac{1}{|G_t|} \sum_{i \in G_t} h_i`, before the connector
    Cost: one row of attention, one product of keys, and the connector once more on :math:`m` rows.
    Fails: the connector has not learnt to read the sum of a state and a mean; targets are chosen without regard to
    content.
    Source: VisionZip (dvlab-research/VisionZip, commit 3151f6d), ``clip_encoder.py``: attention and keys, mean over
    heads, of the layer that makes the selected hidden state.
    Differs: [CLS] itself, which the code feeds as one of the dominant tokens of an image without tiles, is not fed, as
    it is no token of the grid; a patch takes its place. Merged tokens stand where their targets stood, not at the end.
    """

    retain_ratio: float
    contextual_ratio: float = 10 / 64

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "keys", "hidden_states"})

    def __post_init__(self):
        check_share("contextual_ratio", self.contextual_ratio)
        super().__post_init__()

    def reduce(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> Reduced:
        """Choose dominant tokens, and merge what is left."""
        tokens, attention = tokens_of(views), signal_of(views, "cls_attention")
        keys, states = signal_of(views, "keys"), signal_of(views, "hidden_states")
        n_kept = self.budget().n_kept(len(tokens))
        n_contextual = round(n_kept * self.contextual_ratio)
        order = attention.argsort(descending=True, stable=True)
        dominant, rest = (
            order[: n_kept - n_contextual].sort().values,
            order[n_kept - n_contextual :].sort().values,
        )
        if n_contextual == 0 or n_kept == len(tokens):
            return Reduced(torch.cat([dominant, rest[:n_contextual]]).sort().values)
        target, merged, sizes = merge_into_strided(keys[rest], states[rest], n_contextual)
        positions, place = torch.cat([dominant, rest[target]]).sort()
        rows = torch.cat([tokens[dominant.to(tokens.device)], connected(context, merged).to(tokens)])
        sizes = torch.cat([torch.ones_like(dominant), sizes])
        return Reduced(positions, rows[place.to(rows.device)], sizes[place])


def merge_into_strided(
    keys: torch.Tensor, states: torch.Tensor, n_targets: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge tokens into evenly strided ones of them.

    Parameters
    ----------
    keys, states : torch.Tensor
        ``(n, d_head)`` what similarity is measured by; ``(n, d)`` what is merged.
    n_targets : int
        From 1 to n.

    Returns
    -------
    target : torch.Tensor
        ``(n_targets,)`` int64 positions of the targets.
    merged : torch.Tensor
        ``(n_targets, d)``: each target's state and the mean of those that joined it.
    sizes : torch.Tensor
        ``(n_targets,)`` int64: 1 and the number of those.
    """
    step = max(1, len(keys) // n_targets)
    target = torch.arange(0, len(keys), step)[:n_targets]
    others = torch.ones(len(keys), dtype=torch.bool)
    others[target] = False
    unit = F.normalize(keys, dim=-1)
    group = (unit[others] @ unit[target].T).argmax(-1)
    counts = torch.bincount(group, minlength=n_targets)
    sums = torch.zeros_like(states[target]).index_add_(0, group, states[others])
    return target, states[target] + sums / counts.clamp(min=1)[:, None], 1 + counts
