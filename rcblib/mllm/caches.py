"""Mark key-value caches of prompts that were cut, so that prompts can go on from them, and only where that is known.

Such a cache holds fewer columns than the sequences beside it. It knows which, and nobody else may read it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import StaticLayer

from rcblib.mllm.calls import is_generating
from rcblib.records import ParameterError

_ACCEPTED = "an empty cache, or one that a pruner's context returned"


@dataclass(frozen=True)
class CachedPrompts:
    """Say what a cache holds of prompts as they were given; all tensors are on the CPU.

    Attributes
    ----------
    ids, mask : torch.Tensor
        ``(n, n_given)`` int64 and bool: prompts, and answers to them, up to the last column that is cached.
    columns : torch.Tensor
        ``(n, n_cached)`` int64: for each column of the cache the one of `ids` that it comes from, -1 for padding.
    positions : torch.Tensor or None
        ``(n_axes, n, n_cached)`` int64: where the LLM read them; ``None`` where they are numbered one after the other.
    is_cut : bool
        Whether the cache is another one than the model's own would be.
    refusal : str
        Why nothing can go on from it; else empty.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    columns: torch.Tensor
    positions: torch.Tensor | None
    is_cut: bool = True
    refusal: str = ""

    @property
    def n_given(self) -> int:
        """Count the columns of prompts and answers as given."""
        return self.ids.shape[1]

    @property
    def n_cached(self) -> int:
        """Count the columns of the cache."""
        return self.columns.shape[1]

    def rows(self, index: torch.Tensor) -> CachedPrompts:
        """Take some prompts, in any order and number."""
        index = index.cpu()
        positions = None if self.positions is None else self.positions[:, index]
        chosen = (self.ids[index], self.mask[index], self.columns[index])
        return CachedPrompts(*chosen, positions, self.is_cut, self.refusal)

    def answered(self, new_ids: torch.Tensor) -> CachedPrompts:
        """Add the columns of answers, ``(n * n_each, n_new)``, that were cached after the prompts."""
        n_new = new_ids.shape[1]
        own = self.rows(torch.arange(len(self.ids)).repeat_interleave(len(new_ids) // len(self.ids)))
        there = torch.arange(n_new).expand(len(new_ids), -1)
        positions = own.positions
        if positions is not None:
            positions = torch.cat([positions, positions[..., -1:] + 1 + there], dim=-1)
        return replace(
            own,
            ids=torch.cat([own.ids, new_ids.cpu()], 1),
            mask=torch.cat([own.mask, torch.ones_like(there, dtype=torch.bool)], 1),
            columns=torch.cat([own.columns, there + own.n_given], 1),
            positions=positions,
        )

    def cropped(self, n_cached: int) -> CachedPrompts:
        """Take the first columns of the cache, as `Cache.crop` leaves them."""
        columns = self.columns[:, :n_cached]
        ends = columns.amax(1) + 1
        if n_cached > self.n_cached or bool((ends != ends[0]).any()):
            given = f"a cache of {n_cached} columns where {self.n_cached} were cached"
            raise ParameterError("past_key_values", given, _ACCEPTED)
        end, positions = int(ends[0]), self.positions
        positions = None if positions is None else positions[..., :n_cached]
        shorter = (self.ids[:, :end], self.mask[:, :end], columns)
        return CachedPrompts(*shorter, positions, self.is_cut, self.refusal)

    def taken(self, values: torch.Tensor, filling: Any = 0) -> torch.Tensor:
        """Cut ``(n, n_given)`` values, one for each column as given, to the columns of the cache."""
        columns = self.columns.to(values.device)
        return values.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, filling)

    def next_positions(self) -> torch.Tensor:
        """Return where the LLM reads what comes after the last column that `mask` lets be seen, ``(1, n, 1)``."""
        seen = self.taken(self.mask)
        return torch.where(seen, self.positions, -1).amax(-1, keepdim=True).amax(0, keepdim=True) + 1

    def check_continued(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Raise unless prompts ``(n, n_columns)`` begin with what is cached, and go on."""
        n, shape = self.n_given, tuple(ids.shape)
        if len(ids) != len(self.ids) or shape[1] <= n:
            accepted = (
                f"({len(self.ids)}, {n + 1} or more): the sequences that are cached, and what comes next"
            )
            raise ParameterError("input_ids", shape, accepted)
        is_same = (ids[:, :n].cpu() == self.ids) | ~self.mask
        if not bool(is_same.all()):
            column = int((~is_same).any(0).nonzero()[0])
            accepted = "the sequences that are cached, and what comes next"
            raise ParameterError("input_ids", f"others from column {column} on", accepted)
        if bool((mask[:, :n].cpu().bool() & ~self.mask).any()):
            accepted = "0 where it was 0 when the prompts were cached"
            raise ParameterError("attention_mask", "1 where padding was", accepted)


class _Marked:
    """Be a cache of cut prompts: know them, and be read only inside of `reading_cache`."""

    prompts: CachedPrompts | None
    is_read: bool

    def update(self, *arguments: Any, **named: Any) -> Any:
        """Refuse to be read outside; see `Cache.update`."""
        self._check_read()
        return super().update(*arguments, **named)

    def get_mask_sizes(self, *arguments: Any, **named: Any) -> Any:
        """Refuse to be read outside; see `Cache.get_mask_sizes`."""
        self._check_read()
        return super().get_mask_sizes(*arguments, **named)

    def get_seq_length(self, *arguments: Any, **named: Any) -> Any:
        """Refuse a `generate` that begins with it outside; see `Cache.get_seq_length`."""
        if not self.is_read and is_generating():
            self._check_read()
        return super().get_seq_length(*arguments, **named)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Take some rows; see `Cache.batch_select_indices`."""
        super().batch_select_indices(indices)
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat rows; see `Cache.batch_repeat_interleave`."""
        super().batch_repeat_interleave(repeats)
        if self.prompts is not None:
            self._take(torch.arange(len(self.prompts.ids)).repeat_interleave(repeats))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Put rows in another order; see `Cache.reorder_cache`."""
        super().reorder_cache(beam_idx)
        self._take(beam_idx)

    def reset(self) -> None:
        """Forget all, also the prompts; see `Cache.reset`."""
        super().reset()
        _unmark(self)

    def _take(self, index: torch.Tensor) -> None:
        if self.prompts is not None:
            self.prompts = self.prompts.rows(index)

    def _check_read(self) -> None:
        if not self.is_read and (self.prompts is None or self.prompts.is_cut) and super().get_seq_length():
            given = "the cache of prompts that a pruner's context shortened"
            accepted = "this cache inside a pruner's context; outside none, or one of the whole prompts"
            raise ParameterError("past_key_values", given, accepted)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unmade, (type(self).__mro__[2],), vars(self)


@functools.cache
def _marked(kind: type[Cache]) -> type[Cache]:
    return type(kind.__name__, (_Marked, kind), {})


def _unmade(kind: type[Cache]) -> Cache:
    return object.__new__(_marked(kind))


def _unmark(cache: Any) -> None:
    cache.__class__ = type(cache).__mro__[2]
    del cache.prompts, cache.is_read


def cached_prompts(cache: Any) -> CachedPrompts | None:
    """Return what a cache holds, ``None`` where it is empty or none is given.

    Raises
    ------
    ParameterError
        If it is no `Cache`, or what it holds is not known.
    """
    if cache is None:
        return None
    if not isinstance(cache, Cache):
        raise ParameterError("past_key_values", type(cache).__name__, _ACCEPTED)
    n_cached = int(cache.get_seq_length())
    if n_cached == 0:
        return None
    if not isinstance(cache, _Marked):
        raise ParameterError("past_key_values", f"{n_cached} columns from elsewhere", _ACCEPTED)
    if cache.prompts is None:
        raise ParameterError("past_key_values", "a cache that a call left unfinished", _ACCEPTED)
    if cache.prompts.refusal:
        raise ParameterError("past_key_values", f"a cache {cache.prompts.refusal}", _ACCEPTED)
    return cache.prompts.cropped(n_cached)


def check_room(cache: Any, n_columns: int) -> None:
    """Raise where a cache of fixed size has no room for so many columns in all."""
    sizes = {layer.max_cache_len for layer in getattr(cache, "layers", ()) if type(layer) is StaticLayer}
    if sizes and min(sizes) < n_columns:
        accepted = f"a cache with room for {n_columns}, or one that grows"
        raise ParameterError("past_key_values", f"room for {min(sizes)} columns", accepted)


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a call, whatever the release of transformers calls it."""
    return next((arguments[name] for name in ("past_key_values", "cache") if name in arguments), None)


def caches_of(given: Cache | None, output: Any) -> list[Cache]:
    """List the caches that a call has filled: the given one, or those in its output."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    found = [value for value in (given, *values) if isinstance(value, Cache)]
    return list({id(cache): cache for cache in found}.values())


@contextmanager
def reading_cache(cache: Cache | None) -> Iterator[None]:
    """Let a cache be read and filled inside the ``with`` block; what it then holds is for `mark` to say."""
    if cache is None:
        yield
        return
    mark(cache, None)
    cache.is_read = True
    try:
        yield
    finally:
        if isinstance(cache, _Marked):
            cache.is_read = False
            if not cache.get_seq_length():  # an error came first
                _unmark(cache)


def mark(cache: Cache, prompts: CachedPrompts | None) -> None:
    """Say what a cache holds; ``None`` where that is not known."""
    if not isinstance(cache, _Marked):
        cache.__class__ = _marked(type(cache))
        cache.is_read = False
    cache.prompts = prompts


def mark_answered(cache: Cache, prompts: CachedPrompts, new_ids: torch.Tensor, refusal: str = "") -> None:
    """Say what a cache holds after prompts were read and answered with ``(n * n_each, n_new)`` ids, not all cached."""
    n_new = int(cache.get_seq_length()) - prompts.n_cached
    if not refusal and not 0 <= n_new <= new_ids.shape[1]:
        refusal = f"of {n_new} columns beside an answer of {new_ids.shape[1]}"
    if refusal:
        mark(cache, replace(prompts, refusal=refusal))
    else:
        mark(cache, prompts.answered(new_ids[:, :n_new]))
