"""Drop visual tokens before the LLM: a base class that works through `generate`, and one file per method."""

from rcblib.pruners.base import Pruner, PruningContext
from rcblib.pruners.baselines import ClsSimilarityPruner, RandomPruner
from rcblib.pruners.codebook import CodebookPruner

__all__ = ["ClsSimilarityPruner", "CodebookPruner", "Pruner", "PruningContext", "RandomPruner"]
