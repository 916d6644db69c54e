"""Swap visual tokens with those of another image, in place: what changes in the answers was held by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from rcblib.mllm.reduced import Reduced
from rcblib.pruners.base import Pruner
from rcblib.pruners.context import (
    COVERAGE,
    OTHER_COVERAGE,
    OTHER_TOKENS,
    PruningContext,
    signal_of,
    tokens_of,
)
from rcblib.records import ParameterError, VisualView

WHAT = ("image", "background", "objects")


@dataclass(frozen=True)
class SwapPruner(Pruner):
    """Keep every token's place, and put tokens of another image into some of them.

    Only an evaluation knows other images (`rcblib.evaluate.known`).

    Parameters
    ----------
    what : {"image", "background", "objects"}
        Which tokens give way: all, to those at the same places; those that no object touches, to tokens of the other
        image that no object touches there; those that one does, to tokens of objects. Of the other image's the one at
        the same place is taken where it is of the kind, else one drawn among its kind, or the one at the same place
        where it has none.
    """

    what: str = "image"
    retain_ratio: float = field(default=1.0, init=False)

    needs: ClassVar[frozenset[str]] = frozenset({COVERAGE, OTHER_TOKENS, OTHER_COVERAGE})

    def __post_init__(self):
        if self.what not in WHAT:
            raise ParameterError("what", self.what, f"one of {WHAT}")
        super().__post_init__()

    def reduce(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> Reduced:
        """Return all positions, and the rows that stand there."""
        tokens, other = tokens_of(views), signal_of(views, OTHER_TOKENS)
        source = torch.arange(len(tokens))
        if self.what == "image":
            return Reduced(source, other.to(tokens))
        wanted = self.what == "objects"
        gives_way = (signal_of(views, COVERAGE) > 0) == wanted
        fits = (signal_of(views, OTHER_COVERAGE) > 0) == wanted
        place = (context.image_index, context.view_index) if context else (0, 0)
        candidates = fits.nonzero().flatten().numpy()
        if len(candidates):
            drawn = np.random.default_rng(place).choice(candidates, len(tokens))
            source = torch.where(fits, source, torch.from_numpy(drawn))
        rows = tokens.clone()
        rows[gives_way.to(rows.device)] = other.to(tokens)[source[gives_way].to(other.device)].to(tokens)
        return Reduced(torch.arange(len(tokens)), rows)
