"""Probe visual tokens: feed perturbed inputs, read first-token distributions, and record every signal a position has.

Three levels of visual input give three distributions of the first answer token. ``single``: one token alone.
``region``: the nine tokens of its window alone. ``global``: all that the LLM reads of the input, newlines included. At
the last two, part of the input is also replaced (leave-one-out), and the divergence says how much that part mattered.
An input is one photo, several photos of one prompt, or a video; a window lies inside one grid of it: a photo, a tile
of one, or a frame.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import torch

from rcblib.data.base import AnySample
from rcblib.mllm import Adapter, adapter_for
from rcblib.probe.config import ProbeConfig
from rcblib.probe.context import ProbedInput, ProbedView
from rcblib.probe.inputs import Photo, opened
from rcblib.records import ONE_WORD_QUESTION, ParameterError
from rcblib.signals import SIGNALS, Signal


def probe(
    model: Any,
    processor: Any,
    image: Photo | Sequence[Photo] | AnySample,
    question: str = ONE_WORD_QUESTION,
    positions: str | Sequence[int] = "all",
    *,
    sample: AnySample | None = None,
    views: str | Sequence[int] = "all",
    batch_size: int | None = None,
    attention: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Measure every signal of the visual tokens of a photo, of several photos in one prompt, or of a video.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    image : PIL.Image.Image, path-like, a list of these, Sample or SequenceSample
        A photo, or its file; several photos that are asked about together; or a sample, which may be a video.
    question, positions, views, batch_size, attention
        As in `ProbeConfig`, as are further `settings` by name.
    sample : Sample or SequenceSample, optional
        What is known of photos given otherwise; gives `image_id` and, where it has masks, what lies under each token.

    Returns
    -------
    pandas.DataFrame
        One row a probed position, by view and position. First where it is: ``image_id`` (the sample's, else 0),
        ``view`` (counted through the whole input), ``picture`` (number of the photo or frame) where the input is
        several photos or a video; there, and where a photo has tiles, ``kind`` of the view (``"image"``, ``"tile"`` or
        ``"frame"``); ``token``, its number among the visual tokens of all views; ``position``, ``row``, ``column``.
        Then the signals of `rcblib.signals.SIGNALS` in their order, each under its name. Signals of a [CLS] are absent
        where the encoder has none. Without `attention` those of the LLM's attention are absent, and that of [CLS] is
        NaN. Those of objects are NaN and ``None`` without masks.

    Raises
    ------
    ImageError
        If an image cannot be read.
    UnsupportedModelError
        If a video is given to a family that takes none.
    ParameterError
        If a setting is out of range, a position lies outside a grid, no grid is large enough for a window, visual
        tokens or logits are not finite, or the sample is of other pictures.

    Warns
    -----
    UserWarning
        Of views that are too small for a window of 3 x 3 tokens, or for ``"grid"``; they are left out.

    Notes
    -----
    Source: token-centric and context-centric analysis. Single tokens and windows go in without anything else, in a
    prompt with one picture; at the global level everything but one window stays intact, packed as the model reads it.
    An article ("a", "an", "the") as first token is appended to the answer once and the next token's distribution
    is read, for every run by itself.
    Differs: the release skips "A" only, and encodes the image anew for every position.
    """
    config = ProbeConfig(question, positions, views, batch_size=batch_size, attention=attention, **settings)
    pictures, kind, sample = opened(image, sample)
    return probe_input(adapter_for(model, processor), pictures, kind, sample, config)[0]


def probe_input(
    adapter: Adapter,
    pictures: list[PIL.Image.Image],
    kind: str,
    sample: AnySample | None,
    config: ProbeConfig,
    signals: Collection[str] | None = None,
) -> tuple[pd.DataFrame, torch.Tensor]:
    """Return the table of one input, of all signals or some by name, and its visual tokens, ``(n_tokens, d_model)``."""
    probed = ProbedInput(adapter, pictures, kind, sample, config)
    parts, frames = probed.parts(), []
    while parts:  # what was read of a part goes with it, so that memory does not grow with positions
        view = parts.pop(0)
        columns = _cells(view)
        for name, signal in SIGNALS.items():
            if signals is None or name in signals:
                columns |= _measured(signal, view)
        frames.append(pd.DataFrame(columns))
    table = pd.concat(frames, ignore_index=True)
    return table.sort_values("token", ignore_index=True, kind="stable"), probed.tokens


def _cells(view: ProbedView) -> dict[str, Any]:
    """Say where each row is."""
    probed, place, width = view.input, view.place, view.view.grid[1]
    columns: dict[str, Any] = {"image_id": probed.image_id, "view": place.number}
    if probed.kind != "image":
        columns["picture"] = place.picture
    if probed.kind != "image" or len(probed.places) > 1:
        columns["kind"] = view.view.kind
    return columns | {
        "token": [place.n_before + position for position in view.positions],
        "position": view.positions,
        "row": [position // width for position in view.positions],
        "column": [position % width for position in view.positions],
    }


def _measured(signal: Signal, view: ProbedView) -> dict[str, Any]:
    """Compute the columns of one signal: one, or one a layer; none where it is derived, or not there for this input."""
    values = signal.compute(view) if signal.compute else None
    if values is None:
        if signal.compute and set(signal.needs) <= view.input.met:
            raise ParameterError(
                f"signal {signal.name}", None, "a value a position, as all it needs is there"
            )
        return {}
    if isinstance(values, torch.Tensor):
        values = (
            (values.float() if values.dtype.itemsize < 4 and values.is_floating_point() else values)
            .cpu()
            .numpy()
        )
    columns = {signal.name: values}
    if "<layer>" in signal.name:
        columns = {signal.name.replace("<layer>", str(layer)): row for layer, row in enumerate(values)}
    for name, column in columns.items():
        if np.ndim(column) > 1 or np.ndim(column) == 1 and len(column) != len(view.positions):
            raise ParameterError(
                name, f"shape {np.shape(column)}", f"one value a position: {len(view.positions)}"
            )
    return columns
