"""Put one prototype in the places of what a method drops: is it the content that is missed, or the length?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.mllm.reduced import Reduced
from rcblib.pruners.codebook import CodebookPruner
from rcblib.pruners.context import PruningContext, tokens_of
from rcblib.pruners.random import RandomPruner
from rcblib.records import VisualView


class _Replacing:
    """Keep every place of the tokens; those that the next class would drop hold the codebook's central prototype."""

    def reduce(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> Reduced:
        """Return all positions, and the rows that stand there."""
        kept, tokens = self.select(views, context), tokens_of(views)
        rows = central_prototype(self.codebook).to(tokens).repeat(len(tokens), 1)
        rows[kept.to(rows.device)] = tokens[kept.to(tokens.device)]
        return Reduced(torch.arange(len(tokens)), rows)


@dataclass(frozen=True)
class ReplacedCodebookPruner(_Replacing, CodebookPruner):
    """Replace by the central prototype what the codebook drops; the LLM reads as many rows as without pruning.

    No method for use: it tells what is missed of the dropped tokens from what a shorter input changes. The parameters
    are those of `CodebookPruner`.
    """


@dataclass(frozen=True)
class ReplacedRandomPruner(_Replacing, RandomPruner):
    """Replace random tokens by the central prototype, as `ReplacedCodebookPruner` does those that the codebook drops.

    Parameters
    ----------
    codebook : Codebook, str or path-like
        As `CodebookPruner` takes it.
    """

    codebook: Codebook = field(kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "codebook", load_codebook(self.codebook))
        super().__post_init__()

    def description(self) -> dict[str, Any]:
        """Return the settings, the prototype by its values."""
        filler = central_prototype(self.codebook).float().tolist()
        return super().description() | {"codebook": filler}


def central_prototype(codebook: Codebook) -> torch.Tensor:
    """Return the prototype that is most similar, on average, to all others: ``(d_model,)``."""
    unit = F.normalize(codebook.prototypes.float(), dim=-1)
    return codebook.prototypes[(unit @ unit.sum(0)).argmax()]
