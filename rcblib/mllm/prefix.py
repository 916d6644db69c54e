"""Read many prompts that begin alike: what they have in common is computed once, and only what follows for each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from rcblib.mllm.products import LastRows
from rcblib.mllm.prompt import AssembledPrompt, Batch
from rcblib.records import ParameterError
from rcblib.runs.errors import is_out_of_memory

SHARING = ("auto", "always", "never")

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of some rows in each layer, ``(1, n_heads, n, d_head)``."""

ROWS_AT_ONCE = {"cpu": 2048, "cuda": 32_768}
"""Rows from which on a pass is no faster a row: a CPU's caches are full, a GPU's units are busy."""

SHARE_OF_MEMORY = 0.6
"""Of what is free on a GPU, what a pass may take by `_bytes_a_row`, which leaves out what kernels need besides."""


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
    """Read prompts in batches, and hold the keys and values of rows that they begin with: of the longest beginning.

    Attention is causal, so a row's keys and values depend on the rows up to it alone, and prompts that begin with the
    same rows at the same positions share them. Prompts are compared row by row; nothing is assumed of them. Only the
    last row of each is read, so what follows the last layer's attention is computed for that one alone.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model as it is: whoever changes its weights needs another prefix.
    layers : sequence of torch.nn.Module
        Of its LLM.
    embed : callable
        Makes word embeddings ``(n, d_model)`` of ids ``(n,)``.
    sharing : {"auto", "always", "never"}
        Whether beginnings are shared: by default in float32 and above, where it changes results by rounding that does
        not show. In half precision rounding alone moves a word's probability by up to 0.04, as one order of
        operations or another does: ``"always"`` is as right as whole passes, but not the same.
    compiled : bool
        Whether passes are compiled, by ``torch.compile`` for any number of rows: minutes at first, for many inputs.

    Attributes
    ----------
    n_fitting : int
        How many prompts fit into memory at once, as far as was found out.

    Raises
    ------
    ParameterError
        If `sharing` is none of these.

    Notes
    -----
    Holds one prompt's keys and values, besides what a batch needs. Logits are those of passes over whole prompts but
    for rounding. Compiling joins what lies between matrix products; CUDA graphs would save the start of kernels, which
    passes of thousands of rows do not wait for, and ask for as many rows each time, which the global level has not.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[torch.nn.Module],
        embed: Callable[[torch.Tensor], torch.Tensor],
        sharing: str = "auto",
        compiled: bool = False,
    ):
        if sharing not in SHARING:
            raise ParameterError("sharing", sharing, ", ".join(SHARING))
        self.n_fitting: int = sys.maxsize
        self.is_shared = sharing == "always" or sharing == "auto" and model.dtype.itemsize >= 4
        self._model, self._embed, self._last = model, embed, LastRows(layers)
        self._compiled = torch.compile(model, dynamic=True) if compiled else None
        self._rows: torch.Tensor | None = None  # (n, d_model)
        self._positions: torch.Tensor | None = None  # (n_axes, n) on the CPU
        self._layers: Layers = []

    def first_logits(self, prompts: Sequence[AssembledPrompt], batch_size: int | None = None) -> torch.Tensor:
        """Compute the logits after some prompts, a batch at a time, halved where memory does not suffice.

        Parameters
        ----------
        prompts : sequence of AssembledPrompt
            Those of one length share most where they come in the order of what differs first.
        batch_size : int, optional
            Prompts a pass at most. Where beginnings are shared, and by default, no more than fit into memory and are
            faster together.

        Returns
        -------
        torch.Tensor
            ``(n, n_vocab)`` float32 on the CPU.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        logits = torch.empty(len(prompts), self._model.config.get_text_config().vocab_size)
        while order:
            size = batch_size or sys.maxsize
            if self.is_shared or not batch_size:  # else batches are as they were recorded
                size = min(size, self._n_at_once(prompts[order[-1]]))
            batch = order[: min(size, self.n_fitting)]
            try:
                logits[batch] = self.next_token_logits([prompts[i] for i in batch]).float().cpu()
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                self.n_fitting = len(batch) // 2
                continue
            order = order[len(batch) :]
        return logits

    @torch.no_grad()
    def next_token_logits(self, prompts: Sequence[AssembledPrompt]) -> torch.Tensor:
        """Return ``(n, n_vocab)`` logits after some prompts, on the model's device, from one batch."""
        rows = self._embedded(prompts)
        if not self.is_shared:
            return self._forward(prompts, rows, slice(None), [])[0]
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

    def _n_at_once(self, longest: AssembledPrompt) -> int:
        """Return how many prompts of a length are read together where nobody says so."""
        device, own = self._model.device, len(longest)
        if self.is_shared and longest.spans:
            own -= longest.spans[0][0]
        most = ROWS_AT_ONCE.get(device.type, ROWS_AT_ONCE["cpu"]) // own
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            most = min(most, int(SHARE_OF_MEMORY * free / (len(longest) * _bytes_a_row(self._model))))
        return max(most, 1)

    def _embedded(self, prompts: Sequence[AssembledPrompt]) -> list[torch.Tensor]:
        """Return the rows of each prompt, ``(n_rows, d_model)``; words of the same prompt are looked up once."""
        words: dict[int, torch.Tensor] = {}

        def embed(ids: torch.Tensor) -> torch.Tensor:
            if id(ids) not in words:
                words[id(ids)] = self._embed(ids)
            return words[id(ids)]

        return [prompt.embeds(embed) for prompt in prompts]

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
        known, cache = part.start or 0, None
        if self.is_shared and len(prompts) == 1:
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
        output = self._call(
            inputs_embeds=embeds,
            attention_mask=is_there.to(embeds.device),
            position_ids=batch.position_ids.to(embeds.device),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
        return output.logits[:, -1], cache

    def _call(self, **inputs: Any) -> Any:
        if self._compiled is not None:
            return self._compiled(**inputs)
        if not self.is_shared:  # as it was recorded, bit for bit
            return self._model(**inputs)
        with self._last:
            return self._model(**inputs)


def _bytes_a_row(model: Any) -> int:
    """Estimate what a row of a pass takes at its widest: in the feed-forward part, beside what came in."""
    config = model.config.get_text_config()
    return model.dtype.itemsize * (8 * config.hidden_size + 3 * config.intermediate_size)


def _n_common(rows: Sequence[torch.Tensor], positions: Sequence[torch.Tensor], most: int) -> int:
    """Count the rows, `most` at most, with which all begin, at the same positions."""
    if len(rows) == 1:
        return most
    if len({len(each) for each in positions}) > 1:
        return 0
    same = torch.ones(most, dtype=torch.bool)
    for first, *others in (rows, [each.T for each in positions]):
        others = torch.stack([other[:most] for other in others])
        same &= (others == first[:most]).all(-1).all(0).cpu()
    return most if same.all() else int(same.logical_not().nonzero()[0])
