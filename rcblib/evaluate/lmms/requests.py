"""Read what lmms-eval asks: what is shown, the prompt, and how an answer is generated."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from rcblib.data.photos import PHOTO_SUFFIXES, as_rgb, read_image
from rcblib.data.video import VideoFile
from rcblib.mllm import Adapter
from rcblib.records import ParameterError

IMAGE_MARK = "<image>"
"""Stands in a task's text where an image belongs, as in Mantis-Eval and MUIRBench."""

_SETTINGS = (
    "max_new_tokens", "min_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "top_k",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
)  # fmt: skip

_SAMPLING = ("temperature", "top_p", "top_k")

_MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class PicturedPrompt:
    """Hold one prompt with what it shows."""

    prompt: str
    images: list[PIL.Image.Image]
    videos: list[tuple[PIL.Image.Image, ...]]
    settings: dict[str, Any]
    doc_id: int

    @property
    def shape(self) -> tuple[int, tuple[int, ...]]:
        """Return the number of images, and the frames of each video."""
        return len(self.images), tuple(map(len, self.videos))


def read_question(adapter: Adapter, request: Any, document: Any, n_frames: int) -> PicturedPrompt:
    """Load what a request shows of its document, and write the prompt.

    Raises
    ------
    ParameterError
        If something is shown that is neither image nor video, or a text marks more or fewer places for images
        than there are.
    ImageError
        If an image or a video cannot be read.
    """
    context, settings, doc_to_visual, doc_id, _, _ = request.args
    images, videos = [], []
    for entry in _flat(doc_to_visual(document) or []):
        if isinstance(entry, PIL.Image.Image):
            images.append(as_rgb(entry))
        elif isinstance(entry, str | os.PathLike) and _is_photo(entry):
            images.append(read_image(entry))
        elif isinstance(entry, str | os.PathLike):
            videos.append(VideoFile(entry, n_frames)[0].images)
        else:
            raise ParameterError("visual", type(entry).__name__, "PIL images, or paths of images or videos")
    prompt = write_prompt(adapter, context, len(images), len(videos))
    return PicturedPrompt(prompt, images, videos, dict(settings), doc_id)


def _flat(shown: Any) -> Iterator[Any]:
    for entry in shown if isinstance(shown, list | tuple) else [shown]:
        if isinstance(entry, list | tuple):
            yield from _flat(entry)
        elif entry is not None:
            yield entry


def _is_photo(path: str | os.PathLike) -> bool:
    """Tell whether a path is that of a picture which does not move."""
    path = Path(path)
    if path.suffix.lower() not in PHOTO_SUFFIXES or not path.is_file():
        return False
    try:
        with PIL.Image.open(path) as image:
            return getattr(image, "n_frames", 1) == 1
    except (OSError, ValueError):
        return True  # reading it says what is wrong


def write_prompt(adapter: Adapter, context: str, n_images: int, n_videos: int) -> str:
    """Write a question in the chat template, images and videos before it or where it marks their places."""
    n_marks = context.count(IMAGE_MARK)
    if n_marks == 0:
        return adapter.prompt(context, n_images, n_videos)
    if n_marks != n_images or n_videos:
        accepted = f"none, or one for each of {n_images} images and no video"
        raise ParameterError("context", f"{n_marks} places marked {IMAGE_MARK}", accepted)
    token = adapter.processor.image_token
    if token != IMAGE_MARK:
        # What the template writes for an image: the placeholder, with whatever stands around it.
        before, with_image = (adapter.prompt(IMAGE_MARK, n).partition(IMAGE_MARK)[0] for n in (0, 1))
        piece = with_image.removeprefix(before)
        if not with_image.startswith(before) or piece.count(token) != 1:
            accepted = f"none, as the template of the family {adapter.family!r} puts images elsewhere"
            raise ParameterError("context", f"{n_marks} places marked {IMAGE_MARK}", accepted)
        context = context.replace(IMAGE_MARK, piece)
    return adapter.prompt(context, 0)


def generation_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of `generate`, and the texts that end an answer."""
    until = given.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(text, str) for text in until):
        raise ParameterError("until", until, "a text, or a list of texts")
    ignored = sorted(set(given) - {*_SETTINGS, "until"})
    if ignored:
        warnings.warn(f"generation settings {ignored} are not used", stacklevel=2)
    settings = {name: given[name] for name in _SETTINGS if given.get(name) is not None}
    settings.setdefault("max_new_tokens", _MAX_NEW_TOKENS)
    settings.setdefault("num_beams", 1)
    temperature = settings.get("temperature", 0)
    settings["do_sample"] = bool(settings.get("do_sample", temperature > 0)) and temperature > 0
    if not settings["do_sample"]:
        settings |= dict.fromkeys(_SAMPLING)
    return settings, [text for text in until if text]


def ended(text: str, until: Sequence[str]) -> str:
    """Cut a text before the first of those that end it; white space in front of the answer ends nothing."""
    text = text.lstrip()
    places = [text.find(end) for end in until]
    return text[: min((place for place in places if place >= 0), default=len(text))]
