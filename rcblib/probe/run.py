"""Probe visual tokens: feed perturbed inputs, read first-token distributions, and record every signal a position has.

Three levels of visual input give three distributions of the first answer token. ``single``: one token alone.
``region``: the nine tokens of its window alone. ``global``: all that the LLM reads of the input, newlines included. At
the last two, part of the input is also replaced (leave-one-out), and the divergence says how much that part mattered.
An input is one photo, several photos of one prompt, or a video; a window lies inside one grid of it: a photo, a tile
of one, or a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import torch

from rcblib.data.base import AnySample
from rcblib.data.samples import by_picture
from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.base import VisualTokens
from rcblib.probe.config import ProbeConfig, by_similarity
from rcblib.probe.inputs import Photo, Place, opened, places_of, wanted_places
from rcblib.probe.perturbation import global_inputs, region_inputs, single_token_inputs
from rcblib.probe.pictures import view_coverage
from rcblib.records import (
    ONE_WORD_QUESTION,
    EncodedImage,
    Sample,
    VisualView,
)
from rcblib.tensors.divergence import combined_influence, divergence, entropy, top1_probability
from rcblib.tensors.geometry import (
    check_features,
    window,
)

ARTICLES = frozenset({"a", "an", "the"})
CLS_SIGNALS = ("cls_similarity", "cls_attention")


def probe(
    model: Any,
    processor: Any,
    image: Photo | Sequence[Photo] | AnySample,
    question: str = ONE_WORD_QUESTION,
    positions: str | Sequence[int] = "all",
    *,
    sample: AnySample | None = None,
    views: str | Sequence[int] = "all",
    batch_size: int = 32,
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
        One row a probed position, by view and position.

        - ``image_id`` (the sample's, else 0), ``view``, ``position``, ``row``, ``column``; ``token``, the row among
          the visual tokens of all views. A view is counted through the whole input.
        - ``picture`` (number of the photo or frame) where the input is several photos or a video; there, and where a
          photo has tiles, ``kind`` of the view: ``"image"``, ``"tile"`` or ``"frame"``.
        - ``top1_word``, ``top1_id``, ``top1_probability``, ``entropy`` (nats, over the full vocabulary): the token
          alone; the same with ``region_`` and ``global_`` in front: its window alone, the whole input.
        - ``region_divergence``, ``global_divergence`` (nats, released form; higher = matters more), both also with
          ``_textbook``; ``influence``, the weighted sum of the released ones.
        - ``single_article``, ``region_article``, ``region_ablated_article``, ``global_article``,
          ``global_ablated_article``: whether the run began with an article, so that the next token was read.
        - ``cls_similarity``, ``cls_rank`` in its view (1 = most similar), ``cls_attention`` (NaN without
          `attention`): absent where the encoder has no [CLS].
        - ``object_coverage`` (share of the patch under any mask of its photo) and ``object_category`` (the one that
          covers most of it, ``None`` where none does): NaN and ``None`` without masks.
        - ``attention_last_layer_<i>``, ``attention_question_layer_<i>``: attention of the last prompt token and
          mean over the text after the input, mean over heads; absent without `attention`.

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


class _Reader:
    """Read the distributions after a prompt, past an article where the answer begins with one."""

    def __init__(self, adapter: Adapter, question: str, kind: str, n_pictures: int, batch_size: int):
        self.adapter, self.batch_size = adapter, batch_size
        self.prompt = prompt_for(adapter, question, kind, n_pictures)
        self.prompt_alone = prompt_for(adapter, question, kind, 1)
        self.words: dict[int, str] = {}

    def word(self, token_id: int) -> str:
        """Return the text of a token without spaces around it; long words may be cut where the tokenizer cuts them."""
        if token_id not in self.words:
            self.words[token_id] = self.adapter.processor.tokenizer.decode([token_id]).strip()
        return self.words[token_id]

    def read(self, visual: Sequence[VisualTokens], alone: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits ``(n, n_vocab)`` and whether an article was passed ``(n,)``.

        With `alone` the rows are the only ones of a prompt with one picture, else those of each picture of the prompt.
        """
        prompt = self.prompt_alone if alone else self.prompt
        logits = self.adapter.first_token_logits(prompt, visual, batch_size=self.batch_size)
        first = logits.argmax(-1).tolist()
        begun = [i for i, token_id in enumerate(first) if self.word(token_id).lower() in ARTICLES]
        if begun:
            logits[begun] = self.adapter.first_token_logits(
                prompt,
                [visual[i] for i in begun],
                batch_size=self.batch_size,
                answer_prefix=[[first[i]] for i in begun],
            )
        article = torch.zeros(len(first), dtype=torch.bool)
        article[begun] = True
        return logits, article

    def summary(
        self, level: str, logits: torch.Tensor, article: torch.Tensor, config: ProbeConfig
    ) -> dict[str, Any]:
        """Name the top-1 word, its probability, the entropy and the article flag of runs, ``(n,)`` each."""
        probability, token_id = top1_probability(logits, config.n_head_candidates)
        prefix = "" if level == "single" else f"{level}_"
        return {
            f"{prefix}top1_word": [self.word(i) for i in token_id.tolist()],
            f"{prefix}top1_id": token_id.numpy(),
            f"{prefix}top1_probability": probability.numpy(),
            f"{prefix}entropy": entropy(logits).numpy(),
            f"{level}_article": article.numpy(),
        }


