"""Probe visual tokens: feed perturbed inputs, read first-token distributions, and record every signal a position has.

Three levels of visual input give three distributions of the first answer token. ``single``: one token alone.
``region``: the nine tokens of its window alone. ``global``: all tokens of the image. At the last two, part of
the input is also replaced (leave-one-out), and the divergence says how much that part mattered.
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

from rcblib.datasets import object_coverage, read_image, visible_box
from rcblib.divergence import combined_influence, divergence, entropy, top1_probability
from rcblib.geometry import (
    check_features,
    check_positions,
    evenly_spaced,
    paper_ranks,
    window,
)
from rcblib.mllm import Adapter, adapter_for
from rcblib.perturb import global_inputs, region_inputs, single_token_inputs
from rcblib.records import ONE_WORD_QUESTION, EncodedImage, ImageError, ParameterError, Sample, VisualView
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

NAMED_POSITIONS = ("all", "paper_ranks", "grid")
ARTICLES = frozenset({"a", "an", "the"})

_DESCRIPTION_FILE = "probe.json"


@dataclass(frozen=True)
class ProbeConfig:
    """Say what is probed and how; everything but `batch_size` changes the results.

    Attributes
    ----------
    question : str
        What is asked about the image.
    positions : str or tuple of int
        ``"all"``; ``"paper_ranks"``, the paper's ranks of [CLS] similarity, which without a [CLS] are taken as
        grid positions, as the release does; ``"grid"``, `n_side` x `n_side` evenly spaced positions; or positions
        by number. Of an image with several views, the same choice is made in each.
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
    n_side: int = bounded(8, minimum=1)
    n_head_candidates: int = bounded(50, minimum=1)
    n_candidates: int = bounded(10, minimum=1)
    k_region: float = bounded(1.0, minimum=0)
    k_global: float = bounded(16.0, minimum=0)
    attention: bool = True
    batch_size: int = bounded(32, minimum=1)

    def __post_init__(self):
        if hasattr(self.positions, "tolist"):
            object.__setattr__(self, "positions", self.positions.tolist())
        check_fields(self)
        if not self.question.strip():
            raise ParameterError("question", self.question, "text")
        accepted = f"{', '.join(NAMED_POSITIONS)}, or distinct positions by number, 0 or above, at least one"
        if isinstance(self.positions, str):
            fits = self.positions in NAMED_POSITIONS
        else:
            fits = bool(self.positions) and min(self.positions) >= 0
            fits = fits and len(set(self.positions)) == len(self.positions)
        if not fits:
            raise ParameterError("positions", self.positions, accepted)

    def choose(self, view: VisualView) -> list[int]:
        """List the positions of a view that are probed, ascending.

        Raises
        ------
        ParameterError
            If a position lies outside the grid, or ``"grid"`` asks for more than a side has.
        """
        if self.positions == "all":
            return list(range(view.n_tokens))
        if self.positions == "grid":
            return evenly_spaced(*view.grid, self.n_side)
        if self.positions == "paper_ranks":
            ranks = paper_ranks(view.n_tokens)
            return ranks if view.cls_similarity is None else sorted(_by_similarity(view)[ranks].tolist())
        return sorted(check_positions("positions", self.positions, view.n_tokens))


def _by_similarity(view: VisualView) -> torch.Tensor:
    """Return positions by decreasing similarity to [CLS], ties by position, ``(n_tokens,)``."""
    return torch.argsort(view.cls_similarity, descending=True, stable=True)


