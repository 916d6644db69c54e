"""Drop visual rows inside the LLM by what text attends to: what such methods share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from rcblib.mllm import Adapter
from rcblib.mllm.layer_state import LayerState, RowCounts, Spans
from rcblib.mllm.layers import FORMS, dropping
from rcblib.mllm.reduced import Reduced
from rcblib.pruners.base import Pruner
from rcblib.pruners.budget import Budget
from rcblib.records import ParameterError

PUBLISHED_LAYERS = 32
"""Layers of the LLMs (7B) for which published schedules name layers."""


@dataclass(frozen=True)
class InsidePruner(Pruner):
    """Keep in front of some layers the rows of an image that the prompt's text attends to most.

    All tokens enter the LLM. `n_retained` is the mean over its layers; newlines are rows like others. A subclass says
    in front of which layers which share of what entered stays, and may merge what does not.

    Parameters
    ----------
    retain_ratio : float
        Share of the rows that the method's schedule aims at, in [0, 1].
    form : {"gathered", "masked"}
        See `rcblib.mllm.layers`.
    position_ids : {"auto", "renumbered", "kept"}
        As in `Pruner`; where rows are renumbered, so they are at every layer that drops some, as are new tokens.
    """

    retain_ratio: float
    form: str = "gathered"

    attention_of: ClassVar[str] = "before"

    def __post_init__(self):
        if self.form not in FORMS:
            raise ParameterError("form", self.form, f"one of {FORMS}")
        super().__post_init__()

    @abstractmethod
    def schedule(self, n_layers: int) -> dict[int, float]:
        """Return the share of the rows which entered that stays in front of each layer, in an LLM of so many."""

    def check(self, adapter: Adapter) -> None:
        """Raise where the LLM is too shallow for the method's layers."""
        super().check(adapter)
        n_layers = len(adapter.language_model.layers)
        layers = list(self.schedule(n_layers))
        if not layers[-1] < n_layers:
            accepted = f"ones from 1 to {n_layers - 1}, as the LLM has {n_layers}"
            raise ParameterError("layers", layers, accepted)

    def n_rows(self, spans: Spans) -> int:
        """Return how many rows at the prompts' end the method asks about; by default the last."""
        return 1

    def relevance(self, state: LayerState) -> torch.Tensor:
        """Return ``(n_left,)`` how relevant each row of a prompt is; by default the attention of its last row."""
        return state.attention.mean(0)[-1]

    def reduced(self, state: LayerState, n_kept: Sequence[int]) -> list[Reduced]:
        """Return for each image of a prompt which of its rows stay, of which `n_kept` may; by default the relevant."""
        relevance = self.relevance(state)
        pairs = zip(state.spans, n_kept, strict=True)
        return [
            Reduced(Budget(count=n).keep(relevance[span.to(relevance.device)]).cpu()) for span, n in pairs
        ]

    def inside(self, adapter: Adapter, spans: Spans) -> AbstractContextManager[RowCounts]:
        """Drop rows by the schedule."""
        llm = adapter.language_model
        shares = self.schedule(len(llm.layers))

        def choose(state: LayerState) -> list[Reduced]:
            counts = [round(len(span) * shares[state.layer]) for span in state.entered_spans]
            return self.reduced(state, counts)

        return dropping(
            llm,
            spans,
            choose,
            tuple(shares),
            form=self.form,
            n_attention_rows=self.n_rows(spans),
            attention_of=self.attention_of,
            n_renumbered=0 if self.keeps_positions(adapter) else adapter.n_position_axes,
        )


def check_layers(layers: Sequence[int] | None, most: int) -> None:
    """Raise a `ParameterError` unless layers are left open, or one to `most` of them, ascending from 1."""
    if layers is None:
        return
    ascends = all(first < second for first, second in pairwise((0, *layers)))
    if not ascends or not 1 <= len(layers) <= most:
        raise ParameterError("layers", layers, f"one to {most} layers, ascending from 1")


def scaled_layers(published: Sequence[int], n_layers: int) -> list[int]:
    """Return layers at the same depth as those published for 32, at least 1, and one further where two coincide."""
    layers: list[int] = []
    for layer in published:
        scaled = round(layer * n_layers / PUBLISHED_LAYERS)
        layers.append(max(scaled, layers[-1] + 1 if layers else 1))
    return layers