def prompt_for(adapter: Adapter, question: str, kind: str, n_pictures: int) -> str:
    """Write the question about an input; a video is one placeholder, however many frames it has."""
    if kind == "video":
        return adapter.prompt(question, n_images=0, n_videos=1)
    return adapter.prompt(question, n_images=n_pictures)


def probe_input(
    adapter: Adapter,
    pictures: list[PIL.Image.Image],
    kind: str,
    sample: AnySample | None,
    config: ProbeConfig,
) -> tuple[pd.DataFrame, torch.Tensor]:
    """Return the table of one input and its visual tokens, ``(n_tokens of all views, d_model)``."""
    config.check_cls(adapter.has_cls)
    images = adapter.encode_input(pictures, kind, CLS_SIGNALS if config.attention else CLS_SIGNALS[:1])
    places = places_of(images)
    tokens = torch.cat([place.view.tokens for place in places])
    check_features("visual tokens", tokens, "(n_tokens, d_model)")
    wanted = wanted_places(places, config, f"image {sample.image_id if sample else 0}")
    chosen = [config.choose(place.view) for place in wanted]

    reader = _Reader(adapter, config.question, kind, len(pictures), config.batch_size)
    rows = [adapter.assemble(image) for image in images]
    whole = reader.read([rows])
    attention = _attention_by_token(reader, images, rows) if config.attention else None

    known = by_picture(sample) if sample else [None] * len(pictures)
    frames = []
    for place, positions in zip(wanted, chosen, strict=True):
        columns: dict[str, Any] = {"image_id": sample.image_id if sample else 0, "view": place.number}
        if kind != "image":
            columns["picture"] = place.picture
        if kind != "image" or len(places) > 1:
            columns["kind"] = place.view.kind
        columns |= _cells(place, positions)
        columns |= _output_signals(reader, images, rows, place, positions, whole, config)
        columns |= _encoder_signals(place.view, positions)
        columns |= _objects(adapter, known[place.picture], place.view, positions)
        if attention is not None:
            columns |= _text_attention(attention, [place.n_before + position for position in positions])
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True), tokens


