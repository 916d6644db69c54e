"""Probe visual tokens: feed perturbed inputs, read first-token distributions, and record every signal a position has.

Three levels of visual input give three distributions of the first answer token. ``single``: one token alone.
``region``: the nine tokens of its window alone. ``global``: all that the LLM reads of the input, newlines included. At
the last two, part of the input is also replaced (leave-one-out), and the divergence says how much that part mattered.
An input is one photo, several photos of one prompt, or a video; a window lies inside one grid of it: a photo, a tile
of one, or a frame.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rcblib.datasets import (
    PHOTO_SUFFIXES,
    VIDEO_SUFFIXES,
    Coverage,
    VideoFile,
    as_rgb,
    object_coverage,
    read_image,
    visible_box,
)
from rcblib.divergence import combined_influence, divergence, entropy, top1_probability
from rcblib.geometry import (
    check_features,
    check_integer,
    check_positions,
    evenly_spaced,
    paper_ranks,
    window,
)
from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.base import VisualTokens
from rcblib.mllm.placement import weights_by_name
from rcblib.perturb import WINDOW_SIZE, global_inputs, region_inputs, single_token_inputs
from rcblib.records import (
    ONE_WORD_QUESTION,
    EncodedImage,
    ImageError,
    ParameterError,
    Sample,
    SequenceSample,
    VisualView,
)
from rcblib.runs import (
    atomic_path,
    bounded,
    check_fields,
    config_hash,
    provenance,
    read_json,
    read_table,
    to_plain,
    write_json,
    write_table,
)

NAMED_POSITIONS = ("all", "paper_ranks", "paper_positions", "grid")
NAMED_VIEWS = ("all", "base")
ARTICLES = frozenset({"a", "an", "the"})

_DESCRIPTION_FILE = "probe.json"
_WORLD_SOURCES = frozenset({"scenes", "groups", "videos"})  # of samples of the embedded world

Photo = PIL.Image.Image | str | os.PathLike
AnySample = Sample | SequenceSample


@dataclass(frozen=True)
class ProbeConfig:
    """Say what is probed and how; everything but `batch_size` changes the results.

    Attributes
    ----------
    question : str
        What is asked about the input.
    positions : str or tuple of int
        ``"all"``; ``"paper_ranks"``, the paper's ranks of [CLS] similarity; ``"paper_positions"``, the same numbers
        as grid positions, which the release takes where the encoder has no [CLS] (see `codebook_positions`);
        ``"grid"``, `n_side` x `n_side` evenly spaced positions; or positions by number. Of an input with several
        views, the same choice is made in each.
    views : str or tuple of int
        Which grids are probed: ``"all"``; ``"base"``, every photo reduced to one grid, without its tiles; or views by
        number, counted through all photos of the input (of a video, its frames). What is not probed stays part of
        the input at the global level.
    n_side : int
        Positions along each side for ``"grid"``.
    n_head_candidates : int
        Largest logits over which the top-1 probability is renormalised.
    n_candidates : int
        Candidates over which divergences are computed.
    k_region, k_global : float
        Weights of the two divergences: influence = ``k_region * region + k_global * global``.
    attention : bool
        Whether attention signals are recorded: from [CLS], and from the text in every layer of the LLM.
    batch_size : int
        Inputs per forward pass; changes results by rounding only.

    Raises
    ------
    ParameterError
        On a value of another type or out of range.
    """

    question: str = ONE_WORD_QUESTION
    positions: str | tuple[int, ...] = "all"
    views: str | tuple[int, ...] = "all"
    n_side: int = bounded(8, minimum=1)
    n_head_candidates: int = bounded(50, minimum=1)
    n_candidates: int = bounded(10, minimum=1)
    k_region: float = bounded(1.0, minimum=0)
    k_global: float = bounded(16.0, minimum=0)
    attention: bool = True
    batch_size: int = bounded(32, minimum=1)

    def __post_init__(self):
        for name in ("positions", "views"):
            if hasattr(getattr(self, name), "tolist"):
                object.__setattr__(self, name, getattr(self, name).tolist())
        check_fields(self)
        if not self.question.strip():
            raise ParameterError("question", self.question, "text")
        for name, known in (("positions", NAMED_POSITIONS), ("views", NAMED_VIEWS)):
            value = getattr(self, name)
            if isinstance(value, str):
                fits = value in known
            else:
                fits = bool(value) and min(value) >= 0 and len(set(value)) == len(value)
            if not fits:
                accepted = f"{', '.join(known)}, or distinct {name} by number, 0 or above, at least one"
                raise ParameterError(name, value, accepted)

    def choose(self, view: VisualView) -> list[int]:
        """List the positions of a view that are probed, ascending.

        Raises
        ------
        ParameterError
            If a position lies outside the grid, ``"grid"`` asks for more than a side has, or ``"paper_ranks"`` for
            a [CLS] that is not there.
        """
        if self.positions == "all":
            return list(range(view.n_tokens))
        if self.positions == "grid":
            return evenly_spaced(*view.grid, self.n_side)
        if self.positions == "paper_positions":
            return paper_ranks(view.n_tokens)
        if self.positions == "paper_ranks":
            self.check_cls(view.cls_similarity is not None)
            return sorted(_by_similarity(view)[paper_ranks(view.n_tokens)].tolist())
        return sorted(check_positions("positions", self.positions, view.n_tokens))

    def check_cls(self, has_cls: bool) -> None:
        """Raise a `ParameterError` where positions are to be ranked by a [CLS] that the encoder does not have."""
        if self.positions == "paper_ranks" and not has_cls:
            accepted = "all, grid or paper_positions, as this vision encoder has no [CLS] to rank by"
            raise ParameterError("positions", self.positions, accepted)


def codebook_positions(adapter: Adapter) -> str:
    """Name the positions that the authors probe for a codebook of a model.

    Returns
    -------
    str
        ``"paper_ranks"``; without a [CLS] ``"paper_positions"``, the same numbers as positions on the grid. A run's
        record states which one it was.
    """
    return "paper_ranks" if adapter.has_cls else "paper_positions"


def _by_similarity(view: VisualView) -> torch.Tensor:
    """Return positions by decreasing similarity to [CLS], ties by position, ``(n_tokens,)``."""
    return torch.argsort(view.cls_similarity, descending=True, stable=True)


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
    chosen = {name: _as_tuple(value) for name, value in (("positions", positions), ("views", views))}
    config = _config(
        {"question": question, "batch_size": batch_size, "attention": attention} | chosen | settings
    )
    pictures, kind, sample = _opened(image, sample)
    return _probe_input(adapter_for(model, processor), pictures, kind, sample, config)[0]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _config(settings: Mapping[str, Any]) -> ProbeConfig:
    known = [entry.name for entry in dataclasses.fields(ProbeConfig)]
    for name, value in settings.items():
        if name not in known:
            raise ParameterError(name, value, f"no setting of this name; known: {', '.join(known)}")
    return ProbeConfig(**settings)


def _opened(
    image: Photo | Sequence[Photo] | AnySample, sample: AnySample | None
) -> tuple[list[PIL.Image.Image], str, AnySample | None]:
    """Return the pictures of an input as RGB, its kind as in `SequenceSample.kind`, and what is known of it."""
    if isinstance(image, AnySample):
        if sample is not None and sample is not image:
            raise ParameterError("sample", sample.image_id, "none, or the image itself, where it is a sample")
        image, sample = load_pictures(image), image
    elif isinstance(image, list | tuple):
        if not image:
            raise ImageError("image: got an empty list; accepted: at least one image")
        image = [_photo(each) for each in image]
    elif isinstance(image, str | os.PathLike) and _is_film(image):
        if sample is not None:
            raise ParameterError("sample", sample.image_id, "none, or the image itself, with a video file")
        sample = VideoFile(image)[0]
        image = load_pictures(sample)
    else:
        image = _photo(image)
    pictures = image if isinstance(image, list) else [image]
    kind = sample.kind if sample is not None else "images" if isinstance(image, list) else "image"
    if sample is not None:
        sizes = [(known.width, known.height) for known in _by_picture(sample)]
        if [picture.size for picture in pictures] != sizes:
            found = ", ".join(f"{width} x {height}" for width, height in sizes)
            accepted = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
            raise ParameterError("sample", f"pictures of {found}", f"those of the image, {accepted}")
    return pictures, kind, sample


def _is_film(path: str | os.PathLike) -> bool:
    suffix = Path(path).suffix.lower()
    return suffix in VIDEO_SUFFIXES and suffix not in PHOTO_SUFFIXES


def _photo(image: Photo) -> PIL.Image.Image:
    """Return an image as RGB, from its file where it is one."""
    if isinstance(image, PIL.Image.Image):
        return as_rgb(image)
    if not isinstance(image, str | os.PathLike):
        raise ImageError(f"image: got {type(image).__name__}; accepted: a PIL image or a file")
    return read_image(image)


class _Reader:
    """Read the distributions after a prompt, past an article where the answer begins with one."""

    def __init__(self, adapter: Adapter, question: str, kind: str, n_pictures: int, batch_size: int):
        self.adapter, self.batch_size = adapter, batch_size
        self.prompt = _prompt(adapter, question, kind, n_pictures)
        self.prompt_alone = _prompt(adapter, question, kind, 1)
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


def _prompt(adapter: Adapter, question: str, kind: str, n_pictures: int) -> str:
    """Write the question about an input; a video is one placeholder, however many frames it has."""
    if kind == "video":
        return adapter.prompt(question, n_images=0, n_videos=1)
    return adapter.prompt(question, n_images=n_pictures)


@dataclass(frozen=True)
class _Place:
    """Say where a view stands in an input.

    Attributes
    ----------
    number : int
        Number among all views.
    picture : int
        Number of its photo or frame.
    image, inside : int
        Number of its `EncodedImage`, and its own among the views of that.
    n_before : int
        Tokens of the views before it.
    view : VisualView
        The view.
    """

    number: int
    picture: int
    image: int
    inside: int
    n_before: int
    view: VisualView


def _places(images: Sequence[EncodedImage]) -> list[_Place]:
    """List all views of an input in order."""
    places, n_before = [], 0
    for i, image in enumerate(images):
        for k, view in enumerate(image.views):
            places.append(_Place(len(places), k if image.is_video else i, i, k, n_before, view))
            n_before += view.n_tokens
    return places


def _wanted(places: list[_Place], config: ProbeConfig, name: str) -> list[_Place]:
    """Choose the views that are probed; warn of those that are too small."""
    if config.views == "base":
        wanted = [place for place in places if place.view.kind == "image"]
        if not wanted:
            raise ParameterError("views", "base", "all, or frames by number, as a video has no reduced photo")
    elif config.views == "all":
        wanted = places
    else:
        wanted = [places[i] for i in sorted(check_positions("views", config.views, len(places)))]
    smallest = max(WINDOW_SIZE, config.n_side) if config.positions == "grid" else WINDOW_SIZE
    small = [place for place in wanted if min(place.view.grid) < smallest]
    if not small:
        return wanted
    sides = ", ".join(dict.fromkeys("{} x {}".format(*place.view.grid) for place in small))
    needed = f"at least {smallest} x {smallest} tokens"
    if len(small) == len(wanted):
        raise ParameterError("image", f"{name}, grids of {sides} tokens", f"a grid of {needed}")
    warnings.warn(
        f"{name}: {len(small)} of {len(wanted)} views are not probed, with grids of {sides} tokens instead of {needed}",
        stacklevel=4,
    )
    return [place for place in wanted if place not in small]


def _probe_input(
    adapter: Adapter,
    pictures: list[PIL.Image.Image],
    kind: str,
    sample: AnySample | None,
    config: ProbeConfig,
) -> tuple[pd.DataFrame, torch.Tensor]:
    """Return the table of one input and its visual tokens, ``(n_tokens of all views, d_model)``."""
    config.check_cls(adapter.has_cls)
    images = adapter.encode_input(pictures, kind, attention=config.attention and adapter.has_cls)
    places = _places(images)
    tokens = torch.cat([place.view.tokens for place in places])
    check_features("visual tokens", tokens, "(n_tokens, d_model)")
    wanted = _wanted(places, config, f"image {sample.image_id if sample else 0}")
    chosen = [config.choose(place.view) for place in wanted]

    reader = _Reader(adapter, config.question, kind, len(pictures), config.batch_size)
    rows = [adapter.assemble(image) for image in images]
    whole = reader.read([rows])
    attention = _attention_by_token(reader, images, rows) if config.attention else None

    known = _by_picture(sample) if sample else [None] * len(pictures)
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


def _cells(place: _Place, positions: list[int]) -> dict[str, Any]:
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
    place: _Place,
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
    place: _Place,
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
    if view.cls_similarity is None:
        return {}
    rank = torch.empty(view.n_tokens, dtype=torch.long)
    rank[_by_similarity(view)] = torch.arange(1, view.n_tokens + 1)
    attention = view.cls_attention
    return {
        "cls_similarity": view.cls_similarity[positions].numpy(),
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


def view_coverage(processor: Any, sample: AnySample, view: VisualView, picture: int = 0) -> Coverage | None:
    """Compute what share of every token's patch objects cover, for one view of a photo or video.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        As `load_model` returns it; it says what is cropped where the view does not say what it covers.
    sample : Sample or SequenceSample
        The photo that the view was encoded from, or the photos or video that it is part of.
    view : VisualView
        From the adapter.
    picture : int
        Number of the view's photo or frame in a `SequenceSample`.

    Returns
    -------
    Coverage or None
        As `object_coverage`; what a patch shows of padding counts as uncovered. ``None`` where the sample has no
        annotation, or nothing says where a tile lies.

    Raises
    ------
    ParameterError
        If the sample has no such picture.
    """
    pictures = _by_picture(sample)
    known = pictures[check_integer("picture", picture, 0, len(pictures) - 1)]
    if known.objects is None:
        return None
    width, height = float(known.width), float(known.height)
    if view.region is not None:
        left, top, right, bottom = view.region
        box = (left * width, top * height, right * width, bottom * height)
    elif view.kind != "image":
        return None
    elif getattr(processor.image_processor, "do_center_crop", False):
        box = visible_box(known.width, known.height, processor.image_processor.crop_size["height"])
    else:
        box = (0.0, 0.0, width, height)
    return object_coverage(known, *view.grid, box)


def _by_picture(sample: AnySample) -> list[Sample]:
    """Return what is known of each picture of a sample."""
    if isinstance(sample, Sample):
        return [sample]
    objects = sample.objects or [None] * sample.n_images
    return [
        Sample(sample.image_id, lambda i=i: sample.load()[i], *size, objects=own, source=sample.source)
        for i, (size, own) in enumerate(zip(sample.sizes, objects, strict=True))
    ]


def _text_attention(attention: Mapping[str, torch.Tensor], rows: list[int]) -> dict[str, Any]:
    return {
        f"attention_{name}_layer_{layer}": by_token[rows].numpy()
        for name in ("last", "question")
        for layer, by_token in enumerate(attention[name])
    }


def world_note(model: Any, samples: Iterable[AnySample]) -> str:
    """Say that samples lie outside the world that an embedded model was trained on.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Embedded models name their world in ``config.rcb_world``.
    samples : iterable of Sample or SequenceSample
        What it is to look at.

    Returns
    -------
    str
        One sentence; empty where the model is of no such world or every sample is from it: scenes, groups or videos.
    """
    world = getattr(model.config, "rcb_world", None)
    sources = sorted({s.source for s in samples if s.source.split("/")[0] not in _WORLD_SOURCES})
    if world is None or not sources:
        return ""
    return (
        f"Outside its world: this model was trained on nothing but {world}, so what it says about {', '.join(sources)} "
        "shows that the code runs, not what a model sees."
    )


def model_fingerprint(model: Any) -> str:
    """Identify a model by its settings, dtype and a few values of every weight, wherever it was loaded from.

    Returns
    -------
    str
        12 hexadecimal digits. Models that differ only in values that were not looked at get the same one.
    """
    digest = hashlib.sha256(
        json.dumps(_settings_of(model.config.to_dict()), sort_keys=True, default=str).encode()
    )
    for name, weight in weights_by_name(model):
        flat = weight.detach().flatten()
        few = flat[:: max(1, len(flat) // 8)]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(few.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _settings_of(config: Any) -> Any:
    """Return a model's settings without its name, its place, the versions that wrote it and how it is run."""
    if not isinstance(config, Mapping):
        return config
    skipped = ("transformers_version", "dtype", "torch_dtype")
    named = {str(key): value for key, value in config.items()}
    return {
        key: _settings_of(value)
        for key, value in named.items()
        if key not in skipped and not key.startswith("_")
    }


