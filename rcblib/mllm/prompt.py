"""Assemble prompts: ids, spans, rows, positions and padding, once, for probing, generating, timing and benchmarks.

A `Prompt` is text with placeholders; `Prompt.filled` puts an image's `VisualRows` where they are, and a `Batch` pads
the result on the left. `rcblib.mllm.given.GivenPrompts` does this to the arguments of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rcblib.mllm.layer_state import Spans
from rcblib.records import ParameterError


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
