"""Prune visual tokens that are close to a redundant prototype."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.mllm import Adapter
from rcblib.pruners.base import Pruner
from rcblib.pruners.budget import Budget
from rcblib.pruners.context import PruningContext, tokens_of
from rcblib.records import VisualView
from rcblib.tensors.scoring import check_budget, redundancy_scores

FAMILY_RULES = {"llava": "max_cosine", "llava_next": "max_cosine", "llava_onevision": "double_softmax"}
"""Rule that the release uses with each family."""


@dataclass(frozen=True)
class CodebookPruner(Pruner):
    r"""Drop each visual token that is close to a prototype of a codebook.

    Exactly one budget is given.

    Parameters
    ----------
    codebook : Codebook, str, path-like or torch.Tensor
        Redundant prototypes of the model's own embedding space, or what `load_codebook` makes them of: a name, a file,
        a folder, or the prototypes alone.
    rule : {"max_cosine", "double_softmax", "single_softmax"}
        How closeness is scored; see `redundancy_scores`.
    max_similarity : float, optional
        Cosine cut-off in [-1, 1] for ``max_cosine``: tokens strictly below it are kept; a lower value keeps
        fewer, and the count differs from image to image.
    retain_ratio : float, optional
        Share of the tokens to keep, in [0, 1]; see `keep_indices`.
    position_ids, layout, scope
        As in `Pruner`.

    Notes
    -----
    Rule: drops where :math:`\max_p \cos(x_i, p)` is largest, or at or above a cut-off; or, double_softmax, where
    :math:`\max_p \mathrm{softmax}_i(\cos)\,\mathrm{softmax}_p(\cos)` is; or, single_softmax, the second factor alone
    Cost: one product of :math:`n` tokens and the prototypes; a codebook, built once for a model.
    Fails: on pictures unlike those that the codebook was built from; with a cut-off, the count is the picture's.
    Source: pruning at inference; the released modes ``high_info_patch`` (``max_similarity``, 0.45 for
    LLaVA-1.5), ``_flatten`` (0.11 for LLaVA-NeXT, layout ``"flatten"``), ``_fix_num``, ``_double_smx``
    (``retain_ratio``, 0.5 for OneVision) and ``_single_smx``, of images and of videos.
    """

    codebook: Codebook
    rule: str = "max_cosine"
    max_similarity: float | None = None

    def __post_init__(self):
        given = {"max_similarity": self.max_similarity, "retain_ratio": self.retain_ratio, "rule": self.rule}
        check_budget(**given)  # before a codebook is fetched
        object.__setattr__(self, "codebook", load_codebook(self.codebook))
        super().__post_init__()

    @classmethod
    def defaults(cls, family: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rule that the release uses with a family, unless one or a cut-off is given."""
        if settings.get("rule") is not None or settings.get("max_similarity") is not None:
            return {}
        return {"rule": FAMILY_RULES.get(family, cls.rule)}

    def budget(self) -> Budget:
        """Keep what `keep_indices` keeps under the rule."""
        if self.max_similarity is not None:
            return Budget(cut_off=-self.max_similarity)
        return Budget(retain_ratio=self.retain_ratio, drops_ties=self.rule != "max_cosine")

    def description(self) -> dict[str, Any]:
        """Return the settings, in the codebook's place a hash of its prototypes, dtype and shape."""
        return super().description() | {"codebook": self.codebook.prototypes_hash()}

    def check(self, adapter: Adapter) -> None:
        """Raise a `CodebookError` where the codebook has another width, or a known other family.

        A rule that the release does not use with the family gets a warning.
        """
        super().check(adapter)
        self.codebook.check_fits(adapter.family, adapter.d_model)
        preset = FAMILY_RULES.get(adapter.family, self.rule)
        if self.rule != preset:
            warnings.warn(
                f"rule: {self.rule!r} with family {adapter.family!r}, for which the release uses {preset!r}",
                stacklevel=2,
            )

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score the tokens by `redundancy_scores` under the rule, the other way round: higher = keep."""
        return -redundancy_scores(tokens_of(views), self.codebook.unit_prototypes, self.rule)