def _model_name(model: Any) -> str:
    """Return the Hugging Face id of a model, or the name of its folder without its path."""
    name = str(getattr(model.config, "_name_or_path", ""))
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


class StoredTokens(Mapping):
    """Read the visual tokens of probed images from their files, one image at a time.

    Behaves as a dictionary from image id to ``(n_tokens, d_model)``, in the dtype that the model gave them; of an input
    with several views, all of them one after the other, also those that were not probed.
    """

    def __init__(self, folder: Path, image_ids: Sequence[int]):
        self._folder, self._image_ids = folder, tuple(image_ids)

    def __getitem__(self, image_id: int) -> torch.Tensor:
        if image_id not in self._image_ids:
            raise KeyError(image_id)
        with safe_open(_tokens_file(self._folder, image_id), framework="pt") as file:
            return file.get_tensor("tokens")

    def __iter__(self) -> Iterator[int]:
        return iter(self._image_ids)

    def __len__(self) -> int:
        return len(self._image_ids)


@dataclass(frozen=True, eq=False)
class ProbeResults:
    """Hold what a probing run found.

    Attributes
    ----------
    table : pandas.DataFrame
        The tables of `probe` one after the other, in the order of the samples.
    tokens : Mapping
        Image id to ``(n_tokens, d_model)`` visual tokens; read from disk when asked for.
    description : Mapping
        The run's config, model and prompt, as the folder's ``probe.json`` has them.
    """

    table: pd.DataFrame
    tokens: Mapping[int, torch.Tensor]
    description: Mapping[str, Any] = field(repr=False)

    def row_tokens(self) -> torch.Tensor:
        """Gather the visual token of every row of the table, ``(n_rows, d_model)``, as `build_codebook` takes them."""
        groups = self.table.groupby("image_id", sort=False).indices
        gathered = [
            self.tokens[image_id][self.table["token"].to_numpy()[rows]] for image_id, rows in groups.items()
        ]
        order = torch.cat([torch.from_numpy(rows) for rows in groups.values()])
        return torch.cat(gathered)[order.argsort()]


