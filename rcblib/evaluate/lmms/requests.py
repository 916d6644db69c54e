"""Read what lmms-eval asks: what is shown, the prompt, and how an answer is generated."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from rcblib.data.formats import is_photo
from rcblib.data.photos import read_image
from rcblib.data.video import VideoFile, is_video
from rcblib.mllm import Adapter
from rcblib.records import ImageError, ParameterError
from rcblib.runs.errors import in_one_line
from rcblib.runs.paths import user_path
from rcblib.tensors.pictures import as_rgb

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


def read_question(
    adapter: Adapter, request: Any, document: Any, n_frames: int, text_only: bool = False
) -> PicturedPrompt:
    """Load what a request shows of its document, and write the prompt.

    Parameters
    ----------
    adapter, n_frames
        The model's, and the frames taken of a video.
    request : lmms_eval.api.instance.Instance
        As lmms-eval hands it over.
    document : Mapping
        The row of the task that it is about.
    text_only : bool
        Whether a question is asked without anything to look at although its task shows pictures.

    Raises
    ------
    ImageError
        In one line that names task and document: if nothing is shown, something is ``None``, missing, or neither image
        nor video, or it cannot be read. A task without ``doc_to_visual`` shows nothing by design.
    ParameterError
        If a question is no text, or marks more or fewer places for images than there are.
    """
    context, settings, doc_to_visual, doc_id, task, _ = request.args
    images, videos = [], []
    try:
        shown = list(_flat(_shown(doc_to_visual, document)))
        if not shown and doc_to_visual is not None and not text_only:
            accepted = "an image or a video; questions without one with the model argument text_only=True"
            raise ParameterError("visual", "nothing", accepted)
        for entry in shown:
            picture = _read(entry, n_frames)
            (videos if isinstance(picture, tuple) else images).append(picture)
    except (Exception, SystemExit) as error:  # whatever a task's own function raises
        is_ours = isinstance(error, ParameterError | ImageError)
        reason = error if is_ours else f"{type(error).__name__}: {in_one_line(error)}"
        raise ImageError(f"task {task!r}, document {doc_id}: {reason}") from error
    prompt = write_prompt(adapter, context, len(images), len(videos))
    return PicturedPrompt(prompt, images, videos, dict(settings), doc_id)


def _shown(doc_to_visual: Any, document: Any) -> Any:
    """Return what a task shows of a document; its setting is a function, the name of a column, or nothing."""
    if doc_to_visual is None:
        return []
    shown = document[doc_to_visual] if isinstance(doc_to_visual, str) else doc_to_visual(document)
    return [] if shown is None else shown


def _flat(shown: Any) -> Iterator[Any]:
    if isinstance(shown, list | tuple):
        for entry in shown:
            yield from _flat(entry)
    else:
        yield shown


def _read(entry: Any, n_frames: int) -> PIL.Image.Image | tuple[PIL.Image.Image, ...]:
    """Return an image, or the frames of a video."""
    if isinstance(entry, PIL.Image.Image):
        return as_rgb(entry)
    if not isinstance(entry, str | os.PathLike) or not os.fspath(entry):
        given = entry if entry is None or isinstance(entry, str) else type(entry).__name__
        raise ParameterError("visual", given, "PIL images, or paths of images or videos")
    path = user_path(entry, "visual")
    if not path.exists():
        raise ImageError(
            f"visual: {str(entry)!r} does not exist; accepted: an image, a video or a folder of frames"
        )
    is_still = path.is_file() and is_photo(path) and not is_video(path)
    return read_image(path) if is_still else VideoFile(path, n_frames)[0].images


def write_prompt(adapter: Adapter, context: str, n_images: int, n_videos: int) -> str:
    """Write a question in the chat template, images and videos before it or where it marks their places."""
    if not isinstance(context, str):
        raise ParameterError("context", context, "the text of a question")
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
