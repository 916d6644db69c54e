"""Explain visual redundancy in multimodal LLMs: probe tokens, build codebooks, prune and measure.

The public names below are imported from their modules when they are first used, so that ``import rcblib`` itself
loads neither torch nor transformers.
"""

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ClsSimilarityPruner": "pruners",
    "Codebook": "codebook.codebook",
    "CodebookCriterion": "codebook.criterion",
    "CodebookPruner": "pruners",
    "ONE_WORD_QUESTION": "records",
    "PRESETS": "codebook.criterion",
    "ProbeConfig": "probe.config",
    "ProbeResults": "probe.store",
    "ProbedImage": "codebook.pooling",
    "Pruner": "pruners",
    "Question": "records",
    "RandomPruner": "pruners",
    "Sample": "records",
    "build_codebook": "codebook.build",
    "build_codebook_by_image": "codebook.build",
    "divergence": "tensors.divergence",
    "dpc_knn": "tensors.clustering",
    "entropy": "tensors.divergence",
    "evaluate": "evaluate.grid",
    "evaluate_grid": "evaluate.grid",
    "keep_indices": "tensors.scoring",
    "latency_and_memory": "evaluate.timing",
    "load_model": "mllm",
    "probe": "probe.run",
    "probe_dataset": "probe.store",
    "rank_by_cls": "tensors.geometry",
    "read_probe": "probe.store",
    "read_probe_by_image": "probe.store",
    "redundancy_scores": "tensors.scoring",
    "replace_tokens": "probe.perturbation",
    "top1_probability": "tensors.divergence",
    "window": "tensors.geometry",
    "world_note": "data.opening",
}
"""Module that each public name comes from."""

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(types.ModuleType):
    """Let ``rcblib.probe`` and ``rcblib.evaluate`` be the functions although rooms have the same names.

    Importing a room would set it as an attribute of its package. Where a public function is called like it, the
    attribute stays unset, so that `__getattr__` finds the function; ``from rcblib.probe.run import ...`` finds the
    room all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
