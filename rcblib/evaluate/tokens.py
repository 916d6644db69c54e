"""Measure what gates ask of single tokens: the word each says alone, what lies beneath, and what pixels tell of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pandas as pd

from rcblib.data.base import AnySample
from rcblib.data.pixels import pixel_signals
from rcblib.data.samples import load_pictures, sample_identity
from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.fingerprint import model_fingerprint, processor_settings
from rcblib.probe.config import ProbeConfig
from rcblib.probe.inputs import places_of, wanted_places
from rcblib.probe.perturbation import WINDOW_SIZE
from rcblib.probe.pictures import view_pictures
from rcblib.probe.run import probe_input
from rcblib.records import ONE_WORD_QUESTION, ParameterError
from rcblib.runs.digest import code_digest
from rcblib.runs.files import config_hash, to_plain
from rcblib.runs.results import cached_table

ALONE = ("top1_word", "top1_id", "top1_probability", "entropy")
BENEATH = ("object_coverage", "object_category")


def check_masked(samples: Iterable[AnySample]) -> None:
    """Raise a `ParameterError` where a sample has no masks, or is several images or a video."""
    for own in samples:
        if own.kind != "image" or own.objects is None:
            given = f"image {own.image_id}, {own.kind if own.objects is not None else 'without masks'}"
            raise ParameterError("samples", given, "single images with masks")


def measure_tokens(
    model: Any,
    processor: Any,
    samples: Iterable[AnySample],
    *,
    question: str = ONE_WORD_QUESTION,
    influence: bool = False,
    sample: bool = False,
    batch_size: int = 64,
    folder: str | os.PathLike,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the tokens of single images with masks, image by image; what is in the folder is not measured again.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    samples : iterable of Sample
        Images with annotated objects.
    question : str
        What every token is asked alone.
    influence : bool
        Whether the combined influence is measured too, for low-information sets: a pass of the whole image a window.
    sample : bool
        Whether only nine tokens of each view are measured, evenly spaced, to compare them with a record.
    batch_size : int
        Inputs per forward pass.
    folder : path-like
        Where finished images are kept, each as a table named by a hash of model, image, settings and code.
    progress : bool
        Whether to print a line an image.

    Returns
    -------
    pandas.DataFrame
        One row a token: where it is, as `rcblib.probe.run.probe` says it; the signals of `ALONE` and `BENEATH`,
        ``cls_similarity`` where there is a [CLS], ``influence`` if asked for; ``named``, whether the token alone says
        the first piece of a word of the name beneath; and those of `rcblib.data.pixels.PIXEL_SIGNALS`.

    Raises
    ------
    ParameterError
        If a sample has no masks, or is several images or a video.
    """
    samples = list(samples)
    check_masked(samples)
    adapter = adapter_for(model, processor)
    positions = {"positions": "grid", "n_side": WINDOW_SIZE} if sample else {}
    config = ProbeConfig(question, batch_size=batch_size, attention=False, **positions)
    signals = [*ALONE, *BENEATH, "cls_similarity", *(["influence"] if influence else [])]
    asked = {
        "model": model_fingerprint(adapter.model),
        "processor": config_hash(processor_settings(processor)),
        "config": {name: value for name, value in to_plain(config).items() if name != "batch_size"},
        "signals": signals,
    }
    frames = []
    for number, own in enumerate(samples, 1):
        key = asked | {"sample": sample_identity(own)}
        frames.append(
            cached_table(
                folder,
                "tokens",
                key,
                code_digest(__name__),
                lambda own=own: _table(adapter, own, config, signals),
            )
        )
        if progress:
            print(f"tokens of image {number} of {len(samples)}", flush=True)
    return pd.concat(frames, ignore_index=True)


def first_pieces(adapter: Adapter, name: str) -> set[int]:
    """Return the token ids with which the words of a name may begin, in any case, after a blank or not."""
    tokenizer = adapter.processor.tokenizer
    found = set()
    for word in name.split():
        for form in (word, word.lower(), word.capitalize()):
            for text in (form, f" {form}"):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                written = [i for i in ids if i != tokenizer.unk_token_id and tokenizer.decode([i]).strip()]
                found.update(written[:1])
    return found


def _table(adapter: Adapter, sample: AnySample, config: ProbeConfig, signals: list[str]) -> pd.DataFrame:
    pictures = load_pictures(sample)
    frame, _ = probe_input(adapter, pictures, sample.kind, sample, config, signals)
    names = {item.category for item in sample.objects}
    pieces = {name: first_pieces(adapter, name) for name in names}
    beneath = zip(frame["object_category"], frame["top1_id"], strict=True)
    frame["named"] = [isinstance(name, str) and token_id in pieces[name] for name, token_id in beneath]
    images = adapter.encode_input(pictures, sample.kind)
    places = wanted_places(places_of(images), config, f"image {sample.image_id}")
    shown = view_pictures(adapter.processor, pictures[0], images[0].views)
    columns = [
        pd.DataFrame(pixel_signals(shown[place.inside], place.view.grid)).assign(
            view=place.number, position=lambda rows: rows.index
        )
        for place in places
    ]
    return frame.merge(pd.concat(columns), on=["view", "position"], how="left", validate="one_to_one")
