"""Measure what a machine can do at most: how fast a large matrix product is, on one thread and on all."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch.nn.functional import linear

SIZE, REPEATS = 2048, 8
"""Rows and columns of the product, and of how many the fastest counts."""


class Speed(NamedTuple):
    """Hold operations a second of a product of float32 matrices on the CPU.

    Two cores that share their units, as a virtual machine's may, are hardly faster than one: then everything that
    multiplies large matrices is as slow as on one core, and ratios to what does not are smaller.

    Attributes
    ----------
    one, every : float
        On one thread, and on all.
    n_threads : int
        How many these are.
    """

    one: float
    every: float
    n_threads: int

    def __str__(self) -> str:
        """Tell it in one line."""
        return (
            f"matrix product: {self.one / 1e9:.0f} GFLOP/s on one thread, {self.every / 1e9:.0f} on "
            f"{self.n_threads}, {self.every / self.one:.2f} times as fast"
        )


def speed() -> Speed:
    """Measure it in this process."""
    matrix = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    n_threads, found = torch.get_num_threads(), []
    for n in (1, n_threads):
        torch.set_num_threads(n)
        found.append(2 * SIZE**3 / min(_seconds(matrix) for _ in range(REPEATS)))
    return Speed(*found, n_threads)


def _seconds(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    linear(matrix, matrix)
    return time.perf_counter() - start
