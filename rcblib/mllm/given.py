"""Read the prompts that a call is given, cut its arguments to what is left of them, and go on from what is cached."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from rcblib.mllm.caches import CachedPrompts
from rcblib.mllm.layer_state import Spans
from rcblib.mllm.prompt import Batch, Prompt, VisualRows
from rcblib.records import EncodedImage, ParameterError

_FILLING = {"labels": -100}
"""What stands where there is padding, in an argument with one value a token; else 0."""


@dataclass(frozen=True)
class PlacedImage:
    """Say in which prompt of a batch an image or video is.

    Attributes
    ----------
    image, prompt : EncodedImage, int
        The image or video; number of the prompt.
    prompt_ids : torch.Tensor
        ``(n_prompt,)`` its ids, placeholders included, padding not.
    """

    image: EncodedImage
    prompt: int
    prompt_ids: torch.Tensor


class GivenPrompts:
    """Read the prompts of a call, and cut its arguments to what is left of them.

    Parameters
    ----------
    arguments : Mapping
        Arguments of `generate`. ``input_ids`` and ``attention_mask`` are read; of the others every tensor of their
        shape has one value a token and is cut with them.
    pad_token_id, eos_token_id : int, list of int or None
        As `generate` would use them. Without a mask, padding is inferred as `generate` does.
    cached : CachedPrompts, optional
        What the call's cache holds: ids are those, and what comes next; or what comes next alone, beside a mask of all.

    Attributes
    ----------
    input_ids : torch.Tensor
        ``(n_prompts, n_columns)`` as given, or what comes next behind what is cached.
    prompts : list of Prompt
        What is read anew of each prompt, without its masked columns; `place` finds the spans.

    Raises
    ------
    ParameterError
        If there are no ids of two dimensions, the mask has another shape, or they are not what is cached.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        pad_token_id: Any,
        eos_token_id: Any,
        cached: CachedPrompts | None = None,
    ):
        given = arguments.get("input_ids")
        if not isinstance(given, torch.Tensor) or given.ndim != 2:
            raise ParameterError("input_ids", type(given).__name__, "a tensor (n_prompts, n_tokens)")
        end_ids = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or []
        mask, self.given, self.input_ids = arguments.get("attention_mask"), given, given
        if cached is not None and mask is not None and mask.shape[1] == cached.n_given + given.shape[1]:
            self.input_ids = torch.cat([cached.ids.to(given), given], 1)
        if mask is None:
            # As `generate` infers it: padding is what looks like padding, unless that also ends answers.
            inferable = pad_token_id is not None and pad_token_id not in end_ids
            mask = (given != pad_token_id).long() if inferable else torch.ones_like(given)
        if mask.shape != self.input_ids.shape:
            raise ParameterError(
                "attention_mask", tuple(mask.shape), f"the shape of input_ids, {tuple(self.input_ids.shape)}"
            )
        self.mask, self.cached = mask.bool().cpu(), cached
        self.padding_id = pad_token_id if pad_token_id is not None else next(iter(end_ids), 0)
        n_more = self.input_ids.shape[1] - given.shape[1]
        self.others = {
            name: F.pad(value.to(given.device), (n_more, 0))
            for name, value in arguments.items()
            if getattr(value, "shape", None) == given.shape and name not in ("input_ids", "attention_mask")
        }
        n_cached = 0
        if cached is not None:
            cached.check_continued(self.input_ids, self.mask)
            n_cached = cached.n_given
            self.cached = replace(cached, mask=self.mask[:, :n_cached])
        self.columns = [row.nonzero().flatten() + n_cached for row in self.mask[:, n_cached:]]
        self.prompts = [Prompt(ids[own]) for ids, own in zip(self.input_ids.cpu(), self.columns, strict=True)]

    def place(
        self,
        images: Sequence[EncodedImage],
        n_placeholders: Callable[[EncodedImage], int],
        image_token_id: int,
        video_token_id: int | None = None,
    ) -> list[PlacedImage]:
        """Find the placeholders of images and videos; those that are cached already may be given again.

        Parameters
        ----------
        images : sequence of EncodedImage
            All images in the order of the prompts, and all videos, as `Adapter.encode_pixels` returns them; or those
            alone that are not cached.
        n_placeholders : callable
            Counts an image's placeholders, as `Adapter.n_placeholders`.
        image_token_id, video_token_id : int
            The placeholders.

        Returns
        -------
        list of PlacedImage
            Images and videos in the order of their placeholders, prompt after prompt.

        Raises
        ------
        ParameterError
            If there are more or fewer placeholders, or those of an image do not stand together in one prompt.
        """
        found: list[tuple[int, int, int, EncodedImage]] = []
        for modality, token_id in (("image", image_token_id), ("video", video_token_id)):
            own = [image for image in images if image.is_video == (modality == "video")]
            if token_id is None:
                continue
            columns, ends = [], []  # of the placeholders, and how many there are up to each prompt's end
            for prompt in self.prompts:
                columns += (prompt.ids == token_id).nonzero().flatten().tolist()
                ends.append(len(columns))
            own = self._not_cached(own, n_placeholders, token_id, len(columns))
            counts = [n_placeholders(image) for image in own]
            if len(columns) != sum(counts):
                accepted = f"{sum(counts)}, one for each visual token and newline of {len(own)} {modality}s"
                raise ParameterError("input_ids", f"{len(columns)} {modality} placeholders", accepted)
            begin = 0
            for image, count in zip(own, counts, strict=True):
                first, last = (bisect_right(ends, place) for place in (begin, begin + count - 1))
                start, end = columns[begin], columns[begin + count - 1]
                if first != last or end - start != count - 1:
                    got = "an image spread over two prompts" if first != last else "text inside an image"
                    raise ParameterError("input_ids", got, "all its placeholders in one, side by side")
                found.append((first, start, end + 1, image))
                begin += count
        found.sort(key=lambda span: span[:2])
        for number, prompt in enumerate(self.prompts):
            spans = tuple((start, stop) for first, start, stop, _ in found if first == number)
            self.prompts[number] = replace(prompt, spans=spans)
        return [PlacedImage(image, number, self.prompts[number].ids) for number, _, _, image in found]

    def filled(self, visual: Sequence[VisualRows]) -> Batch:
        """Put rows where the placeholders of all images and videos are, in the order of `place`."""
        left = iter(visual)
        return Batch([prompt.filled([next(left) for _ in prompt.spans]) for prompt in self.prompts])

    def _not_cached(
        self,
        images: list[EncodedImage],
        n_placeholders: Callable[[EncodedImage], int],
        token_id: int,
        n_new: int,
    ) -> list[EncodedImage]:
        """Leave out images that are cached, where all are given and not the new ones alone."""
        counts = [n_placeholders(image) for image in images]
        if self.cached is None or sum(counts) == n_new:
            return images
        is_placeholder = (self.input_ids.cpu() == token_id) & self.mask
        columns = is_placeholder.nonzero()[:, 1]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        if len(columns) != sum(counts):
            return images
        pairs = zip(images, starts, strict=True)
        return [image for image, start in pairs if columns[start] >= self.cached.n_given]

    def cut(self, batch: Batch, placeholder_id: int) -> dict[str, torch.Tensor]:
        """Return ids, mask and the others with one value a token, ``(n_prompts, n_columns)``, for a batch of `filled`.

        Every visual row that is read anew has the same placeholder id. What is cached comes first.
        """
        new = {
            "input_ids": batch.input_ids(placeholder_id, self.padding_id),
            "attention_mask": batch.attention_mask,
        }
        for name, column in self.others.items():
            pairs = zip(column, self.columns, batch.prompts, strict=True)
            left = (row[own[prompt.columns].to(row.device)] for row, own, prompt in pairs)
            new[name] = batch.padded(left, _FILLING.get(name, 0))
        device = self.input_ids.device
        if self.cached is None:
            return {name: value.to(device) for name, value in new.items()}
        given = {"input_ids": self.input_ids, "attention_mask": self.mask.long()} | self.others
        arguments = {}
        for name, value in new.items():
            filling = self.padding_id if name == "input_ids" else _FILLING.get(name, 0)
            before = self.cached.taken(given[name][:, : self.cached.n_given], filling)
            arguments[name] = torch.cat([before.to(device), value.to(device)], 1)
        return arguments

    def position_ids(self, batch: Batch, mask: torch.Tensor, n_axes: int, keeps: bool) -> torch.Tensor:
        """Return where the LLM reads the rows of `cut`, ``(n_axes, n_prompts, n_columns)`` int64 on the CPU.

        Parameters
        ----------
        batch, mask : Batch, torch.Tensor
            Of `filled`, and as `cut` returned it.
        n_axes : int
            How many axes the LLM counts on.
        keeps : bool
            Whether rows stay where they were in the prompts as given, or are numbered one after the other.

        Raises
        ------
        ParameterError
            If it is not as it was for what is cached.
        """
        policies = {True: "kept", False: "renumbered"}
        if self.cached is not None and keeps != (self.cached.positions is not None):
            accepted = f"{policies[not keeps]!r}, as where the cache was filled"
            raise ParameterError("position_ids", policies[keeps], accepted)
        if not keeps:
            places = (mask.cpu().cumsum(-1) - 1).masked_fill(mask.cpu() == 0, 0)
            return places.expand(n_axes, -1, -1)
        positions = batch.position_ids
        positions = (positions[None] if positions.ndim == 2 else positions).expand(n_axes, -1, -1)
        if self.cached is None:
            return positions
        before = self.cached.positions.expand(n_axes, -1, -1)
        return torch.cat([before, positions + self.cached.next_positions()], -1)

    def spans(self, batch: Batch) -> Spans:
        """Say in which columns of `cut` the visual rows of a batch stand that are read anew."""
        n_cached = 0 if self.cached is None else self.cached.n_cached
        own = batch.spans
        images = tuple((number, columns + n_cached) for number, columns in own.images)
        return Spans(own.n_prompts, own.n_columns + n_cached, images)

    def to_cache(self, batch: Batch, positions: torch.Tensor | None) -> CachedPrompts:
        """Say what a cache holds after a batch was read; `positions` are given where rows keep them."""
        pairs = zip(self.columns, batch.prompts, strict=True)
        columns = batch.padded((own[prompt.columns] for own, prompt in pairs), -1)
        is_cut = any(prompt.spans for prompt in batch.prompts)
        if self.cached is not None:
            columns, is_cut = torch.cat([self.cached.columns, columns], 1), is_cut or self.cached.is_cut
        is_cut = is_cut or columns.shape != self.mask.shape or not torch.equal(columns, self._as_given())
        return CachedPrompts(self.input_ids.cpu(), self.mask, columns, positions, is_cut)

    def _as_given(self) -> torch.Tensor:
        """Return the columns of prompts that are read as they are, -1 for padding."""
        return torch.where(self.mask, torch.arange(self.mask.shape[1]), -1)

    def as_given(self, keeps: bool) -> CachedPrompts:
        """Say what a cache holds after prompts were read as they are, padding too."""
        columns = self._as_given()
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[None] if keeps else None
        return CachedPrompts(self.input_ids.cpu(), self.mask, columns, positions, is_cut=False)

    def restore(self, output: Any, n_cut: int) -> Any:
        """Put the prompts as given back in front of the new tokens of what `generate` returned for `n_cut` columns."""
        if isinstance(output, torch.Tensor):
            return self._whole(output, n_cut)
        output.sequences = self._whole(output.sequences, n_cut)
        return output

    def as_seen(self, arguments: Mapping[str, Any], n_cut: int, n_each: int) -> dict[str, Any]:
        """Return what follows a call step by step, made to see the prompts as given where it reads `n_cut` columns.

        Parameters
        ----------
        arguments : Mapping
            Of `generate`. Of these stopping criteria, logits processors, ``prefix_allowed_tokens_fn`` and a streamer,
            which count columns or read them, are returned.
        n_cut : int
            Columns of the prompts that are left.
        n_each : int
            Sequences that ``prefix_allowed_tokens_fn`` is asked about under a number of their own, for each prompt.
        """
        seen: dict[str, Any] = {}
        for name in ("stopping_criteria", "logits_processor"):
            if arguments.get(name):
                seen[name] = type(arguments[name])(self._seeing(own, n_cut) for own in arguments[name])
        if allowed := arguments.get("prefix_allowed_tokens_fn"):

            def prefix_allowed_tokens_fn(number: int, ids: torch.Tensor) -> Any:
                return allowed(number, torch.cat([self.given[number // n_each].to(ids), ids[n_cut:]]))

            seen["prefix_allowed_tokens_fn"] = prefix_allowed_tokens_fn
        if streamer := arguments.get("streamer"):
            seen["streamer"] = _Streamer(streamer, self.given.cpu())
        return seen

    def _seeing(self, own: Callable[..., Any], n_cut: int) -> Callable[..., Any]:
        def called(ids: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            return own(self._whole(ids, n_cut), *arguments, **named)

        return functools.update_wrapper(
            called, own, assigned=()
        )  # also its attributes, which `generate` looks at

    def _whole(self, sequences: torch.Tensor, n_cut: int) -> torch.Tensor:
        """Return sequences with the prompts as given in place of `n_cut` columns."""
        n_each = len(sequences) // len(self.given)
        given = self.given.repeat_interleave(n_each, 0).to(sequences)
        return torch.cat([given, sequences[:, n_cut:]], dim=1)


class _Streamer:
    """Hand a streamer the prompts as given in place of those that are left, which come first."""

    def __init__(self, own: Any, given: torch.Tensor):
        self.own, self.first = own, given

    def put(self, ids: torch.Tensor) -> None:
        ids, self.first = (ids, None) if self.first is None else (self.first, None)
        self.own.put(ids)

    def end(self) -> None:
        self.own.end()