def probe_dataset(
    model: Any,
    processor: Any,
    samples: Iterable[AnySample],
    config: ProbeConfig,
    folder: str | os.PathLike,
    progress: bool = True,
) -> ProbeResults:
    """Probe samples one after the other into a folder, and go on where an earlier run of the same config stopped.

    A finished sample, be it a photo, several photos or a video, is two files named by its id: its visual tokens
    (safetensors), then its table (Parquet, with config, model, sample and versions in its metadata). Both are written
    atomically, so a run that is killed loses no finished sample and leaves none half written. Later runs may bring
    other samples and batch sizes.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    samples : iterable of Sample or SequenceSample
        Photos, groups of photos that are asked about together, or videos; their ids are distinct.
    config : ProbeConfig
        What is probed and how.
    folder : path-like
        Made where it is missing.
    progress : bool
        Whether to print a line an image.

    Returns
    -------
    ProbeResults
        Of these samples, in their order; other images in the folder are left alone.

    Raises
    ------
    ImageError
        Before any image is probed: if there is no sample, or one cannot be read.
    ParameterError
        If ids repeat, the folder was made with another config or model, an image of an id is another than the
        folder's, or as `probe`. What does not depend on the images, such as videos for a family that takes none, is
        found before any is probed.
    """
    samples = list(samples)
    _check_samples(samples)
    adapter = adapter_for(model, processor)
    config.check_cls(adapter.has_cls)
    prompts = {
        each: _prompt(adapter, config.question, *each) for each in {(s.kind, s.n_images) for s in samples}
    }
    description = _describe(adapter, config)
    folder = Path(folder)
    _check_folder(folder, description)
    identities = {sample.image_id: sample_identity(sample) for sample in samples}
    unfinished = [s for s in samples if not _is_finished(folder, identities[s.image_id])]
    write_json(folder / _DESCRIPTION_FILE, description)
    if progress and len(unfinished) < len(samples):
        print(
            f"probing: {len(samples) - len(unfinished)} of {len(samples)} images are there already",
            flush=True,
        )
    versions, start = provenance(), time.perf_counter()
    for k, sample in enumerate(unfinished, 1):
        table, tokens = _probe_input(adapter, load_pictures(sample), sample.kind, sample, config)
        with atomic_path(_tokens_file(folder, sample.image_id)) as path:
            save_file({"tokens": tokens.cpu().contiguous()}, path)
        own = {"prompt": prompts[sample.kind, sample.n_images], "sample": identities[sample.image_id]}
        metadata = description | own | {"provenance": versions}
        write_table(_table_file(folder, sample.image_id), table, metadata)
        if progress:
            rate = k / (time.perf_counter() - start)
            print(
                f"probing: image {k} of {len(unfinished)} (id {sample.image_id}), {len(table)} positions, "
                f"{rate:.2f} images/s, {(len(unfinished) - k) / rate:.0f} s left",
                flush=True,
            )
    return _read(folder, [sample.image_id for sample in samples], description)