def _attention_by_token(
    reader: _Reader, images: list[EncodedImage], rows: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return text-to-image attention ``(n_layers, n_tokens of all views)``, newlines left out."""
    starts = np.cumsum([0, *map(len, rows)]).tolist()
    pairs = zip(images, starts[:-1], strict=True)
    read_at = torch.cat([reader.adapter.token_rows(image) + start for image, start in pairs])
    attention = reader.adapter.text_to_image_attention(reader.prompt, rows)
    return {name: by_row[:, read_at] for name, by_row in attention.items()}


def _cells(place: Place, positions: list[int]) -> dict[str, Any]:
    width = place.view.grid[1]
    return {
        "token": [place.n_before + position for position in positions],
        "position": positions,
        "row": [position // width for position in positions],
        "column": [position % width for position in positions],
    }


def _output_signals(
    reader: _Reader,
    images: list[EncodedImage],
    rows: list[torch.Tensor],
    place: Place,
    positions: list[int],
    whole: tuple[torch.Tensor, torch.Tensor],
    config: ProbeConfig,
) -> dict[str, Any]:
    """Return what the first answer token says about the positions of one view."""
    view = place.view
    replacement = reader.adapter.replacement_embedding()
    # Targets at a border share their window, and so the runs that depend on the window alone.
    windows = [tuple(window(position, *view.grid)) for position in positions]
    number = {cells: i for i, cells in enumerate(dict.fromkeys(windows))}
    own = torch.tensor([number[cells] for cells in windows])  # (n_positions,) each position's window
    first = [windows.index(cells) for cells in number]  # a position for each window

    single = reader.read(single_token_inputs(view.tokens, positions), alone=True)
    intact, ablated = region_inputs(view.tokens, view.grid, positions, replacement)
    region, region_article = (runs[own] for runs in reader.read(intact[first], alone=True))
    region_ablated = reader.read(ablated, alone=True)
    global_ablated, global_article = (
        runs[own]
        for runs in _read_global(reader, images, rows, place, [positions[i] for i in first], replacement)
    )
    n = len(positions)
    columns = reader.summary("single", *single, config)
    columns |= reader.summary("region", region, region_article, config)
    columns |= reader.summary("global", whole[0].expand(n, -1), whole[1].expand(n), config)
    columns["region_ablated_article"] = region_ablated[1].numpy()
    columns["global_ablated_article"] = global_article.numpy()
    for form, suffix in (("released", ""), ("textbook", "_textbook")):
        for level, before, after in (
            ("region", region, region_ablated[0]),
            ("global", whole[0], global_ablated),
        ):
            columns[f"{level}_divergence{suffix}"] = divergence(
                before, after, config.n_candidates, form
            ).numpy()
    columns["influence"] = combined_influence(
        columns["region_divergence"], columns["global_divergence"], config.k_region, config.k_global
    )
    return columns


def _read_global(
    reader: _Reader,
    images: list[EncodedImage],
    rows: list[torch.Tensor],
    place: Place,
    targets: list[int],
    replacement: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the input with each target's window replaced, a batch at a time: each has a copy of the target's image."""
    image, view = images[place.image], place.view
    logits, articles = [], []
    for start in range(0, len(targets), reader.batch_size):
        batch = global_inputs(view.tokens, view.grid, targets[start : start + reader.batch_size], replacement)
        inputs = []
        for tokens in batch:
            views = [tokens if k == place.inside else None for k in range(len(image.views))]
            replaced = reader.adapter.assemble(image, views)
            inputs.append([*rows[: place.image], replaced, *rows[place.image + 1 :]])
        for store, result in zip((logits, articles), reader.read(inputs), strict=True):
            store.append(result)
    return torch.cat(logits), torch.cat(articles)


def _encoder_signals(view: VisualView, positions: list[int]) -> dict[str, Any]:
    """Return what the vision encoder says about the positions of a view; nothing where it has no [CLS]."""
    if "cls_similarity" not in view.signals:
        return {}
    rank = torch.empty(view.n_tokens, dtype=torch.long)
    rank[by_similarity(view)] = torch.arange(1, view.n_tokens + 1)
    attention = view.signals.get("cls_attention")
    return {
        "cls_similarity": view.signals["cls_similarity"][positions].numpy(),
        "cls_rank": rank[positions].numpy(),
        "cls_attention": float("nan") if attention is None else attention[positions].numpy(),
    }


def _objects(
    adapter: Adapter, sample: Sample | None, view: VisualView, positions: list[int]
) -> dict[str, Any]:
    """Return how much of each position objects cover, and the category that covers most."""
    coverage = None if sample is None else view_coverage(adapter.processor, sample, view)
    if coverage is None:
        return {"object_coverage": float("nan"), "object_category": None}
    return {
        "object_coverage": coverage.share[positions].numpy(),
        "object_category": [coverage.category[position] for position in positions],
    }


def _text_attention(attention: Mapping[str, torch.Tensor], rows: list[int]) -> dict[str, Any]:
    return {
        f"attention_{name}_layer_{layer}": by_token[rows].numpy()
        for name in ("last", "question")
        for layer, by_token in enumerate(attention[name])
    }
