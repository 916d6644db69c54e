"""Prune visual tokens that are close to a redundant prototype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from rcblib.codebook import Codebook
from rcblib.mllm import Adapter
from rcblib.pruners.base import Pruner, PruningContext
from rcblib.records import CodebookError
from rcblib.scoring import redundancy_scores


@dataclass
class CodebookPruner(Pruner):
    """Drop each visual token that is close to a prototype of a codebook.

    Exactly one budget is given.

    Parameters
    ----------
    codebook : Codebook
        Redundant prototypes of the model's own embedding space.
    rule : {"max_cosine", "double_softmax", "single_softmax"}
        How closeness is scored; see `redundancy_scores`.
    max_similarity : float, optional
        Cosine cut-off in [-1, 1] for ``max_cosine``: tokens strictly below it are kept; a lower value keeps
        fewer, and the count differs from image to image.
    retain_ratio : float, optional
        Share of an image's tokens to keep, in [0, 1]; see `keep_indices`.
    position_ids : {"renumbered", "kept"}
        As in `Pruner`.

    Notes
    -----
    Source: pruning at inference; the released modes ``high_info_patch`` (``max_similarity``, 0.45 for
    LLaVA-1.5), ``_fix_num``, ``_double_smx`` and ``_single_smx`` (``retain_ratio``).
    """

    codebook: Codebook
    rule: str = "max_cosine"
    max_similarity: float | None = None

    reads_prompt: ClassVar[bool] = False

    def budget(self) -> dict:
        """Return the arguments of `keep_indices`."""
        return {
            "max_similarity": self.max_similarity,
            "retain_ratio": self.retain_ratio,
            "rule": self.rule,
        }

    def check(self, adapter: Adapter) -> None:
        """Raise a `CodebookError` where the codebook has another width, or a known other family."""
        super().check(adapter)
        width = self.codebook.prototypes.shape[-1]
        if width != adapter.d_model:
            raise CodebookError(f"codebook: got width {width}; accepted: the model's, {adapter.d_model}")
        if self.codebook.family not in ("", adapter.family):
            raise CodebookError(
                f"codebook: got family {self.codebook.family!r}; accepted: the model's, {adapter.family!r}"
            )

    def score(self, tokens: torch.Tensor, context: PruningContext | None = None) -> torch.Tensor:
        """Score the tokens by `redundancy_scores` under the rule."""
        return redundancy_scores(tokens, self.codebook.prototypes, self.rule)
