"""Say which of some visual tokens stay, and what stands in their places: what every pruner returns."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcblib.records import ParameterError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Reduced:
    """Say which of some visual tokens stay, and what stands in their places.

    Attributes
    ----------
    positions : torch.Tensor
        ``(n_kept,)`` int64, ascending: numbers of the tokens that stay, which also say at which positions they are
        read.
    rows : torch.Tensor or None
        ``(n_kept, d)`` new rows for those places, of merged or pooled tokens; ``None``: the tokens themselves.
    sizes : torch.Tensor or None
        ``(n_kept,)`` int64: how many tokens each row is made of; ``None``: one, or not told.
    """

    positions: torch.Tensor
    rows: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    def check(self, n_tokens: int, width: int, method: str) -> None:
        """Raise a `ParameterError` where this is no choice among some tokens, or its rows are unlike them.

        Parameters
        ----------
        n_tokens, width : int
            Tokens to choose among, and values in each.
        method : str
            What chose, for the message.
        """
        positions, rows = self.positions, self.rows
        is_good = str(getattr(positions, "dtype", "")) == "torch.int64" and positions.ndim == 1
        if is_good and len(positions):
            numbers = positions.tolist()  # at once: on a GPU each question by itself would wait for it
            is_ascending = all(map(operator.lt, numbers, numbers[1:]))
            is_good = is_ascending and 0 <= numbers[0] and numbers[-1] < n_tokens
        if not is_good:
            is_array = hasattr(positions, "flatten")
            given = positions.flatten().tolist()[:8] if is_array else type(positions).__name__
            accepted = f"ascending int64 numbers of {n_tokens} tokens, from {method}"
            raise ParameterError("positions", given, accepted)
        shape = (len(positions), width)
        if rows is not None and tuple(getattr(rows, "shape", ())) != shape:
            given = tuple(getattr(rows, "shape", ())) or type(rows).__name__
            raise ParameterError("rows", given, f"{shape}, from {method}")
        if rows is not None and not rows.isfinite().all():
            raise ParameterError("rows", "NaN or infinity among them", f"finite values, from {method}")
        sizes = self.sizes
        if sizes is not None and (sizes.shape != positions.shape or not bool((sizes >= 1).all())):
            raise ParameterError(
                "sizes", sizes.tolist()[:8], f"{len(positions)} counts from 1, from {method}"
            )
