"""Drop visual tokens at a layer of the LLM: what an LLM's layers are given is changed here and nowhere else.

Two forms give the same answers. *Masked*: every row goes on through all layers, and from a layer on no row attends to
those that were dropped; nothing is moved, whatever the batch. *Gathered*: from that layer on hidden states, position
embeddings, masks and key-value cache hold only the rows that stay, which is what saves time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rcblib.mllm.hooks import hooked
from rcblib.mllm.layer_state import Choose, LayerState, RowCounts, Spans
from rcblib.mllm.reduced import Reduced
from rcblib.mllm.versions import CACHE
from rcblib.records import ParameterError, UnsupportedModelError

FORMS = ("gathered", "masked")
ATTENTION_OF = ("before", "next")

ROTATION = "position_embeddings"
"""Argument of a layer: cosines and sines by which queries and keys are turned."""


@contextmanager
def dropping(
    llm: Any,
    spans: Spans,
    choose: Choose,
    layers: Sequence[int],
    *,
    form: str = "gathered",
    n_attention_rows: int = 0,
    attention_of: str = "before",
    n_renumbered: int = 0,
) -> Iterator[RowCounts]:
    """Let an LLM read fewer visual rows from some layers on, while this thread runs it inside the ``with`` block.

    Rows are chosen while the prompt is read; tokens generated afterwards see the same rows. Rows are chosen once for a
    prompt; its beams and returned sequences share them.

    Parameters
    ----------
    llm : transformers.PreTrainedModel
        The decoder: Llama, Qwen2, or that of Qwen2.5-VL, with ``sdpa`` or ``eager`` attention.
    spans : Spans
        Where the visual rows are.
    choose : callable
        Called for every prompt with images and every one of `layers`.
    layers : sequence of int
        Layers in front of which rows are dropped, from 1 to the last.
    form : {"gathered", "masked"}
        See the module.
    n_attention_rows : int
        Rows at the prompt's end whose attention `choose` gets; 1: that of the last token.
    attention_of : {"before", "next"}
        Whether it is that of the layer before, or of the next if it read what is left so far.
    n_renumbered : int
        0: what stays keeps its positions, and new tokens theirs. Else the number of axes on which the LLM counts: from
        each layer that drops rows on, what is left is numbered one after the other, the same on all axes, as prompts
        must have been before.

    Yields
    ------
    RowCounts
        Filled while the LLM runs.

    Raises
    ------
    UnsupportedModelError
        On another attention implementation.
    ParameterError
        On an unknown form, a layer out of range, or, inside the block, a prompt that is read in parts, something else
        from `choose` than a `Reduced` for every span that passes `Reduced.check`, or, gathered, a cache that does not
        grow.
    """
    n_layers = len(llm.layers)
    for name, given, accepted in (("form", form, FORMS), ("attention_of", attention_of, ATTENTION_OF)):
        if given not in accepted:
            raise ParameterError(name, given, f"one of {accepted}")
    if not layers or not all(isinstance(layer, int) and 1 <= layer < n_layers for layer in layers):
        raise ParameterError("layers", list(layers), f"layers from 1 to {n_layers - 1}")
    if llm.config._attn_implementation not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"attention: got {llm.config._attn_implementation!r}; supported inside the LLM: 'sdpa', 'eager'"
        )
    counts = RowCounts(spans, n_layers)
    state = _Dropping(llm, spans, choose, sorted(set(layers)), form == "gathered", n_attention_rows, counts)
    state.looks_ahead, state.n_renumbered = attention_of == "next", n_renumbered
    hooks = {llm.layers[number]: state.hook(number) for number in {0, *range(min(layers) - 1, n_layers)}}
    with hooked(hooks, before=True, with_kwargs=True):
        yield counts


class _Dropping:
    """Follow which rows are left while an LLM runs, and change what its layers are given.

    Attributes
    ----------
    given : list of torch.Tensor
        For each input of the batch its columns of the prompt, padding not among them.
    left, places : list of torch.Tensor
        For each input of the batch its columns of the prompt that are left, ascending, and where they lie in the
        hidden states; padding is in neither.
    images : list of dict
        For each input the number of an image to those of its columns that are left.
    there : dict
        For each layer what of the prompts new rows attend to there, as `_is_there`.
    """

    def __init__(
        self,
        llm: Any,
        spans: Spans,
        choose: Choose,
        layers: list[int],
        gathers: bool,
        n_attention_rows: int,
        counts: RowCounts,
    ):
        self.is_eager = llm.config._attn_implementation == "eager"
        self.turn, self.n_renumbered = llm.rotary_emb, 0
        self.spans, self.choose, self.layers, self.counts = spans, choose, layers, counts
        self.gathers, self.n_attention_rows = gathers, n_attention_rows
        self.n_columns = spans.n_columns
        self.looks_ahead = False
        self.entered = torch.empty(0)
        self.given: list[torch.Tensor] = []
        self.left: list[torch.Tensor] = []
        self.places: list[torch.Tensor] = []
        self.images: list[dict[int, torch.Tensor]] = []
        self.before: tuple[Any, torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None = None
        self.mask: tuple[Any, Any] | None = None  # as given, and as changed
        self.there: dict[int, torch.Tensor] = {}

    def hook(self, number: int) -> Callable[[Any, tuple, dict], tuple[tuple, dict]]:
        """Return what changes the arguments of a layer."""

        def change(module: Any, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict]:
            hidden, named, cache = arguments[0], dict(named), named.get(CACHE)
            n_cached = 0 if cache is None else int(cache.get_seq_length(number))
            if n_cached and number >= self.layers[0]:
                mask, there = named["attention_mask"], self.there[number]
                named["attention_mask"] = self._mask_of_new(hidden, mask, there, n_cached)
                if self.n_renumbered:
                    named[ROTATION] = self._rotation_of_new(hidden, there, n_cached)
            if n_cached == 0:  # the prompt
                if number == 0:
                    self.entered = hidden
                if number == self.layers[0]:
                    self._begin(hidden, named["attention_mask"], cache)
                if number in self.layers:
                    if self.looks_ahead:
                        is_first = number == self.layers[0]
                        rotation = named[ROTATION] if is_first else self._rotation(named, hidden.device)
                        self.before = (module, hidden, rotation)
                    hidden = self._drop(number, hidden)
                if number >= self.layers[0]:
                    self._change_arguments(hidden, named)
                    self.there[number] = self._is_there
                self.before = (module, hidden, named[ROTATION])
            return (hidden, *arguments[1:]), named

        return change

    def _begin(self, hidden: torch.Tensor, mask: torch.Tensor | None, cache: Any) -> None:
        """Start with all rows of prompts that have come to the first layer that drops some."""
        n_inputs, n_columns = hidden.shape[:2]
        if n_columns < self.spans.n_columns or n_inputs % self.spans.n_prompts:
            accepted = (
                f"{self.spans.n_prompts} prompts of {self.spans.n_columns} rows, read at once (no "
                "prefill_chunk_size) by a method that acts inside the LLM"
            )
            raise ParameterError("prompt", f"{n_inputs} inputs of {n_columns} rows", accepted)
        kinds = set() if cache is None else {type(layer) for layer in cache.layers}
        if self.gathers and not kinds <= {DynamicLayer}:
            given = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ParameterError("past_key_values", given, "a cache that grows, with the gathered form")
        self.n_columns, n_each = n_columns, n_inputs // self.spans.n_prompts
        self.left = [torch.arange(n_columns)] * n_inputs
        if mask is not None:  # a prompt's last row attends to all that is no padding
            self.left = [own.nonzero().flatten() for own in self._allowed(mask, n_inputs)[:, -1].cpu()]
        self.given = list(self.left)
        self.places = [own.to(hidden.device) for own in self.left]
        self.images = [
            {i: own for i, (prompt, own) in enumerate(self.spans.images) if prompt == row // n_each}
            for row in range(n_inputs)
        ]

    def _drop(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Let the method choose in front of a layer; return the hidden states that go on."""
        hidden, n_each = hidden.clone(), len(self.images) // self.spans.n_prompts
        for row, images in enumerate(self.images):
            left, places = self.left[row], self.places[row].to(hidden.device)
            stays = torch.ones(len(left), dtype=torch.bool)
            spans = tuple(torch.searchsorted(left, columns) for columns in images.values())
            if row % n_each == 0:  # the first of a prompt's beams, which change places later
                attention = self._attention(row) if self.n_attention_rows and images else None
                reduced = self._chosen(self._state(number, hidden, row, attention)) if images else ()
            for i, span, own in zip(tuple(images), spans, reduced, strict=True):
                positions = own.positions.cpu()
                stays[span] = False
                stays[span[positions]] = True
                if own.rows is not None:
                    hidden[row, places[span[positions].to(places.device)]] = own.rows.to(hidden)
                images[i] = images[i][positions]
                counts = self.counts.by_layer[i]
                counts[number:] = [len(positions)] * (len(counts) - number)
            self.left[row], self.places[row] = left[stays], places[stays.to(places.device)]
        self.mask = None
        if not self.gathers:
            return hidden
        longest = max(map(len, self.places))
        index = torch.stack([F.pad(own, (longest - len(own), 0)) for own in self.places])
        self.places = [torch.arange(longest - len(own), longest, device=hidden.device) for own in self.left]
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))

    def _state(
        self, number: int, hidden: torch.Tensor, row: int, attention: torch.Tensor | None
    ) -> LayerState:
        """Return what a method may look at of an input."""
        left, given = self.left[row], self.given[row]
        spans = tuple(torch.searchsorted(left, columns) for columns in self.images[row].values())
        entered_spans = tuple(torch.searchsorted(given, self.spans.images[i][1]) for i in self.images[row])
        entered = self.entered[row, given.to(self.entered.device)]
        return LayerState(
            number, hidden[row, self.places[row].to(hidden.device)], spans, attention, entered, entered_spans
        )

    def _chosen(self, state: LayerState) -> Sequence[Reduced]:
        """Return what the method chooses, checked."""
        reduced = self.choose(state)
        name = getattr(self.choose, "__qualname__", type(self.choose).__name__)
        is_list = isinstance(reduced, Sequence) and all(isinstance(own, Reduced) for own in reduced)
        if not is_list or len(reduced) != len(state.spans):
            given = f"{len(reduced)} of them" if is_list else type(reduced).__name__
            raise ParameterError("choose", given, f"a sequence of {len(state.spans)} Reduced, from {name}")
        for span, own in zip(state.spans, reduced, strict=True):
            own.check(len(span), state.hidden_states.shape[-1], name)
        return reduced

    def _attention(self, row: int) -> torch.Tensor:
        """Return what the last rows of an input's prompt attend to in the layer before, as that layer computes it."""
        module, hidden, rotation = self.before
        attention, left, places = module.self_attn, self.left[row], self.places[row].to(hidden.device)
        asking = (left < self.spans.n_columns).nonzero().flatten()[-self.n_attention_rows :]
        states = module.input_layernorm(hidden[row : row + 1, places])
        cos, sin = (part.expand(len(hidden), -1, -1)[row : row + 1, places] for part in rotation)
        shape = (1, len(places), -1, attention.head_dim)
        query, key = (
            project(states).view(shape).transpose(1, 2) for project in (attention.q_proj, attention.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        key = key[0].repeat_interleave(attention.num_key_value_groups, 0)  # (n_heads, n_left, d_head)
        scores = query[0][:, asking.to(query.device)] @ key.transpose(-1, -2) * attention.scaling
        is_later = torch.arange(len(left)) > asking[:, None]
        return scores.float().masked_fill(is_later.to(scores.device), -torch.inf).softmax(-1)

    def _allowed(self, mask: torch.Tensor | None, n_inputs: int) -> torch.Tensor:
        """Return a mask of the prompts as ``(n_inputs, n_columns, n_columns)``: who may attend to whom."""
        n = self.n_columns
        if mask is None:
            return torch.ones(n, n, dtype=torch.bool).tril().expand(n_inputs, n, n)
        return _as_bool(mask)[:, 0, :, :n].expand(n_inputs, -1, -1)

    def _change_arguments(self, hidden: torch.Tensor, named: dict[str, Any]) -> None:
        """Change what a layer is given beside the prompts' hidden states."""
        mask, device = named["attention_mask"], hidden.device
        if self.mask is None or self.mask[0] is not mask:
            self.mask = (mask, self._mask_of_prompts(hidden, mask))
        named["attention_mask"] = self.mask[1]
        named[ROTATION] = self._rotation(named, device)
        if self.gathers:
            rows, index = torch.arange(len(self.left), device=device)[:, None], self._index.to(device)
            if named.get("position_ids") is not None:
                named["position_ids"] = named["position_ids"].expand(len(rows), -1)[rows, index]

    def _rotation(self, named: dict[str, Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the position embeddings of the rows that are left, where they are in the hidden states."""
        rotation = named[ROTATION]
        if not self.gathers and not self.n_renumbered:
            return rotation
        rows, index = torch.arange(len(self.left), device=device)[:, None], self._index.to(device)
        if self.n_renumbered:  # positions of the first rows of the prompt, as many as are left
            index = torch.arange(self.n_columns).expand(len(self.left), -1).clone()
            for row, (given, left, places) in enumerate(zip(self.given, self.left, self.places, strict=True)):
                index[row, places.cpu()] = given[: len(left)]
            index = index[:, : max(map(len, self.left)) if self.gathers else None].to(device)
        return tuple(part.expand(len(rows), -1, -1)[rows, index] for part in rotation)

    def _rotation_of_new(
        self, hidden: torch.Tensor, there: torch.Tensor, n_cached: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the position embeddings of rows behind the prompts, numbered on from what is left of those."""
        begin = there.sum(1, keepdim=True) + n_cached - there.shape[1]
        places = (begin + torch.arange(hidden.shape[1])).to(hidden.device)
        places = places.expand(self.n_renumbered, -1, -1) if self.n_renumbered > 1 else places
        return self.turn(hidden, position_ids=places)

    @property
    def _index(self) -> torch.Tensor:
        """Return the columns that are left, ``(n_inputs, n_left of the longest)``, padded on the left with 0."""
        longest = max(map(len, self.left))
        return torch.stack([F.pad(own, (longest - len(own), 0)) for own in self.left])

    @property
    def _is_there(self) -> torch.Tensor:
        """Return what of the prompts new rows attend to, ``(n_inputs, n_columns, or n_left of the longest)``."""
        if self.gathers:
            longest = max(map(len, self.left))
            return torch.arange(longest) >= longest - torch.tensor([[len(own)] for own in self.left])
        there = torch.zeros(len(self.left), self.n_columns, dtype=torch.bool)
        for row, left in enumerate(self.left):
            there[row, left] = True
        return there

    def _mask_of_prompts(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        there, device = self._is_there, hidden.device
        if mask is None and bool(there.all()):
            return None  # plainly causal
        allowed, there = self._allowed(mask, len(there)).to(device), there.to(device)
        if self.gathers:
            index, rows = self._index.to(device), torch.arange(len(there), device=device)[:, None, None]
            allowed = allowed[rows, index[:, :, None], index[:, None]]
        # A row that nobody attends to attends to itself, so that it stays finite.
        itself = torch.eye(allowed.shape[-1], dtype=torch.bool, device=device)
        allowed = allowed & there[:, None] | itself
        if mask is not None and not self.gathers:  # free places of a cache of fixed size
            allowed = F.pad(allowed, (0, mask.shape[-1] - allowed.shape[-1]))
        return self._written(allowed, hidden.dtype)

    def _mask_of_new(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, there: torch.Tensor, n_cached: int
    ) -> torch.Tensor | None:
        """Return the mask of rows behind the prompts, of which `n_cached` are cached, the prompts' among them."""
        there, device, n_new = there.to(hidden.device), hidden.device, hidden.shape[1]
        if mask is None and bool(there.all()):
            return None
        n_all = n_cached + n_new
        if mask is None or self.gathers:
            allowed = torch.ones(1, n_new, n_all, dtype=torch.bool, device=device).tril(n_cached)
        else:
            allowed = _as_bool(mask)[:, 0]
        allowed = allowed & F.pad(there, (0, allowed.shape[-1] - there.shape[1]), value=True)[:, None]
        return self._written(allowed, hidden.dtype)

    def _written(self, allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Write a mask as the attention implementation reads it."""
        allowed = allowed[:, None]
        if not self.is_eager:
            return allowed
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def _as_bool(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask that is true where a row attends to another, whichever way it was written."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