def shared_probe(
    model: Any,
    processor: Any,
    samples: Iterable[AnySample],
    config: ProbeConfig,
    results_folder: str | os.PathLike,
    images: str,
    progress: bool = True,
) -> ProbeResults:
    """Probe images into the folder that every notebook with the same model, images and settings uses.

    Parameters
    ----------
    model, processor, samples, config, progress
        As for `probe_dataset`.
    results_folder : path-like
        Where results are kept; the folder is ``probe/<hash>`` in it.
    images : str
        The name or folder under which the samples were opened, so that two folders of photos stay apart.

    Returns
    -------
    ProbeResults
        As `probe_dataset`; of images that another notebook has probed nothing is computed again.

    Raises
    ------
    ImageError, ParameterError
        As `probe_dataset`.
    """
    samples = list(samples)
    key = _describe(adapter_for(model, processor), config)
    del key["model"]  # its name; the fingerprint says which model it is, wherever it lies
    key |= {"images": str(images), "sources": sorted({sample.source for sample in samples})}
    folder = Path(results_folder) / "probe" / config_hash(key)
    return probe_dataset(model, processor, samples, config, folder, progress)


def view_pictures(
    processor: Any, image: PIL.Image.Image, views: Sequence[VisualView] | None = None
) -> list[np.ndarray]:
    """Show what each view of a photo covers, so that a signal laid over it covers the pixels its tokens come from.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        As `load_model` returns it.
    image : PIL.Image.Image
        Any size and mode; of a video, one frame.
    views : sequence of VisualView, optional
        Views of this photo, all or some. What their `region` says is cut from the photo, black beyond its edges.

    Returns
    -------
    list of numpy.ndarray
        ``(height, width, 3)`` values in [0, 1] for each view. Without `views`, or where they have no region: what the
        vision encoder gets, resized, cropped, cut into tiles, but not normalised. A tile is then shown whole, also
        where the LLM reads only a part of it. Of an encoder that gets patches of a whole photo, the photo.

    Raises
    ------
    ParameterError
        If views without a region are not as many as the pictures that the encoder gets.
    """
    image = as_rgb(image)
    if views and all(view.region is not None for view in views):
        return [_cut(image, view.region) for view in views]
    batch = processor.image_processor([image], do_normalize=False, return_tensors="pt")
    if torch.as_tensor(batch["pixel_values"]).ndim < 4:  # patches in a row, of a whole photo
        return [_cut(image, (0.0, 0.0, 1.0, 1.0))]
    pixels = torch.as_tensor(batch["pixel_values"][0])
    tiles = pixels if pixels.ndim == 4 else pixels[None]  # (n_views, 3, height, width)
    if views is not None and len(views) != len(tiles):
        raise ParameterError("views", f"{len(views)} views", f"{len(tiles)}, or views with regions")
    return [tile.permute(1, 2, 0).clamp(0, 1).numpy() for tile in tiles]


