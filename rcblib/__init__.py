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
    "Codebook": "codebook",
    "CodebookCriterion": "criterion",
    "CodebookPruner": "pruners",
    "ONE_WORD_QUESTION": "records",
    "PRESETS": "criterion",
    "ProbeConfig": "probe",
    "ProbeResults": "probe",
    "Pruner": "pruners",
    "Question": "records",
    "RandomPruner": "pruners",
    "Sample": "records",
    "build_codebook": "selection",
    "divergence": "divergence",
    "dpc_knn": "clustering",
    "entropy": "divergence",
    "evaluate": "evaluate",
    "evaluate_grid": "evaluate",
    "keep_indices": "scoring",
    "latency_and_memory": "evaluate",
    "load_model": "mllm",
    "probe": "probe",
    "probe_dataset": "probe",
    "rank_by_cls": "geometry",
    "read_probe": "probe",
    "redundancy_scores": "scoring",
    "replace_tokens": "perturb",
    "top1_probability": "divergence",
    "window": "geometry",
    "world_note": "probe",
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
    """Let ``rcblib.probe`` be the function although its module has the same name.

    Importing a module sets it as an attribute of its package; where a public function is called like its module, the
    function is set instead. ``from rcblib.probe import ...`` finds the module all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if _HOME.get(name) == name and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
