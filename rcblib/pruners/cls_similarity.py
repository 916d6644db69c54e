"""Keep tokens by their similarity to [CLS]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext, signal_of
from rcblib.records import ParameterError, VisualView


@dataclass(frozen=True)
class ClsSimilarityPruner(Pruner):
    r"""Keep the tokens most, or least, similar to the vision encoder's [CLS], in reading order.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    keep : {"most", "least"}
        Which end of the order survives.

    Notes
    -----
    Rule: :math:`\operatorname{top}_k\ \pm\cos(h_i, h_{\mathrm{cls}})`
    Cost: none beside the encoder.
    Fails: CLIP's patches may be most like [CLS] on background (arXiv 2304.05653).
    Source: the ``high_sim_patch`` and ``low_sim_patch`` modes of the release. Similarity is the cosine of
    patch and [CLS] rows of the selected hidden state, before the connector.
    Differs: ``round(n_tokens * retain_ratio)`` tokens are kept, equal values by position; the release cuts
    at the value of the k-th largest, which keeps one token fewer at the upper end and drops ties.
    """

    retain_ratio: float
    keep: str = "most"

    needs: ClassVar[frozenset[str]] = frozenset({"cls_similarity"})

    def __post_init__(self):
        if self.keep not in ("most", "least"):
            raise ParameterError("keep", self.keep, "'most' or 'least'")
        super().__post_init__()

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score by similarity to [CLS] (``"most"``) or by dissimilarity (``"least"``)."""
        similarity = signal_of(views, "cls_similarity")
        return similarity if self.keep == "most" else -similarity
