"""Count the operations of encoding, choosing, reading and probing from a model's shape, and the bytes an answer moves.

A multiplication and an addition are two. Counted are matrix products: two for each weight and row that goes through it,
and those of attention, of each row with all that it may attend to.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.footprint import cache_bytes
from benchmarks.weights import ModelShape, weight_bytes

WINDOW = 9
"""Tokens of the region around a position."""


def reading_operations(shape: ModelShape, n_before: int, n_new: int, n_last: int | None = None) -> int:
    """Count what the LLM does to read new rows behind some that it has read, and to say the logits of the last row.

    Parameters
    ----------
    shape : ModelShape
    n_before, n_new : int
        Rows read before, and new ones.
    n_last : int, optional
        New rows that go through what follows the last layer's attention, by default all. For a prompt's first logits
        one will do, which `rcblib.mllm.products.LastRows` makes use of.
    """
    n_left_out = 0 if n_last is None else n_new - n_last
    products = shape.parameters["layers"] * n_new - shape.after_attention * n_left_out
    pairs = n_new * n_before + n_new * (n_new + 1) // 2
    attention = 4 * shape.n_layers * shape.n_heads * shape.d_head * pairs
    return 2 * products + attention + 2 * shape.n_vocab * shape.d_model


def prefill_operations(shape: ModelShape, n_rows: int) -> int:
    """Count what the LLM does to read a prompt of so many rows and to say the logits of its last row."""
    return reading_operations(shape, 0, n_rows)


def probing_operations(
    shape: ModelShape,
    n_visual: int,
    n_text: tuple[int, int],
    firsts: Sequence[int] | None = None,
    is_shared: bool = True,
) -> dict[str, int]:
    """Count what the engine does to probe all positions of a picture that is encoded, level by level.

    Parameters
    ----------
    shape : ModelShape
    n_visual : int
        Rows of the picture.
    n_text : (int, int)
        Rows of text before and after it.
    firsts : sequence of int, optional
        First row of each window that differs from the others; by default one begins at every row.
    is_shared : bool
        Whether what inputs begin with is read once: the text before the picture, and, of the global level, whose inputs
        are the whole picture with one window replaced, all rows before that. Else every input is read whole.

    Returns
    -------
    dict
        The levels ``single``; ``region``, of windows intact and with one token replaced; and ``global``.
    """
    before, after = n_text
    firsts = range(n_visual) if firsts is None else firsts

    def read(n_shared: int, n_new: int) -> int:
        n_new, n_shared = (n_new, n_shared) if is_shared else (n_shared + n_new, 0)
        return reading_operations(shape, n_shared, n_new, 1)

    return {
        "single": n_visual * read(before, 1 + after),
        "region": (len(firsts) + n_visual) * read(before, WINDOW + after),
        "global": read(0, before + n_visual + after)
        + sum(read(before + first, n_visual - first + after) for first in firsts),
    }


def encoding_operations(shape: ModelShape, n_grids: int = 1) -> int:
    """Count what the vision encoder does to one picture of so many grids; of the connector, too."""
    weights = shape.parameters["vision"] + shape.parameters["connector"] / shape.n_merged
    attention = 4 * shape.n_vision_layers * shape.d_vision * shape.n_seen
    return round(n_grids * shape.n_vision_rows * (2 * weights + attention))


def selection_operations(shape: ModelShape, n_tokens: int, n_prototypes: int) -> int:
    """Count the matrix product of tokens and prototypes."""
    return 2 * n_tokens * n_prototypes * shape.d_model


def answer_bytes(shape: ModelShape, storage: str, n_rows: int, batch_size: int = 1) -> tuple[int, int]:
    """Count the bytes that are read to write one more token behind prompts of so many rows: weights, and the cache."""
    weights = weight_bytes(shape, storage)
    head = weights["head"] or weights["embeddings"]  # shared
    return weights["layers"] + head, cache_bytes(shape, storage, n_rows, batch_size)
