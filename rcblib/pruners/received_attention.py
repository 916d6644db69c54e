"""Keep what the patches of an encoder attend to: for encoders without [CLS]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, signal_of
from rcblib.records import VisualView


@dataclass(frozen=True)
class ReceivedAttentionPruner(Pruner):
    r"""Keep the tokens that receive most attention from all patches, in reading order.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].

    Notes
    -----
    Rule: :math:`\operatorname{top}_k\ \frac{1}{HN} \sum_h \sum_j a^h_{j,i}`
    Cost: the attention map of one layer of the encoder, a grid at a time.
    Fails: attention sinks receive much and hold no content (arXiv 2503.03321).
    Source: what VisPruner's code reads off SigLIP, which has no [CLS] (Theia-4869/VisPruner, commit aefa01a,
    ``siglip_encoder.py``), as a method of its own.
    Differs: attention is that of the layer that makes the selected hidden state; with a [CLS], its row is left out.
    """

    retain_ratio: float

    needs: ClassVar[frozenset[str]] = frozenset({"received_attention"})

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score by the attention received, mean over patches and heads."""
        return signal_of(views, "received_attention")