def _cut(image: PIL.Image.Image, region: tuple[float, float, float, float]) -> np.ndarray:
    """Cut a part out of a photo, given as fractions of its sides, at the photo's own resolution."""
    left, top, right, bottom = (
        edge * side for edge, side in zip(region, (image.width, image.height) * 2, strict=True)
    )
    size = (max(1, round(right - left)), max(1, round(bottom - top)))
    part = image.transform(size, PIL.Image.Transform.EXTENT, (left, top, right, bottom))
    return np.asarray(part, dtype=np.float32) / 255


def read_probe(folder: str | os.PathLike) -> ProbeResults:
    """Read every finished image of a folder that `probe_dataset` wrote, by ascending id.

    Raises
    ------
    ParameterError
        If it is no such folder, or has no finished image.
    """
    folder = Path(folder)
    if not (folder / _DESCRIPTION_FILE).is_file():
        raise ParameterError("folder", folder.name, "a folder that probe_dataset wrote")
    image_ids = sorted(int(path.stem) for path in folder.glob("*.parquet"))
    if not image_ids:
        raise ParameterError("folder", f"{folder.name}, no finished image", "a folder with at least one")
    return _read(folder, image_ids, read_json(folder / _DESCRIPTION_FILE))


def _read(folder: Path, image_ids: list[int], description: Mapping[str, Any]) -> ProbeResults:
    tables = [read_table(_table_file(folder, image_id))[0] for image_id in image_ids]
    return ProbeResults(pd.concat(tables, ignore_index=True), StoredTokens(folder, image_ids), description)


