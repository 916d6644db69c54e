"""Give the LLM fewer visual tokens: a base class that works through `generate`, a registry, and one file a method."""

from rcblib.mllm.reduced import Reduced
from rcblib.pruners.all import AllTokens
from rcblib.pruners.base import Pruner
from rcblib.pruners.budget import Budget
from rcblib.pruners.cls_similarity import ClsSimilarityPruner
from rcblib.pruners.codebook import FAMILY_RULES, CodebookPruner
from rcblib.pruners.context import PruningContext, connected, signal_of, tokens_of
from rcblib.pruners.generation import Pruned
from rcblib.pruners.inside import InsidePruner
from rcblib.pruners.oracle import OraclePruner
from rcblib.pruners.random import RandomPruner
from rcblib.pruners.registry import PRUNERS, baseline_pruners, find_method, read_pruner, register
from rcblib.pruners.steps import split_by_view

__all__ = [
    "FAMILY_RULES",
    "PRUNERS",
    "AllTokens",
    "Budget",
    "InsidePruner",
    "OraclePruner",
    "ClsSimilarityPruner",
    "CodebookPruner",
    "Pruned",
    "Pruner",
    "PruningContext",
    "RandomPruner",
    "Reduced",
    "baseline_pruners",
    "connected",
    "find_method",
    "read_pruner",
    "register",
    "signal_of",
    "split_by_view",
    "tokens_of",
]