def probe(
    model: Any,
    processor: Any,
    image: PIL.Image.Image | str | os.PathLike,
    question: str = ONE_WORD_QUESTION,
    positions: str | Sequence[int] = "all",
    *,
    sample: Sample | None = None,
    batch_size: int = 32,
    attention: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Measure every signal of one image's visual tokens.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    image : PIL.Image.Image or path-like
        A photo, or its file.
    question, positions, batch_size, attention
        As in `ProbeConfig`, as are further `settings` by name.
    sample : Sample, optional
        What is known of the image; gives `image_id` and, where it has masks, what lies under each token.

    Returns
    -------
    pandas.DataFrame
        One row a probed position, by view and position.

        - ``image_id`` (the sample's, else 0), ``view``, ``position``, ``row``, ``column``; ``token``, the row among
          the visual tokens of all views.
        - ``top1_word``, ``top1_id``, ``top1_probability``, ``entropy`` (nats, over the full vocabulary): the token
          alone; the same with ``region_`` and ``global_`` in front: its window alone, the whole image.
        - ``region_divergence``, ``global_divergence`` (nats, released form; higher = matters more), both also with
          ``_textbook``; ``influence``, the weighted sum of the released ones.
        - ``single_article``, ``region_article``, ``region_ablated_article``, ``global_article``,
          ``global_ablated_article``: whether the run began with an article, so that the next token was read.
        - ``cls_similarity``, ``cls_rank`` (1 = most similar), ``cls_attention``: NaN where the encoder has no [CLS].
        - ``object_coverage`` (share of the patch under any mask) and ``object_category`` (the one that covers most of
          it, ``None`` where none does): NaN and ``None`` without masks and in tiles.
        - ``attention_last_layer_<i>``, ``attention_question_layer_<i>``: attention of the last prompt token and
          mean over the text after the image, mean over heads; absent without `attention`.

    Raises
    ------
    ImageError
        If the image cannot be read.
    ParameterError
        If a setting is out of range, a position lies outside the grid, visual tokens or logits are not finite, or
        the sample is of another size than the image.

    Notes
    -----
    Source: token-centric and context-centric analysis. An image of several views (tiles, frames) is probed view by
    view: single tokens and windows go in without the other views, at the global level the others stay intact.
    An article ("a", "an", "the") as first token is appended to the answer once and the next token's distribution
    is read, for every run by itself.
    Differs: the release skips "A" only, and encodes the image anew for every position.
    """
    if isinstance(positions, Sequence) and not isinstance(positions, str):
        positions = tuple(positions)
    config = _config(
        {"question": question, "positions": positions, "batch_size": batch_size, "attention": attention}
        | settings
    )
    picture = _opened(image)
    if sample is not None and picture.size != (sample.width, sample.height):
        raise ParameterError(
            "sample", (sample.width, sample.height), f"one of the image's size, {picture.size}"
        )
    return _probe_image(adapter_for(model, processor), picture, sample, config)[0]


def _config(settings: Mapping[str, Any]) -> ProbeConfig:
    known = [entry.name for entry in dataclasses.fields(ProbeConfig)]
    for name, value in settings.items():
        if name not in known:
            raise ParameterError(name, value, f"no setting of this name; known: {', '.join(known)}")
    return ProbeConfig(**settings)


def _opened(image: PIL.Image.Image | str | os.PathLike) -> PIL.Image.Image:
    """Return an image as RGB, from its file where it is one."""
    if isinstance(image, PIL.Image.Image):
        return image.convert("RGB")
    if not isinstance(image, str | os.PathLike):
        raise ImageError(f"image: got {type(image).__name__}; accepted: a PIL image or a file")
    return read_image(image)


class _Reader:
    """Read the distributions after one prompt, past an article where the answer begins with one."""

    def __init__(self, adapter: Adapter, prompt: str, batch_size: int):
        self.adapter, self.prompt, self.batch_size = adapter, prompt, batch_size
        self.words: dict[int, str] = {}

    def word(self, token_id: int) -> str:
        """Return the text of a token without spaces around it; long words may be cut where the tokenizer cuts them."""
        if token_id not in self.words:
            self.words[token_id] = self.adapter.processor.tokenizer.decode([token_id]).strip()
        return self.words[token_id]

    def read(self, visual: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits ``(n, n_vocab)`` and whether an article was passed ``(n,)``."""
        logits = self.adapter.first_token_logits(self.prompt, visual, batch_size=self.batch_size)
        first = logits.argmax(-1).tolist()
        begun = [i for i, token_id in enumerate(first) if self.word(token_id).lower() in ARTICLES]
        if begun:
            logits[begun] = self.adapter.first_token_logits(
                self.prompt,
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


def _probe_image(
    adapter: Adapter, picture: PIL.Image.Image, sample: Sample | None, config: ProbeConfig
) -> tuple[pd.DataFrame, torch.Tensor]:
    """Return the table of one image and its visual tokens, ``(n_tokens of all views, d_model)``."""
    (image,) = adapter.encode([picture], attention=config.attention and adapter.has_cls)
    tokens = torch.cat([view.tokens for view in image.views])
    check_features("visual tokens", tokens, "(n_tokens, d_model)")
    chosen = [config.choose(view) for view in image.views]

    reader = _Reader(adapter, adapter.prompt(config.question), config.batch_size)
    rows, _ = _assembled(adapter, image)
    whole = reader.read([rows])
    attention = adapter.text_to_image_attention(reader.prompt, rows) if config.attention else None

    frames, n_before = [], 0
    for i, positions in enumerate(chosen):
        columns = {"image_id": sample.image_id if sample else 0, "view": i}
        columns |= _place(image.views[i], positions, n_before)
        columns |= _output_signals(reader, image, i, positions, whole, config)
        columns |= _encoder_signals(image.views[i], positions)
        columns |= _objects(adapter, sample, image.views[i], positions)
        if attention is not None:
            columns |= _text_attention(attention, [n_before + position for position in positions])
        frames.append(pd.DataFrame(columns))
        n_before += image.views[i].n_tokens
    return pd.concat(frames, ignore_index=True), tokens


def _assembled(adapter: Adapter, image: EncodedImage) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all of an image's tokens as the LLM reads them, and their places among its placeholders."""
    return adapter.gather(image, [torch.arange(view.n_tokens) for view in image.views])


def _place(view: VisualView, positions: list[int], n_before: int) -> dict[str, Any]:
    width = view.grid[1]
    return {
        "token": [n_before + position for position in positions],
        "position": positions,
        "row": [position // width for position in positions],
        "column": [position % width for position in positions],
    }


def _output_signals(
    reader: _Reader,
    image: EncodedImage,
    view_index: int,
    positions: list[int],
    whole: tuple[torch.Tensor, torch.Tensor],
    config: ProbeConfig,
) -> dict[str, Any]:
    """Return what the first answer token says about the positions of one view."""
    view = image.views[view_index]
    replacement = reader.adapter.replacement_embedding()
    # Targets at a border share their window, and so the runs that depend on the window alone.
    windows = [tuple(window(position, *view.grid)) for position in positions]
    number = {cells: i for i, cells in enumerate(dict.fromkeys(windows))}
    own = torch.tensor([number[cells] for cells in windows])  # (n_positions,) each position's window
    first = [windows.index(cells) for cells in number]  # a position for each window

    single = reader.read(single_token_inputs(view.tokens, positions))
    intact, ablated = region_inputs(view.tokens, view.grid, positions, replacement)
    region, region_article = (runs[own] for runs in reader.read(intact[first]))
    region_ablated = reader.read(ablated)
    global_ablated, global_article = (
        runs[own]
        for runs in _read_global(reader, image, view_index, [positions[i] for i in first], replacement)
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
    reader: _Reader, image: EncodedImage, view_index: int, targets: list[int], replacement: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the image with each target's window replaced, a batch at a time: each input is a copy of the image."""
    view = image.views[view_index]
    logits, articles = [], []
    for start in range(0, len(targets), reader.batch_size):
        batch = global_inputs(view.tokens, view.grid, targets[start : start + reader.batch_size], replacement)
        inputs = []
        for tokens in batch:
            views = list(image.views)
            views[view_index] = dataclasses.replace(view, tokens=tokens)
            inputs.append(_assembled(reader.adapter, dataclasses.replace(image, views=tuple(views)))[0])
        for store, result in zip((logits, articles), reader.read(inputs), strict=True):
            store.append(result)
    return torch.cat(logits), torch.cat(articles)


def _encoder_signals(view: VisualView, positions: list[int]) -> dict[str, Any]:
    """Return what the vision encoder says about the positions of a view."""
    columns: dict[str, Any] = {
        "cls_similarity": float("nan"),
        "cls_rank": float("nan"),
        "cls_attention": float("nan"),
    }
    if view.cls_similarity is not None:
        rank = torch.empty(view.n_tokens, dtype=torch.long)
        rank[_by_similarity(view)] = torch.arange(1, view.n_tokens + 1)
        columns |= {
            "cls_similarity": view.cls_similarity[positions].numpy(),
            "cls_rank": rank[positions].numpy(),
        }
    if view.cls_attention is not None:
        columns["cls_attention"] = view.cls_attention[positions].numpy()
    return columns


def _objects(
    adapter: Adapter, sample: Sample | None, view: VisualView, positions: list[int]
) -> dict[str, Any]:
    """Return how much of each position objects cover, and the category that covers most."""
    if sample is None or sample.objects is None or view.kind != "image":
        return {"object_coverage": float("nan"), "object_category": None}
    processor = adapter.processor.image_processor
    if getattr(processor, "do_center_crop", False):
        box = visible_box(sample.width, sample.height, processor.crop_size["height"])
    else:
        box = (0.0, 0.0, float(sample.width), float(sample.height))
    coverage = object_coverage(sample, *view.grid, box)
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


def world_note(model: Any, samples: Iterable[Sample]) -> str:
    """Say that samples lie outside the world that an embedded model was trained on.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Embedded models name their world in ``config.rcb_world``.
    samples : iterable of Sample
        What it is to look at.

    Returns
    -------
    str
        One sentence; empty where the model is of no such world or every sample is from it.
    """
    world = getattr(model.config, "rcb_world", None)
    sources = sorted({sample.source for sample in samples if sample.source.split("/")[0] != world})
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
    for name, weight in model.named_parameters():
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

    Behaves as a dictionary from image id to ``(n_tokens, d_model)``, in the dtype that the model gave them; of an image
    with several views, the views one after the other.
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
    samples: Iterable[Sample],
    config: ProbeConfig,
    folder: str | os.PathLike,
    progress: bool = True,
) -> ProbeResults:
    """Probe images one after the other into a folder, and go on where an earlier run of the same config stopped.

    A finished image is two files named by its id: its visual tokens (safetensors), then its table (Parquet, with
    config, model, sample and versions in its metadata). Both are written atomically, so a run that is killed loses
    no finished image and leaves none half written. Later runs may bring other samples and batch sizes.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    samples : iterable of Sample
        Images; their ids are distinct.
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
        folder's, or as `probe`.
    """
    samples = list(samples)
    _check_samples(samples)
    adapter = adapter_for(model, processor)
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
        table, tokens = _probe_image(adapter, load_picture(sample), sample, config)
        with atomic_path(_tokens_file(folder, sample.image_id)) as path:
            save_file({"tokens": tokens.cpu().contiguous()}, path)
        metadata = description | {"sample": identities[sample.image_id], "provenance": versions}
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
    samples: Iterable[Sample],
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


def view_pictures(processor: Any, image: PIL.Image.Image) -> list[np.ndarray]:
    """Show an image as the vision encoder gets it: resized, cropped, cut into tiles, but not normalised.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        As `load_model` returns it.
    image : PIL.Image.Image
        Any size and mode.

    Returns
    -------
    list of numpy.ndarray
        ``(height, width, 3)`` values in [0, 1] for each view, in the order of the views that the model encodes. A
        signal that is laid over one of them covers the pixels that its tokens come from.
    """
    batch = processor.image_processor([image.convert("RGB")], do_normalize=False, return_tensors="pt")
    pixels = torch.as_tensor(batch["pixel_values"][0])
    tiles = pixels if pixels.ndim == 4 else pixels[None]  # (n_views, 3, height, width)
    return [tile.permute(1, 2, 0).clamp(0, 1).numpy() for tile in tiles]


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


def sample_identity(sample: Sample) -> dict[str, Any]:
    """Return what tells a sample from another of the same id: its source, file name, pixels and objects.

    Raises
    ------
    ImageError
        If the image cannot be read.
    """
    objects = None
    if sample.objects is not None:
        objects = hashlib.sha256()
        for item in sample.objects:
            counts = item.rle["counts"]
            objects.update(item.category.encode() + (counts.encode() if isinstance(counts, str) else counts))
    return {
        "image_id": sample.image_id,
        "source": sample.source,
        "file_name": sample.file_name,
        "pixels": hashlib.sha256(load_picture(sample).tobytes()).hexdigest()[:12],
        "objects": objects and objects.hexdigest()[:12],
    }


def _check_samples(samples: list[Sample]) -> None:
    if not samples:
        raise ImageError("samples: got none; accepted: at least one image")
    counts = Counter(sample.image_id for sample in samples)
    repeated = sorted(image_id for image_id, n in counts.items() if n > 1)
    if repeated:
        raise ParameterError("samples", f"image ids {repeated} more than once", "distinct image ids")


def load_picture(sample: Sample) -> PIL.Image.Image:
    """Load the image of a sample, or raise an `ImageError` that names it."""
    try:
        return sample.load().convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # whatever a dataset's loader raises
        name = sample.file_name or f"image {sample.image_id}"
        raise ImageError(f"image: {name!r} cannot be read ({type(error).__name__}: {error})") from error


def _describe(adapter: Adapter, config: ProbeConfig) -> dict[str, Any]:
    """Return what results depend on besides the images."""
    settings = to_plain(config)
    del settings["batch_size"]
    return {
        "config": settings,
        "model": _model_name(adapter.model),
        "model_fingerprint": model_fingerprint(adapter.model),
        "family": adapter.family,
        "prompt": adapter.prompt(config.question),
        "image_processor": json.loads(
            json.dumps(_settings_of(adapter.processor.image_processor.to_dict()), default=str)
        ),
    }


def _check_folder(folder: Path, description: dict[str, Any]) -> None:
    """Raise where the folder holds results of another config or model."""
    if (folder / _DESCRIPTION_FILE).is_file():
        found = read_json(folder / _DESCRIPTION_FILE)
        here, wanted = ({**entry, **entry.get("config", {})} for entry in (found, description))
        skipped = {"config", "model"} | ({"prompt"} if here.get("question") != wanted["question"] else set())
        other = [key for key in wanted if key not in skipped and here.get(key) != wanted[key]]
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
