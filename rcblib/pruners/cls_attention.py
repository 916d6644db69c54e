"""Keep what the vision encoder's [CLS] attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, signal_of
from rcblib.records import VisualView


@dataclass(frozen=True)
class ClsAttentionPruner(Pruner):
    r"""Keep the tokens that [CLS] attends to most, in reading order.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].

    Notes
    -----
    Rule: :math:`\operatorname{top}_k\ \frac1H \sum_h a^h_{\mathrm{cls},i}`
    Cost: one row of attention in one layer of the encoder.
    Fails: on what is small beside the picture's main subject; attention sinks hold no content (arXiv 2503.03321).
    Source: FasterVLM (Theia-4869/FasterVLM, commit f5d5f12), ``encode_images``: attention of the layer that makes the
    selected hidden state, the second to last of CLIP's; its mean over heads.
    """

    retain_ratio: float

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score by the attention from [CLS]."""
        return signal_of(views, "cls_attention")
