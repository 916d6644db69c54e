"""List the families of models that adapters exist for, each as a small random model that contract tests are run on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_qwen
from transformers import SiglipVisionConfig

from rcblib.mllm.versions import READS_IMAGES_IN_CHUNKS

IN_CHUNKS = pytest.mark.skipif(
    not READS_IMAGES_IN_CHUNKS, reason="this transformers gives no images to a prompt that is read in chunks"
)

WITHOUT_CLS = frozenset({"received_attention", "keys", "hidden_states", "last_keys"})
WITH_CLS = WITHOUT_CLS | {"cls_similarity", "cls_attention", "last_cls_attention"}


@dataclass(frozen=True)
class Family:
    """Hold what the contract needs to know of a family.

    Attributes
    ----------
    build : callable
        Returns a small random model that never ends an answer, and its processor.
    sizes : tuple of (int, int)
        Width and height in pixels of three photos of different shapes.
    grids : tuple of list of (int, int)
        Height and width in tokens of the views of each of them.
    offers : frozenset of str
        Signals that the adapter can read.
    """

    build: Callable[[], tuple[Any, Any]]
    sizes: tuple[tuple[int, int], ...]
    grids: tuple[list[tuple[int, int]], ...]
    offers: frozenset[str] = frozenset()


def llava_with_siglip():
    """Build LLaVA-1.5 with SigLIP, which has no [CLS]."""
    return tiny.with_encoder(tiny.tiny_llava(), SiglipVisionConfig(**tiny.TINY_VISION), "full")


def llava_with_dinov2():
    """Build LLaVA-1.5 with DINOv2, whose positions are of 9 x 9 tokens and are interpolated to 6 x 6."""
    return tiny.with_dinov2(tiny.tiny_llava(), 36)


def next_with_dinov2():
    """Build LLaVA-NeXT with DINOv2 and an LLM whose head shares the word embeddings."""
    return tiny.with_dinov2(tiny.tiny_next(), 24, is_tied=True)


NEXT_GRIDS = ([(6, 6)] + [(5, 6)] * 4, [(6, 6)] + [(6, 3)] * 2, [(6, 6)] + [(6, 4)] * 3)
SIZES = ((40, 31), (24, 24), (20, 90))

FAMILIES = {
    "llava": Family(tiny.tiny_llava, SIZES, ([(6, 6)],) * 3, WITH_CLS),
    "llava with SigLIP": Family(llava_with_siglip, SIZES, ([(6, 6)],) * 3, WITHOUT_CLS),
    "llava with DINOv2": Family(llava_with_dinov2, SIZES, ([(6, 6)],) * 3, WITH_CLS),
    "llava_next": Family(tiny.tiny_next, SIZES, NEXT_GRIDS, WITH_CLS),
    "llava_next with DINOv2": Family(next_with_dinov2, SIZES, NEXT_GRIDS, WITH_CLS),
    "llava_onevision": Family(
        tiny.tiny_onevision,
        ((40, 31), (22, 22), (66, 66)),
        (
            [(5, 5)] + [(4, 5)] * 4,
            [(5, 5)] * 2,
            [(5, 5)] + [(3, 3), (3, 4), (3, 3), (4, 3), (4, 4), (4, 3), (3, 3), (3, 4), (3, 3)],
        ),
        WITHOUT_CLS,
    ),
    "qwen2_5_vl": Family(
        tiny_qwen.tiny_qwen, ((100, 60), (40, 130), (90, 90)), ([(2, 4)], [(5, 1)], [(3, 3)])
    ),
}


def blocks_of(page: str) -> list[str]:
    """List the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "book/adding_a_family.md").read_text(encoding="utf-8")
