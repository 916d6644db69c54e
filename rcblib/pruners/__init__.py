"""Drop visual tokens before the LLM: a base class that works through `generate`, and one file per method."""

from rcblib.pruners.base import Pruner, PruningContext
from rcblib.pruners.baselines import ClsSimilarityPruner, RandomPruner
from rcblib.pruners.codebook import FAMILY_RULES, CodebookPruner

__all__ = [
    "FAMILY_RULES",
    "ClsSimilarityPruner",
    "CodebookPruner",
    "Pruner",
    "PruningContext",
    "RandomPruner",
]
