"""Put a stand-in where a method would drop a token: what the token held is gone, the prompt is as long as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rcblib.mllm import Adapter
from rcblib.mllm.reduced import Reduced
from rcblib.pruners.base import Pruner
from rcblib.pruners.budget import Budget
from rcblib.pruners.context import PruningContext, tokens_of
from rcblib.records import ParameterError, VisualView

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class ReplacePruner(Pruner):
    """Let another method choose, and replace what it drops where it stands instead of cutting it out.

    Parameters
    ----------
    inner : Pruner
        The method that chooses, and whose layout and scope hold. What it makes of the tokens that stay, such as means
        of several, stays too.

    Notes
    -----
    The stand-in is that of leave-one-out (`rcblib.mllm.Adapter.replacement_embedding`).
    """

    inner: Pruner | None = None
    retain_ratio: float | None = field(default=None, init=False)
    position_ids: str = field(default="auto", init=False)
    layout: str = field(default="packed", init=False)
    scope: str = field(default="tile", init=False)

    def __post_init__(self):
        if not isinstance(self.inner, Pruner):
            raise ParameterError("inner", type(self.inner).__name__, "a pruner, such as RandomPruner(0.5)")
        for name in ("layout", "scope"):
            object.__setattr__(self, name, getattr(self.inner, name))
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        """Return what the method that chooses needs."""
        return self.inner.needs

    @property
    def seed(self) -> int | None:
        """Return the seed of the method that chooses, where it draws."""
        return getattr(self.inner, "seed", None)

    @property
    def resizes(self) -> bool:
        """Tell whether the method that chooses makes pictures smaller."""
        return self.inner.resizes

    def resize(self, pictures: Sequence[PIL.Image.Image], adapter: Adapter) -> list[PIL.Image.Image]:
        """Resize as the method that chooses."""
        return self.inner.resize(pictures, adapter)

    def budget(self) -> Budget:
        """Return the budget of the method that chooses."""
        return self.inner.budget()

    def description(self) -> dict[str, Any]:
        """Return the class, and the description of the method that chooses."""
        return {"class": type(self).__name__, "inner": self.inner.description()}

    def check(self, adapter: Adapter) -> None:
        """Check the method that chooses; one that drops inside the LLM leaves no places to fill."""
        self.inner.check(adapter)
        if self.inner.acts_inside:
            given = type(self.inner).__name__
            raise ParameterError("inner", f"{given}, which drops inside the LLM", "one that drops before it")

    def reduce(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> Reduced:
        """Return all positions, with the stand-in at those that the method drops."""
        chosen, tokens = self.inner.reduce(views, context), tokens_of(views)
        rows = context.adapter.replacement_embedding().to(tokens).expand_as(tokens).clone()
        at = chosen.positions.to(rows.device)
        rows[at] = tokens[at] if chosen.rows is None else chosen.rows.to(rows)
        return Reduced(torch.arange(len(tokens)), rows)
