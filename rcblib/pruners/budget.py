"""Turn scores of visual tokens into the positions that stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rcblib.records import ParameterError
from rcblib.tensors.checks import check_features, check_integer
from rcblib.tensors.scoring import check_budget, lowest_share


@dataclass(frozen=True)
class Budget:
    """Say how many tokens of a set stay; exactly one of the first four is given.

    Attributes
    ----------
    retain_ratio : float or None
        Share in [0, 1]: the ``round(n_tokens * retain_ratio)`` highest scores, half to even, the earlier of two that
        tie.
    count : int or None
        So many of the highest scores, or all.
    cut_off : float or None
        Every score strictly above it, however many; it is rounded to the scores' dtype first.
    adaptive : callable or None
        Returns how many of the highest scores stay, from 0 to all, given ``(n_tokens,)`` scores.
    drops_ties : bool
        With `retain_ratio`: what is dropped is the ``round(n_tokens * (1 - retain_ratio))`` lowest scores and all that
        tie with the highest of them, so that fewer may stay.
    """

    retain_ratio: float | None = None
    count: int | None = None
    cut_off: float | None = None
    adaptive: Callable[[torch.Tensor], int] | None = None
    drops_ties: bool = False

    def __post_init__(self):
        kinds = {name: getattr(self, name) for name in ("retain_ratio", "count", "cut_off", "adaptive")}
        given = {name: value for name, value in kinds.items() if value is not None}
        if len(given) != 1:
            told = ", ".join(f"{name}={value}" for name, value in kinds.items())
            raise ParameterError("budget", told, f"exactly one of {', '.join(kinds)}")
        if self.count is not None:
            check_integer("count", self.count, 0)
        if self.retain_ratio is not None:
            check_budget(retain_ratio=self.retain_ratio)

    def n_kept(self, n_tokens: int) -> int:
        """Return how many of so many tokens stay, for methods that choose them jointly.

        Raises
        ------
        ParameterError
            If that depends on scores.
        """
        if self.retain_ratio is not None:
            return round(n_tokens * self.retain_ratio)
        if self.count is None:
            given = "cut_off" if self.adaptive is None else "adaptive"
            raise ParameterError("budget", given, "a share or a count, of a method without scores")
        return min(self.count, n_tokens)

    def keep(self, scores: torch.Tensor) -> torch.Tensor:
        """Choose tokens by their scores.

        Parameters
        ----------
        scores : torch.Tensor
            ``(n_tokens,)``, finite; higher = keep.

        Returns
        -------
        torch.Tensor
            ``(n_kept,)`` int64 positions, ascending.

        Raises
        ------
        ParameterError
            If the scores are not one-dimensional, or one of them is not finite.
        """
        check_features("scores", scores, "(n_tokens,)")
        if self.retain_ratio is not None:
            return lowest_share(-scores, self.retain_ratio, self.drops_ties)
        if self.cut_off is not None:
            cut = torch.tensor(self.cut_off, dtype=scores.dtype, device=scores.device)
            return torch.nonzero(scores > cut).flatten()
        n_kept = self.count if self.adaptive is None else int(self.adaptive(scores))
        if not 0 <= n_kept:
            raise ParameterError("adaptive", n_kept, "a function that returns 0 or more")
        return scores.argsort(descending=True, stable=True)[:n_kept].sort().values
