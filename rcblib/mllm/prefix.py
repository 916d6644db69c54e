"""Read many prompts that begin alike: what they have in common is computed once, and only what follows for each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from rcblib.mllm.prompt import AssembledPrompt, Batch

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of some rows in each layer, ``(1, n_heads, n, d_head)``."""


class _Beginning(DynamicLayer):
    """Put what prompts begin with before the keys and values of a pass, and hold nothing of the pass."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that the rows of a pass attend to."""
        n = len(key_states)
        pairs = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([held.expand(n, -1, -1, -1), new], dim=-2) for held, new in pairs)
        return keys, values


class SharedPrefix:
    """Hold the keys and values of rows that prompts begin with: of the longest beginning that was read.

    Attention is causal, so a row's keys and values depend on the rows up to it alone, and prompts that begin with the
    same rows at the same positions share them. Prompts are compared row by row; nothing is assumed of them.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model as it is: whoever changes its weights needs another prefix.
    embed : callable
        Makes word embeddings ``(n, d_model)`` of ids ``(n,)``.

    Attributes
    ----------
    n_fitting : int
        How many prompts fit into memory at once, as far as was found out.

    Notes
    -----
    Holds one prompt's keys and values, besides what a batch needs. Logits are those of passes over whole prompts but
    for rounding.
    """

    def __init__(self, model: Any, embed: Callable[[torch.Tensor], torch.Tensor]):
        self.n_fitting: int = sys.maxsize
        self._model, self._embed = model, embed
        self._rows: torch.Tensor | None = None  # (n, d_model)
        self._positions: torch.Tensor | None = None  # (n_axes, n) on the CPU
        self._layers: Layers = []

    @torch.no_grad()
    def next_token_logits(self, prompts: Sequence[AssembledPrompt]) -> torch.Tensor:
        """Return what `LanguageSide.next_token_logits` returns: ``(n, n_vocab)``, on the model's device."""
        rows = [prompt.embeds(self._embed) for prompt in prompts]
        positions, first = [prompt.positions for prompt in prompts], rows[0]
        common = _n_common(rows, positions, min(map(len, rows)) - 1)  # a row of each at least is left to read
        known, layers = min(common, self._n_known(first, positions[0])), self._layers
        if len(prompts) > 1 and known < common:  # one reads it for all
            cache = self._forward(prompts[:1], [first], slice(known, common), layers)[1]
            layers, known = self._keep(cache, first[:common], positions[0][:, :common]), common
        logits, cache = self._forward(prompts, rows, slice(known, None), layers)
        if len(prompts) == 1:
            self._keep(cache, first, positions[0])
        return logits

    def _n_known(self, rows: torch.Tensor, positions: torch.Tensor) -> int:
        """Count with how many of the rows held some rows begin."""
        if self._rows is None:
            return 0
        return _n_common([rows, self._rows], [positions, self._positions], min(len(rows), len(self._rows)))

    def _keep(self, cache: Cache, rows: torch.Tensor, positions: torch.Tensor) -> Layers:
        """Return the keys and values of some rows, and hold them if they are more than those held."""
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        if self._rows is None or len(rows) > len(self._rows):
            self._layers, self._rows, self._positions = layers, rows, positions
        return layers

    def _forward(
        self, prompts: Sequence[AssembledPrompt], rows: list[torch.Tensor], part: slice, layers: Layers
    ) -> tuple[torch.Tensor, Cache | None]:
        """Read a part of each prompt behind the first of `layers`; `rows` are let go when they are in the batch."""
        known, cache = part.start, None
        if len(prompts) == 1:
            cache = DynamicCache()
        elif known:
            cache = Cache([])
        for number, layer in enumerate(layers if known else ()):
            keys, values = (each[:, :, :known] for each in layer)
            if len(prompts) == 1:
                cache.update(keys, values, number)
            else:
                cache.layers.append(_Beginning(keys, values))
        batch = Batch(prompts, part)
        embeds = batch.padded(rows.pop(0)[part] for _ in prompts)
        is_there = torch.cat([torch.ones(len(prompts), known, dtype=torch.long), batch.attention_mask], dim=1)
        output = self._model(
            inputs_embeds=embeds,
            attention_mask=is_there.to(embeds.device),
            position_ids=batch.position_ids.to(embeds.device),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
        return output.logits[:, -1], cache


def _n_common(rows: Sequence[torch.Tensor], positions: Sequence[torch.Tensor], most: int) -> int:
    """Count the rows, `most` at most, with which all begin, at the same positions."""
    if len(rows) == 1:
        return most
    if len({len(each) for each in positions}) > 1:
        return 0
    for other, places in zip(rows[1:], positions[1:], strict=True):
        same = (other[:most] == rows[0][:most]).all(-1).cpu()
        same &= (places[:, :most] == positions[0][:, :most]).all(0)
        most = most if same.all() else int(same.logical_not().nonzero()[0])
    return most
