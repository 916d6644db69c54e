"""Say where visual rows are in assembled prompts, and what a method may look at that drops them inside the LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rcblib.mllm.reduced import Reduced


@dataclass(frozen=True)
class Spans:
    """Say where the visual rows of a batch of assembled prompts are.

    Attributes
    ----------
    n_prompts, n_columns : int
        Prompts, and columns of the longest; shorter ones are padded on the left.
    images : tuple of (int, torch.Tensor)
        For each image and video, in prompt order, the prompt it is in and the ascending columns of its rows there,
        newlines included, int64 on the CPU.
    """

    n_prompts: int
    n_columns: int
    images: tuple[tuple[int, torch.Tensor], ...]


@dataclass(frozen=True)
class LayerState:
    """Hold what a method may look at when it drops rows of one prompt in front of a layer.

    Attributes
    ----------
    layer : int
        The layer that reads next.
    hidden_states : torch.Tensor
        ``(n_left, d_model)`` rows of the prompt that are still there, text among them, padding not.
    spans : tuple of torch.Tensor
        For each image of the prompt ``(n_span,)`` places of its rows among them.
    attention : torch.Tensor or None
        ``(n_heads, n_rows, n_left)`` float32: what the prompt's last `n_rows` rows attend to, in the layer before or as
        they would in the next; each sums to 1. ``None`` where it was not asked for.
    entered : torch.Tensor
        ``(n_prompt, d_model)`` all rows of the prompt as they entered the LLM.
    entered_spans : tuple of torch.Tensor
        For each image of the prompt the places of its rows among `entered`.
    """

    layer: int
    hidden_states: torch.Tensor
    spans: tuple[torch.Tensor, ...]
    attention: torch.Tensor | None
    entered: torch.Tensor
    entered_spans: tuple[torch.Tensor, ...]


Choose = Callable[[LayerState], Sequence[Reduced]]
"""Says for each of `LayerState.spans` which of its rows stay, and what new hidden states stand in their places."""


class RowCounts:
    """Tell how many rows of each image the layers of an LLM read."""

    def __init__(self, spans: Spans, n_layers: int):
        self.by_layer = [[len(columns)] * n_layers for _, columns in spans.images]

    @property
    def means(self) -> list[float]:
        """Return for each image its rows, as the mean over all layers."""
        return [sum(counts) / len(counts) for counts in self.by_layer]
