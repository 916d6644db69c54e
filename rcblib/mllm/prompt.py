"""Assemble prompts: ids, spans, rows, positions and padding, once, for probing, generating, timing and benchmarks.

A `Prompt` is text with placeholders; `Prompt.filled` puts an image's `VisualRows` where they are, and a `Batch` pads
the result on the left. `GeneratePrompts` does this to the arguments of a `generate` call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rcblib.mllm.layers import Spans
from rcblib.records import EncodedImage, ParameterError


@dataclass(frozen=True)
class VisualRows:
    """Hold rows that the LLM reads of one image or video, and where it reads them.

    Attributes
    ----------
    rows : torch.Tensor
        ``(n, d_model)``, in reading order; newlines included.
    offsets : torch.Tensor
        ``(n_axes, n)`` int64 on the CPU: each row's position on every axis that the LLM counts on, from the position at
        which the image begins.
    n_positions : int
        How far behind its beginning the text after it goes on.
    numbers : torch.Tensor
        ``(n,)`` int64 on the CPU, ascending: each row's number among all that the image has.
    n_all : int
        How many rows the image has when nothing is dropped.
    """

    rows: torch.Tensor
    offsets: torch.Tensor
    n_positions: int
    numbers: torch.Tensor
    n_all: int

    @classmethod
    def in_order(cls, rows: torch.Tensor, n_axes: int = 1) -> VisualRows:
        """Take rows of no grid, read one after the other at the same position on every axis."""
        numbers = torch.arange(len(rows))
        return cls(rows, numbers.expand(n_axes, -1), len(rows), numbers, len(rows))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Prompt:
    """Hold the ids of a prompt, and where in it placeholders stand for images and videos.

    Attributes
    ----------
    ids : torch.Tensor
        ``(n,)`` int64 on the CPU.
    spans : tuple of (int, int)
        First column and end of the placeholders of each image and video, in order: one column each before a processor
        expands them, else one for each row.
    """

    ids: torch.Tensor
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, ids: Sequence[int], placeholder_ids: Collection[int | None]) -> Prompt:
        """Read ids with one placeholder an image or video."""
        places = [i for i, token in enumerate(ids) if token in placeholder_ids]
        return cls(torch.tensor(ids, dtype=torch.long), tuple((place, place + 1) for place in places))

    def followed_by(self, ids: Sequence[int]) -> Prompt:
        """Return the prompt with more text at its end."""
        return replace(self, ids=torch.cat([self.ids, torch.tensor(ids, dtype=torch.long)]))

    def expanded(self, counts: Sequence[int]) -> Prompt:
        """Return the prompt with as many placeholders of each image and video, as the processor writes it."""
        n_each, spans, n_more = torch.ones(len(self.ids), dtype=torch.long), [], 0
        for (start, stop), count in zip(self.spans, counts, strict=True):
            n_each[start:stop] = 0
            n_each[start] = count
            spans.append((start + n_more, start + n_more + count))
            n_more += count - (stop - start)
        return Prompt(self.ids.repeat_interleave(n_each), tuple(spans))

    def filled(self, visual: Sequence[VisualRows]) -> AssembledPrompt:
        """Put rows where the placeholders of each image and video are.

        Parameters
        ----------
        visual : sequence of VisualRows
            One for each of `spans`: any number of rows, whatever the number of placeholders.

        Returns
        -------
        AssembledPrompt
            Each row at the position where its `offsets` put it, so that there are gaps where rows were dropped, and
            text stands where it stood when they were there. Without position ids an LLM numbers what is left anew.

        Raises
        ------
        ParameterError
            If there are more or fewer `visual` than `spans`.
        """
        if len(visual) != len(self.spans):
            accepted = f"{len(self.spans)}, one for each placeholder in the prompt"
            raise ParameterError("visual", f"tokens of {len(visual)} images", accepted)
        n_axes = max((len(each.offsets) for each in visual), default=1)
        columns, positions, spans = [], [], []
        end = n_rows = n_seen = 0  # columns read, rows written, positions counted

        def read_text(stop: int) -> None:
            nonlocal end, n_rows, n_seen
            columns.append(torch.arange(end, stop))
            positions.append(torch.arange(n_seen, n_seen + stop - end).expand(n_axes, -1))
            n_rows, n_seen, end = n_rows + stop - end, n_seen + stop - end, stop

        for (start, stop), each in zip(self.spans, visual, strict=True):
            read_text(start)
            # A row has a placeholder of its own unless the image is read in another layout.
            own = each.numbers if each.n_all == stop - start else torch.zeros_like(each.numbers)
            columns.append(own + start)
            positions.append(each.offsets.expand(n_axes, -1) + n_seen)
            spans.append((n_rows, n_rows + len(each)))
            n_rows, n_seen, end = n_rows + len(each), n_seen + each.n_positions, stop
        read_text(len(self.ids))
        places = torch.cat(columns), torch.cat(positions, dim=1)
        return AssembledPrompt(self, tuple(visual), tuple(spans), *places)


@dataclass(frozen=True)
class AssembledPrompt:
    """Hold a prompt whose placeholders have given way to rows.

    Attributes
    ----------
    prompt : Prompt
        What it was assembled from.
    visual : tuple of VisualRows
        What stands for each of its images and videos.
    spans : tuple of (int, int)
        First row and end of each of them here.
    columns : torch.Tensor
        ``(n_rows,)`` int64 on the CPU: for each row the column of `prompt` that it comes from. Whatever has one value a
        column of the prompt is cut to the rows by it.
    positions : torch.Tensor
        ``(n_axes, n_rows)`` int64 on the CPU: where the LLM reads each row.
    """

    prompt: Prompt
    visual: tuple[VisualRows, ...]
    spans: tuple[tuple[int, int], ...]
    columns: torch.Tensor
    positions: torch.Tensor

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def is_visual(self) -> torch.Tensor:
        """Tell which rows are visual, ``(n_rows,)`` bool on the CPU."""
        visual = torch.zeros(len(self), dtype=torch.bool)
        for start, stop in self.spans:
            visual[start:stop] = True
        return visual

    def ids(self, placeholder_id: int) -> torch.Tensor:
        """Return the ids, ``(n_rows,)``, one placeholder for each visual row, whatever it was for."""
        return self.prompt.ids[self.columns].masked_fill(self.is_visual, placeholder_id)

    def embeds(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return all rows, ``(n_rows, d_model)``; `embed` makes ``(n, d_model)`` word embeddings of ``(n,)`` ids."""
        text = embed(self.prompt.ids)
        pieces, end = [], 0
        for (start, stop), each in zip(self.prompt.spans, self.visual, strict=True):
            pieces += [text[end:start], each.rows.to(text)]
            end = stop
        return torch.cat([*pieces, text[end:]])


