"""Say in one place what is supported, for every page that says so: families and methods, and their numbers.

Short names and numbers are substitutions of the book, such as ``{{ families }}``; tables are parts that pages include
from ``book/_build/support/``. It is read off the registries of the library; of other work it is in ``book/peers.yml``.

    python -m tools.make_support
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from rcblib.mllm.loading import ADAPTERS
from rcblib.pruners.context import QUESTION
from rcblib.pruners.every import KINDS, kind_of
from rcblib.pruners.registry import PRUNERS
from tools.notebook_list import read_notebook_list
from tools.write_parts import table, write_parts

ROOT = Path(__file__).resolve().parents[1]

FAMILIES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_5_vl": "Qwen2.5-VL",
}
"""What readers call the model types that have an adapter."""

BOUNDS = ("all", "oracle", "anti_oracle")
"""Registered names that are no methods: every token, and choices by the true masks."""


IN_LLM = KINDS[4]
"""Methods of this kind rank tokens by the attention of the prompt's text."""


def enumerated(names: list[str]) -> str:
    """Write names as an enumeration."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def takes_video(model_type: str) -> bool:
    """Tell whether the models of a type read videos, and so several pictures in one prompt."""
    settings = AutoConfig.for_model(model_type).to_dict()
    return any(name.startswith("video_token") for name in settings)


def n_methods() -> int:
    """Count the registered pruning methods, bounds left out."""
    return len(set(PRUNERS) - set(BOUNDS))


def n_published() -> int:
    """Count the registered methods of a paper: without controls, baselines of a release, ports and own variants."""
    return sum(
        method.paper == "the paper" or method.paper.startswith("arXiv ") for method in PRUNERS.values()
    )


def substitutions() -> dict[str, str | int]:
    """Return the names and numbers that pages may use."""
    return {
        "families": enumerated(list(FAMILIES.values())),
        "video_families": enumerated([FAMILIES[name] for name in FAMILIES if takes_video(name)]),
        "n_families": len(ADAPTERS),
        "n_methods": n_methods(),
        "n_published": n_published(),
    }


def families_text() -> str:
    """Write a table of the families."""
    rows = [
        [FAMILIES[name], f"`{name}`", "✓" if takes_video(name) else "–", f"{{py:mod}}`{kind.__module__}`"]
        for name, kind in ADAPTERS.items()
    ]
    return table(["family", "`model_type`", "several pictures, video", "adapter"], rows)


def asks(root: Path) -> str:
    """Tell how many methods look at the question: by its words, or by what the LLM's attention makes of it."""
    found = [
        method for method in PRUNERS.values() if QUESTION in method.needs or kind_of(method.label) == IN_LLM
    ]
    return f"{len(found)} methods do"


def films(root: Path) -> str:
    """Tell which families read several images and video."""
    return substitutions()["video_families"]


def harnesses(root: Path) -> str:
    """Name what scores are computed by."""
    return ", ".join(
        ["own tasks", *(["lmms-eval"] if "rcb" in entry_points(group="lmms_eval.models").names else [])]
    )


def notebooks(root: Path) -> str:
    """Count the notebooks."""
    return str(len({entry.name for entry in read_notebook_list(root / "workflow/notebooks.yml").notebooks}))


def pruners(root: Path) -> str:
    """Count the published methods, and all that are registered."""
    return f"{n_published()} published, {n_methods()} with controls and variants"


COUNTED: dict[str, Callable[[Path], str]] = {
    counted.__name__: counted for counted in (asks, films, harnesses, notebooks, pruners)
}
"""What the tables of other work read off the registries."""


def peers_text(own: Mapping[str, Any], root: Path) -> str:
    """Write a table of features: what is here, as registries and tests show it, beside what others offer."""
    rows = []
    for feature, row in own["rows"].items():
        here = row["here"]
        found = COUNTED[here](root) if here in COUNTED else "✓" * (root / f"tests/{here}.py").is_file()
        rows.append([feature, found or "✗", *row["others"]])
    return table(["", "here", *own["columns"]], rows)


def main(root: Path = ROOT) -> int:
    """Write the parts of pages."""
    peers = yaml.safe_load((root / "book/peers.yml").read_text(encoding="utf-8"))
    parts = {"families": families_text()}
    write_parts(
        root / "book/_build/support", parts | {name: peers_text(own, root) for name, own in peers.items()}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
