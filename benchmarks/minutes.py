"""Compute how long probing and answering take on a card, from operations, bytes and the card's data sheet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.footprint import Footprint, generation, probing
from benchmarks.operations import answer_bytes, encoding_operations, prefill_operations, probing_operations
from benchmarks.weights import ModelShape

USED = 0.4
"""Share of a card's peaks that is taken to be reached; an assumption, not a measurement."""


@dataclass(frozen=True)
class Card:
    """Hold what a card's data sheet says, and how a 7B model is stored on it.

    Attributes
    ----------
    operations : float
        Operations a second of dense products in 16 bit at most; a multiplication and an addition are two.
    bandwidth : float
        Bytes a second that memory hands over at most.
    storage : str
        As in `benchmarks.weights.weight_bytes`.
    """

    operations: float
    bandwidth: float
    storage: str


CARDS = {
    "T4 16 GB": Card(65e12, 320e9, "4bit"),
    "A100 40 GB": Card(312e12, 1555e9, "half"),
}
"""Of NVIDIA's data sheets: T4 Tensor Core GPU, 65 TFLOPS in FP16 and 320 GB/s; A100 40 GB, 312 TFLOPS without sparsity
and 1,555 GB/s. Names are those of `benchmarks.footprint.CARDS`."""


@dataclass(frozen=True)
class Expected:
    """Hold the seconds that a job is computed to take, and its memory."""

    seconds: float
    footprint: Footprint


def probing_on(
    card: Card,
    shape: ModelShape,
    n_visual: int,
    n_grids: int,
    *,
    n_images: int,
    n_text: int,
    batch_size: int,
    share: float = 1.0,
) -> Expected:
    """Compute probing a share of the positions of some images, every input read whole, as in 16 bit."""
    levels = probing_operations(shape, n_visual, (n_text // 2, n_text - n_text // 2), is_shared=False)
    operations = encoding_operations(shape, n_grids) + share * sum(levels.values())
    needs = probing(shape, card.storage, n_visual, n_grids=n_grids, n_text=n_text, batch_size=batch_size)
    return Expected(n_images * operations / (card.operations * USED), needs)


def answering_on(
    card: Card,
    shape: ModelShape,
    n_visual: int,
    n_grids: int,
    *,
    n_images: int,
    n_questions: int,
    ratios: list[float],
    n_text: int,
    n_new: int,
    batch_size: int,
) -> Expected:
    """Compute answering all questions once at each share of the tokens, in batches, images encoded once.

    Products bound the reading of prompts, memory's bandwidth the writing of answers, which are taken to be as long as
    they may be.
    """
    seconds = n_images * encoding_operations(shape, n_grids) / (card.operations * USED)
    n_batches = math.ceil(n_questions / batch_size)
    for ratio in ratios:
        n_prompt = round(n_visual * ratio) + n_text
        moved = sum(answer_bytes(shape, card.storage, n_prompt + n_new // 2, batch_size))
        seconds += n_questions * prefill_operations(shape, n_prompt) / (card.operations * USED)
        seconds += n_batches * n_new * moved / (card.bandwidth * USED)
    needs = generation(
        shape, card.storage, n_visual, n_grids=n_grids, n_text=n_text, n_new=n_new, batch_size=batch_size
    )
    return Expected(seconds, needs)