class Batch:
    """Pad assembled prompts, or the same part of each, on the left.

    Parameters
    ----------
    prompts : sequence of AssembledPrompt
        At least one.
    part : slice
        Which rows of each are in the batch.

    Attributes
    ----------
    is_there : torch.Tensor
        ``(n_prompts, n_columns)`` bool on the CPU: false where there is padding.
    """

    def __init__(self, prompts: Sequence[AssembledPrompt], part: slice = slice(None)):
        self.prompts, self.part = tuple(prompts), part
        lengths = torch.tensor([len(range(*part.indices(len(prompt)))) for prompt in self.prompts])
        self.is_there = torch.arange(int(lengths.max())).flip(0) < lengths[:, None]

    @property
    def n_columns(self) -> int:
        """Count the columns of the longest prompt."""
        return self.is_there.shape[1]

    def padded(self, values: Iterable[torch.Tensor], filling: Any = 0) -> torch.Tensor:
        """Return ``(n_prompts, n_columns, ...)`` of what each prompt has one entry a row of, on its device."""
        padded = None
        for i, value in enumerate(values):
            if padded is None:
                padded = value.new_full((*self.is_there.shape, *value.shape[1:]), filling)
            padded[i, self.n_columns - len(value) :] = value
        return padded

    def input_ids(self, placeholder_id: int, padding_id: int) -> torch.Tensor:
        """Return ids ``(n_prompts, n_columns)``, int64 on the CPU, one placeholder for each visual row."""
        return self.padded((prompt.ids(placeholder_id) for prompt in self.prompts), padding_id)

    @property
    def attention_mask(self) -> torch.Tensor:
        """Return ``(n_prompts, n_columns)`` int64 on the CPU: 0 where there is padding, else 1."""
        return self.is_there.long()

    @property
    def position_ids(self) -> torch.Tensor:
        """Return ``(n_axes, n_prompts, n_columns)`` int64 on the CPU; without the axes where there is only one."""
        n_axes = max(len(prompt.positions) for prompt in self.prompts)
        own = (prompt.positions[:, self.part] for prompt in self.prompts)
        by_row = self.padded(positions.expand(n_axes, -1).T for positions in own)
        return by_row[..., 0] if n_axes == 1 else by_row.permute(2, 0, 1).contiguous()

    @property
    def spans(self) -> Spans:
        """Say in which columns the rows of each image and video stand, for methods that act inside the LLM."""
        images = [
            (number, torch.arange(start, stop) + self.n_columns - len(prompt))
            for number, prompt in enumerate(self.prompts)
            for start, stop in prompt.spans
        ]
        return Spans(len(self.prompts), self.n_columns, tuple(images))

    def visual_rows(self) -> list[torch.Tensor]:
        """List the rows of each image and video, prompt after prompt."""
        return [each.rows for prompt in self.prompts for each in prompt.visual]


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