def _table_file(folder: Path, image_id: int) -> Path:
    return folder / f"{image_id:012d}.parquet"


def _tokens_file(folder: Path, image_id: int) -> Path:
    return folder / f"{image_id:012d}.safetensors"


def sample_identity(sample: AnySample) -> dict[str, Any]:
    """Return what tells a sample from another of the same id: its source, file name, pixels and objects.

    Raises
    ------
    ImageError
        If an image cannot be read.
    """
    is_single = isinstance(sample, Sample)
    pixels = hashlib.sha256()
    for picture in load_pictures(sample):
        pixels.update(b"" if is_single else f"{picture.size}".encode())
        pixels.update(picture.tobytes())
    objects = None
    if sample.objects is not None:
        objects = hashlib.sha256()
        for i, known in enumerate(_by_picture(sample)):
            objects.update(b"" if is_single else f"{i}".encode())
            for item in known.objects:
                counts = item.rle["counts"]
                objects.update(
                    item.category.encode() + (counts.encode() if isinstance(counts, str) else counts)
                )
    return {
        "image_id": sample.image_id,
        **({} if is_single else {"kind": sample.kind}),
        "source": sample.source,
        "file_name": sample.file_name,
        "pixels": pixels.hexdigest()[:12],
        "objects": objects and objects.hexdigest()[:12],
    }


