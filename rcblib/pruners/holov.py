"""Share the budget out over segments of the picture by attention and variety."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rcblib.pruners.base import Pruner
from rcblib.pruners.budget import Budget
from rcblib.pruners.context import PruningContext, signal_of, tokens_of
from rcblib.records import VisualView
from rcblib.tensors.checks import check_integer

VARIETY, EPSILON = 0.09, 1e-6
"""Weight of the variance of cosines beside attention; what keeps divisions finite."""


@dataclass(frozen=True)
class HoloV(Pruner):
    r"""Keep the most attended tokens of each segment, more of segments that are attended to or varied.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    n_segments : int
        Segments of consecutive tokens in reading order, as even as they can be.

    Notes
    -----
    Rule: :math:`k_s = \lfloor k\,w_s / \sum_t w_t \rfloor` and one more for the largest :math:`w_s`, with :math:`w_s`
    the mean over a segment of :math:`10^3 a_i + 0.09\,\hat v_i`, :math:`\hat v_i` the variance of a token's cosines to
    the segment's others, scaled to the mean of :math:`10^3 a_i`; then :math:`\operatorname{top}_{k_s} a_i` in each
    Cost: one row of attention, and cosines inside segments.
    Fails: segments are bands of rows, whatever the picture shows; within one it chooses as [CLS] attention does.
    Source: HoloV (obananas/HoloV, commit 1d2e65e), ``HoloV`` of ``llava/model/utils.py``: tokens after the connector,
    [CLS] attention of the layer that makes the selected hidden state, mean over heads.
    Differs: what a segment is given beyond its size goes to the others by weight, where the code feeds zeros instead;
    kept tokens stay in reading order.
    """

    retain_ratio: float
    n_segments: int = 16

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    def __post_init__(self):
        check_integer("n_segments", self.n_segments, 1)
        super().__post_init__()

    def select(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Choose the most attended tokens of every segment."""
        tokens, attention = tokens_of(views).float().cpu(), signal_of(views, "cls_attention")
        pairs = zip(
            tokens.tensor_split(self.n_segments), attention.tensor_split(self.n_segments), strict=True
        )
        pairs = [(own, attended) for own, attended in pairs if len(own)]
        weights = torch.stack([segment_weight(*pair) for pair in pairs])
        counts = allotted(weights, [len(own) for own, _ in pairs], self.budget().n_kept(len(tokens)))
        kept, start = [], 0
        for (_, attended), count in zip(pairs, counts, strict=True):
            kept.append(Budget(count=count).keep(attended) + start)
            start += len(attended)
        return torch.cat(kept)


def segment_weight(tokens: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Weigh a segment of ``(n, d)`` tokens by their ``(n,)`` attention and by how their cosines vary."""
    n = len(tokens)
    if n == 1:
        return attention[0]
    unit = tokens / (tokens.norm(dim=1, keepdim=True) + EPSILON)
    cosine = (unit @ unit.T).fill_diagonal_(0)
    mean = cosine.sum(1, keepdim=True) / (n - 1)
    variance = (cosine - mean).square().sum(1) / (n - 1)
    attention = 1e3 * attention
    scaled = variance * attention.abs().mean() / (variance.abs().mean() + EPSILON)
    return (attention + VARIETY * scaled).mean()


def allotted(weights: torch.Tensor, sizes: list[int], n_kept: int) -> list[int]:
    """Share `n_kept` out by weight, to no segment more than it holds."""
    share = weights / (weights.sum() + EPSILON)
    order = share.argsort(descending=True, stable=True).tolist()
    counts = (share * n_kept).floor().long().tolist()
    for number in order[: max(n_kept - sum(counts), 0)]:
        counts[number] += 1
    counts = [min(count, size) for count, size in zip(counts, sizes, strict=True)]
    for number in order:
        counts[number] += min(sizes[number] - counts[number], n_kept - sum(counts))
    return counts
