"""Let the words that look at the picture rate its rows, and merge some of what they drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rcblib.mllm.layer_state import LayerState, Spans
from rcblib.mllm.reduced import Reduced
from rcblib.pruners.inside import InsidePruner, check_layers, scaled_layers
from rcblib.tensors.clustering import dpc_knn

BUDGETS = (0, 64, 96, 128, 192, 576)
KEPT = ((0, 66, 238, 303, 300, 576), (0, 30, 48, 110, 200, 576), (0, 17, 26, 36, 110, 576))
"""Published rows kept of 576 at each of three layers, for each nominal budget."""

MERGED, PER_CLUSTER = 0.3, 10
"""Share of the dropped rows that is merged, those rated best, and how many of them make one row."""


@dataclass(frozen=True)
class SparseVLM(InsidePruner):
    r"""Keep at three layers the rows that rating words attend to most, and clusters of the best of the others.

    Parameters
    ----------
    retain_ratio : float
        Share of the rows that the published schedule is named by, in [0, 1]: a third of 576 tokens is its 192, which
        keeps 300, 200 and 110 of them. Shares between the published ones are interpolated.
    layers : tuple of int, optional
        Layers in front of which rows are dropped, by the attention in the layer before: three, or fewer for the last of
        the shares. By default those behind 2, 6 and 15, published for 32 layers, at the same depth of the LLM.

    Notes
    -----
    Rule: raters are the words behind the picture with :math:`\frac1n \sum_i \mathrm{softmax}_m(x_i \cdot e_m)` above
    the mean over words, of rows as they enter the LLM; at each layer
    :math:`\operatorname{top}_k\ \sum_{m \in \mathrm{raters}} \sum_h a^h_{m,i}` stay, and of the best three tenths of
    the others every ten become one mean by DPC-KNN
    Cost: the first layers read everything; attention of all text rows in three layers; clustering of a few rows. What
    is called 192 of 576 tokens is 206.5 rows as the mean over 32 layers: three read everything, not two, and merged
    rows are read too.
    Fails: raters may be punctuation and words of the template; a merged row stands for tokens of several places.
    Source: SparseVLM 1.0 (Gumpest/SparseVLMs, commit 26a5f48), ``score.py`` and ``modelling_sparse_llama.py``.
    Differs: a merged row stands at its cluster's centre, where the code puts merged rows behind the others; the words
    are those behind the prompt's last image; no noise breaks ties. Rows are numbered anew after each layer, as there,
    where the LLM counts on one axis.
    """

    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        check_layers(self.layers, len(KEPT))
        super().__post_init__()

    def schedule(self, n_layers: int) -> dict[int, float]:
        """Return the share that stays in front of each layer, without merged rows."""
        layers = scaled_layers((3, 7, 16), n_layers) if self.layers is None else self.layers
        nominal = self.retain_ratio * BUDGETS[-1]
        shares = [float(np.interp(nominal, BUDGETS, own)) / BUDGETS[-1] for own in KEPT]
        return dict(zip(layers, shares[-len(layers) :], strict=True))

    def n_rows(self, spans: Spans) -> int:
        """Return how many rows stand behind the last image, of the prompt that has most."""
        ends: dict[int, int] = {}
        for prompt, columns in spans.images:
            ends[prompt] = max(ends.get(prompt, 0), int(columns[-1]) + 1 if len(columns) else 0)
        return max((spans.n_columns - end for end in ends.values()), default=1)

    def relevance(self, state: LayerState) -> torch.Tensor:
        """Return the mean attention of the rating words."""
        entered, begin = state.entered, int(state.entered_spans[-1][-1]) + 1
        if begin == len(entered):  # no words behind the picture
            return super().relevance(state)
        raters = rating_words(entered[torch.cat(state.entered_spans).to(entered.device)], entered[begin:])
        return state.attention.mean(0)[begin - len(entered) :][raters].mean(0)

    def reduced(self, state: LayerState, n_kept: Sequence[int]) -> list[Reduced]:
        """Keep rows, and merge some of the others."""
        relevance = self.relevance(state).cpu()
        return [
            keep_and_merge(relevance[span], state.hidden_states[span.to(state.hidden_states.device)], n)
            for span, n in zip(state.spans, n_kept, strict=True)
        ]


def rating_words(visual: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Return the positions among ``(m, d)`` words that look at ``(n, d)`` visual rows more than the mean; or all."""
    looks = (visual.float() @ words.float().T).softmax(-1).mean(0)
    raters = (looks > looks.mean()).nonzero().flatten()
    return raters.cpu() if len(raters) else torch.arange(len(words))


def keep_and_merge(relevance: torch.Tensor, rows: torch.Tensor, n_kept: int) -> Reduced:
    """Keep the most relevant of ``(n, d)`` rows, and means of clusters of the best of the others."""
    order = relevance.argsort(descending=True, stable=True)
    n_kept = min(n_kept, len(order))
    kept, others = order[:n_kept].sort().values, order[n_kept:]
    if not len(others):
        return Reduced(kept)
    best = others[: int(len(others) * MERGED) + 1]
    n_clusters = len(best) // PER_CLUSTER + 1
    members = rows[best.to(rows.device)].float()
    found = dpc_knn(members, n_clusters, k=n_clusters, return_details=True)
    labels, counts = found.labels, torch.bincount(found.labels, minlength=n_clusters)
    sums = members.new_zeros(n_clusters, members.shape[1]).index_add_(0, labels, members)
    means = (sums / counts[:, None]).to(rows.dtype)
    positions, place = torch.cat([kept, best[found.centres.cpu()]]).sort()
    merged = torch.cat([rows[kept.to(rows.device)], means])[place.to(rows.device)]
    return Reduced(positions, merged, torch.cat([torch.ones_like(kept), counts.cpu()])[place])