def _check_samples(samples: list[AnySample]) -> None:
    if not samples:
        raise ImageError("samples: got none; accepted: at least one image")
    counts = Counter(sample.image_id for sample in samples)
    repeated = sorted(image_id for image_id, n in counts.items() if n > 1)
    if repeated:
        raise ParameterError("samples", f"image ids {repeated} more than once", "distinct image ids")


def load_pictures(sample: AnySample) -> list[PIL.Image.Image]:
    """Load all photos or frames of a sample as RGB, or raise an `ImageError` that names it."""
    noun = "image" if isinstance(sample, Sample) else "images"
    name = sample.file_name or f"{noun.removesuffix('s')} {sample.image_id}"
    try:
        pictures = [as_rgb(picture) for picture in sample.images]
    except ImageError:
        raise
    except Exception as error:  # whatever a dataset's loader raises
        raise ImageError(f"{noun}: {name!r} cannot be read ({type(error).__name__}: {error})") from error
    if len(pictures) != sample.n_images:
        raise ImageError(f"{noun}: {name!r} has {len(pictures)}; accepted: {sample.n_images}, as it says")
    return pictures


def _describe(adapter: Adapter, config: ProbeConfig) -> dict[str, Any]:
    """Return what results depend on besides the images."""
    settings = to_plain(config)
    del settings["batch_size"]
    if config.views == "all":  # as results of single grids were described before there was a choice
        del settings["views"]
    processors = {
        name: json.loads(json.dumps(_settings_of(getattr(adapter.processor, name).to_dict()), default=str))
        for name in ("image_processor", "video_processor")
        if getattr(adapter.processor, name, None) is not None
    }
    return {
        "config": settings,
        "model": _model_name(adapter.model),
        "model_fingerprint": model_fingerprint(adapter.model),
        "family": adapter.family,
        "prompt": adapter.prompt(config.question),
        **processors,
    }