class GeneratePrompts:
    """Read the prompts of a `generate` call, and cut its arguments to what is left of them.

    Parameters
    ----------
    arguments : Mapping
        Arguments of `generate`. ``input_ids`` and ``attention_mask`` are read; of the others every tensor of their
        shape has one value a token and is cut with them.
    pad_token_id, eos_token_id : int, list of int or None
        As `generate` would use them. Without a mask, padding is inferred as `generate` does.

    Attributes
    ----------
    input_ids : torch.Tensor
        ``(n_prompts, n_columns)`` as given.
    prompts : list of Prompt
        Each prompt without its masked columns; `place` finds the spans.

    Raises
    ------
    ParameterError
        If there are no ids of two dimensions, or the mask has another shape.
    """

    def __init__(self, arguments: Mapping[str, Any], pad_token_id: Any, eos_token_id: Any):
        input_ids = arguments.get("input_ids")
        if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2:
            raise ParameterError("input_ids", type(input_ids).__name__, "a tensor (n_prompts, n_tokens)")
        end_ids = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or []
        mask = arguments.get("attention_mask")
        if mask is None:
            # As `generate` infers it: padding is what looks like padding, unless that also ends answers.
            inferable = pad_token_id is not None and pad_token_id not in end_ids
            mask = (input_ids != pad_token_id).long() if inferable else torch.ones_like(input_ids)
        if mask.shape != input_ids.shape:
            raise ParameterError(
                "attention_mask", tuple(mask.shape), f"the shape of input_ids, {tuple(input_ids.shape)}"
            )
        self.input_ids = input_ids
        self.padding_id = pad_token_id if pad_token_id is not None else next(iter(end_ids), 0)
        self.others = {
            name: value.to(input_ids.device)
            for name, value in arguments.items()
            if getattr(value, "shape", None) == input_ids.shape
            and name not in ("input_ids", "attention_mask")
        }
        self.columns = [row.nonzero().flatten() for row in mask.cpu()]
        self.prompts = [Prompt(ids[own]) for ids, own in zip(input_ids.cpu(), self.columns, strict=True)]

    def place(
        self,
        images: Sequence[EncodedImage],
        n_placeholders: Callable[[EncodedImage], int],
        image_token_id: int,
        video_token_id: int | None = None,
    ) -> list[PlacedImage]:
        """Find the placeholders of images and videos.

        Parameters
        ----------
        images : sequence of EncodedImage
            All images in the order of the prompts, and all videos, as `Adapter.encode_pixels` returns them.
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
            if token_id is None or not own:
                continue
            places = [
                (number, column)
                for number, prompt in enumerate(self.prompts)
                for column in (prompt.ids == token_id).nonzero().flatten().tolist()
            ]
            counts = [n_placeholders(image) for image in own]
            if len(places) != sum(counts):
                accepted = f"{sum(counts)}, one for each visual token and newline of {len(own)} {modality}s"
                raise ParameterError("input_ids", f"{len(places)} {modality} placeholders", accepted)
            begin = 0
            for image, count in zip(own, counts, strict=True):
                (first, start), (last, end) = places[begin], places[begin + count - 1]
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

    def cut(self, batch: Batch, placeholder_id: int) -> dict[str, torch.Tensor]:
        """Return ids, mask and the others with one value a token, ``(n_prompts, n_columns)``, for a batch of `filled`.

        Every visual row has the same placeholder id. Position ids are in `Batch.position_ids`.
        """
        device = self.input_ids.device
        arguments = {
            "input_ids": batch.input_ids(placeholder_id, self.padding_id).to(device),
            "attention_mask": batch.attention_mask.to(device),
        }
        for name, column in self.others.items():
            pairs = zip(column, self.columns, batch.prompts, strict=True)
            arguments[name] = batch.padded(row[own[prompt.columns].to(device)] for row, own, prompt in pairs)
        return arguments

    def restore(self, output: Any, n_cut: int) -> Any:
        """Put the prompts as given back in front of the new tokens of what `generate` returned for `n_cut` columns."""
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        n_each = sequences.shape[0] // self.input_ids.shape[0]
        given = self.input_ids.repeat_interleave(n_each, 0).to(sequences)
        restored = torch.cat([given, sequences[:, n_cut:]], dim=1)
        if isinstance(output, torch.Tensor):
            return restored
        output.sequences = restored
        return output
