"""Count the operations of encoding, choosing and reading from a model's shape, and the bytes that an answer moves.

A multiplication and an addition are two. Counted are matrix products: two for each weight and row that goes through it,
and those of attention, of each row with all that it may attend to.
"""

from __future__ import annotations

from benchmarks.footprint import cache_bytes
from benchmarks.weights import ModelShape, weight_bytes


def reading_operations(shape: ModelShape, n_before: int, n_new: int) -> int:
    """Count what the LLM does to read new rows behind some that it has read, and to say the logits of the last row."""
    pairs = n_new * n_before + n_new * (n_new + 1) // 2
    attention = 4 * shape.n_layers * shape.n_heads * shape.d_head * pairs
    return 2 * shape.parameters["layers"] * n_new + attention + 2 * shape.n_vocab * shape.d_model


def prefill_operations(shape: ModelShape, n_rows: int) -> int:
    """Count what the LLM does to read a prompt of so many rows and to say the logits of its last row."""
    return reading_operations(shape, 0, n_rows)


def encoding_operations(shape: ModelShape, n_grids: int = 1) -> int:
    """Count what the vision encoder does to one picture of so many grids; of the connector, too."""
    weights = shape.parameters["vision"] + shape.parameters["connector"]
    attention = 4 * shape.n_vision_layers * shape.d_vision * shape.n_vision_rows
    return n_grids * shape.n_vision_rows * (2 * weights + attention)


def selection_operations(shape: ModelShape, n_tokens: int, n_prototypes: int) -> int:
    """Count the matrix product of tokens and prototypes."""
    return 2 * n_tokens * n_prototypes * shape.d_model


def answer_bytes(shape: ModelShape, storage: str, n_rows: int, batch_size: int = 1) -> tuple[int, int]:
    """Count the bytes that are read to write one more token behind prompts of so many rows: weights, and the cache."""
    weights = weight_bytes(shape, storage)
    head = weights["head"] or weights["embeddings"]  # shared
    return weights["layers"] + head, cache_bytes(shape, storage, n_rows, batch_size)