def _check_folder(folder: Path, description: dict[str, Any]) -> None:
    """Raise where the folder holds results of another config or model."""
    if (folder / _DESCRIPTION_FILE).is_file():
        found = read_json(folder / _DESCRIPTION_FILE)
        here, wanted = ({**entry, **entry.get("config", {})} for entry in (found, description))
        skipped = {"config", "model"} | ({"prompt"} if here.get("question") != wanted["question"] else set())
        keys = dict.fromkeys([*wanted, *here])
        other = [key for key in keys if key not in skipped and here.get(key) != wanted.get(key)]
        if other:
            ours, theirs = ({key: values.get(key) for key in other} for values in (wanted, here))
            raise ParameterError(
                "config", ours, f"that of the folder's results, {theirs}, or an empty folder"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.glob("*.parquet"))):
        raise ParameterError(
            "folder", folder.name, f"a folder without other files, or one with {_DESCRIPTION_FILE}"
        )


def _is_finished(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Tell whether the folder holds the results of a sample; raise where they are those of another image."""
    path = _table_file(folder, identity["image_id"])
    if not path.is_file() or not _tokens_file(folder, identity["image_id"]).is_file():
        return False
    try:
        found = read_table(path)[1].get("sample")
    except ParameterError as error:
        warnings.warn(f"{error}; probing it again", stacklevel=3)
        return False
    if found != identity:
        raise ParameterError("samples", identity, f"the image that the folder has under this id, {found}")
    return True
