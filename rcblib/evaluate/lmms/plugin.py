"""Answer the tasks of lmms-eval with a supported model, all visual tokens or pruned: its model ``rcb``."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch
from tqdm import tqdm

from rcblib.codebook.codebook import load_codebook
from rcblib.data.photos import PHOTO_SUFFIXES, as_rgb, read_image
from rcblib.data.video import N_FRAMES, VideoFile
from rcblib.evaluate.lmms.answers import AnswerFile
from rcblib.mllm import Adapter, adapter_for, load_model
from rcblib.mllm.fingerprint import model_fingerprint
from rcblib.mllm.placement import module_device
from rcblib.pruners import ClsSimilarityPruner, CodebookPruner, Pruner, RandomPruner
from rcblib.pruners.base import POSITION_IDS, SCOPES
from rcblib.pruners.codebook import FAMILY_RULES
from rcblib.records import LAYOUTS, ParameterError, UnsupportedModelError
from rcblib.runs.digest import code_digest, digest_of
from rcblib.runs.files import write_json
from rcblib.runs.parameters import Count, Seed, checked
from rcblib.runs.provenance import provenance

try:
    from lmms_eval.api.model import lmms
except ImportError:  # the page about this module is built without it; a model is not made without it
    lmms = None

MODEL_NAME = "rcb"

IMAGE_MARK = "<image>"
"""Stands in a task's text where an image belongs, as in Mantis-Eval and MUIRBench."""

_SETTINGS = (
    "max_new_tokens", "min_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "top_k",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
)  # fmt: skip

_SAMPLING = ("temperature", "top_p", "top_k")

_MAX_NEW_TOKENS = 1024

_PATIENCE = timedelta(weeks=52)

_APART = 2**32  # more than a task has documents, so that numbers of different images differ


@checked
class ModelArguments:
    """Hold the model arguments of `RcbModel`, checked.

    Attributes
    ----------
    pretrained, device, dtype, device_map, quantization
        As `load_model` takes them.
    batch_size : int
        Questions answered together; it changes answers by rounding only.
    pruner : {"none", "codebook", "random", "cls_most", "cls_least"}
        Method; ``"cls_most"`` keeps the tokens most similar to [CLS].
    codebook : str or None
        An embedded, released or Hub codebook's name, a folder, or a released ``.pt`` file.
    rule : str or None
        How a codebook scores; by default ``max_cosine`` with a cut-off, else the rule that the release uses with the
        model's family.
    retain_ratio : float or None
        Share of the visual tokens to keep, in [0, 1].
    max_similarity : float or None
        Cosine cut-off in [-1, 1], of a codebook.
    layout, scope, position_ids
        As in `Pruner`.
    seed : int
        Of random tokens.
    n_frames : int
        Frames taken of a video.
    counts_file : str or None
        JSON file for the visual tokens of every answer; not written by default. Where several processes share the
        questions, each writes its own, with its number in front of the suffix: ``counts.0.json``, ``counts.1.json``.
    answers_folder : str or None
        Folder where every answer is kept as soon as it is given (`AnswerFile`): a run that was cut off and is started
        again reads them, and asks only what is left. Not written by default.
    """

    pretrained: str
    device: str = "auto"
    device_map: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    batch_size: Count = 1
    pruner: Literal["none", "codebook", "random", "cls_most", "cls_least"] = "none"
    codebook: str | None = None
    rule: str | None = None
    retain_ratio: float | None = None
    max_similarity: float | None = None
    layout: Literal[LAYOUTS] = "packed"
    scope: Literal[SCOPES] = "tile"
    position_ids: Literal[POSITION_IDS] = "auto"
    seed: Seed = 0
    n_frames: Count = N_FRAMES
    counts_file: str | None = None
    answers_folder: str | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> ModelArguments:
        """Check arguments as lmms-eval hands them over; the text ``None`` stands for none.

        Raises
        ------
        ParameterError
            On an unknown name, a wrong value, or arguments that do not go together.
        """
        plain = {name: None if value in ("None", "null", "") else value for name, value in given.items()}
        if str(plain.get("batch_size")).isdecimal():  # lmms-eval's command line hands it over as text
            plain["batch_size"] = int(plain["batch_size"])
        arguments = cls(**plain)
        wanted = {"none": (), "codebook": ("codebook", "rule", "max_similarity", "retain_ratio")}
        for name in ("codebook", "rule", "max_similarity", "retain_ratio"):
            value = getattr(arguments, name)
            if value is not None and name not in wanted.get(arguments.pruner, ("retain_ratio",)):
                raise ParameterError(name, value, f"none with the pruner {arguments.pruner!r}")
        if arguments.pruner == "codebook" and arguments.codebook is None:
            raise ParameterError("codebook", None, "a codebook with the pruner 'codebook'")
        if arguments.pruner not in wanted and arguments.retain_ratio is None:
            raise ParameterError("retain_ratio", None, f"a share with the pruner {arguments.pruner!r}")
        return arguments

    def make_pruner(self) -> Pruner | None:
        """Return the method, its codebook loaded, its rule that of the arguments or ``max_cosine``."""
        common = {name: getattr(self, name) for name in ("layout", "scope", "position_ids", "retain_ratio")}
        if self.pruner == "none":
            return None
        if self.pruner == "random":
            return RandomPruner(seed=self.seed, **common)
        if self.pruner == "codebook":
            codebook, rule = load_codebook(self.codebook), self.rule or "max_cosine"
            return CodebookPruner(codebook, rule, max_similarity=self.max_similarity, **common)
        return ClsSimilarityPruner(keep=self.pruner.removeprefix("cls_"), **common)


class RcbModel(lmms or object):
    """Answer lmms-eval's requests through plain `generate`, inside a pruner's context if one is asked for.

    Every process of ``accelerate launch`` loads the model and answers its share of the questions. Images stand before
    the question unless its text says where they belong (`IMAGE_MARK`); videos are decoded to evenly spaced frames.
    An answer ends before the first of the task's ``until`` texts.

    Parameters
    ----------
    max_batch_size : int, optional
        lmms-eval hands it over; not used.
    **arguments
        As `ModelArguments` says.

    Attributes
    ----------
    arguments : ModelArguments
        What it was made with.
    pruner : Pruner or None
        The method.
    counts : list of dict
        For each answer of this process ``task``, ``split``, ``doc_id``, and the rows that the LLM reads of all its
        images or videos, newlines included: ``n_visual_tokens`` without and ``n_retained`` with pruning. Answers that
        lmms-eval takes from its own cache are not among them.

    Raises
    ------
    ParameterError, UnsupportedModelError, CodebookError
        In one line, before anything is answered.
    """

    is_simple = True

    def __init__(self, max_batch_size: Any = None, **arguments: Any):
        if lmms is None:
            raise UnsupportedModelError("lmms-eval is not installed: pip install 'rcblib[lmms]'")
        super().__init__()
        self.arguments = ModelArguments.read(arguments)
        self.pruner = self.arguments.make_pruner()
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        # Processes have as many questions each, not as much work: none may give up waiting for another.
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
        device, device_map = self.arguments.device, self.arguments.device_map
        n_processes, number = self.accelerator.num_processes, self.accelerator.local_process_index
        if n_processes > 1 and device_map is not None:
            raise ParameterError(
                "device_map", device_map, f"none with {n_processes} processes, each with a model"
            )
        if n_processes > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{number}"
        self.model, self.processor = load_model(
            self.arguments.pretrained,
            device,
            self.arguments.dtype,
            device_map=device_map,
            quantization=self.arguments.quantization,
        )
        adapter = adapter_for(self.model, self.processor)
        if isinstance(self.pruner, CodebookPruner) and self.arguments.rule is None:
            preset = FAMILY_RULES.get(adapter.family, "max_cosine")
            if self.arguments.max_similarity is None:
                self.pruner = dataclasses.replace(self.pruner, rule=preset)
        if self.pruner is not None:
            self.pruner.check(adapter)
        self._rank, self._world_size = self.accelerator.process_index, n_processes
        self._kept = None
        if self.arguments.answers_folder is not None:
            made_with = {
                "model": model_fingerprint(self.model),
                "pruner": {} if self.pruner is None else self.pruner.description(),
                "n_frames": self.arguments.n_frames,
                "code": code_digest(__name__) + digest_of(type(self.pruner)),
            }
            self._kept = AnswerFile(self.arguments.answers_folder, made_with, self.rank)
        self.counts: list[dict[str, Any]] = []

    @property
    def device(self) -> torch.device:
        """Return where lmms-eval puts what its processes exchange."""
        return self.accelerator.device

    @property
    def batch_size(self) -> int:
        """Return how many questions are answered together."""
        return self.arguments.batch_size

    @torch.no_grad()
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer questions about images and videos.

        Parameters
        ----------
        requests : sequence of lmms_eval.api.instance.Instance
            Their arguments: text, generation settings, a function from document to what is shown, document number,
            task, split.

        Returns
        -------
        list of str
            Answers in the order of the requests, without white space around them.

        Raises
        ------
        ParameterError
            If something is shown that is neither image nor video, or a text marks more or fewer places for images
            than there are.
        ImageError
            If an image or a video cannot be read.
        """
        adapter = adapter_for(self.model, self.processor)
        answers = [""] * len(requests)
        counts: list[dict[str, Any]] = [{}] * len(requests)
        keys = ["" if self._kept is None else self._kept.key(request) for request in requests]
        kept = {} if self._kept is None else self._kept.read()
        for i, key in enumerate(keys):
            if key in kept:
                answers[i], counts[i] = kept[key]["answer"], kept[key]["count"]
        left = [i for i, key in enumerate(keys) if key not in kept]
        done = len(requests) - len(left)
        with tqdm(total=len(requests), initial=done, disable=self.rank != 0, desc="answers") as progress:
            for chosen in self._batches(requests, left):
                inputs = [self._input(adapter, requests[i]) for i in chosen]
                # Prompts that a processor takes together have as many images, and videos as many frames.
                for shape in dict.fromkeys(entry.shape for entry in inputs):
                    same = [k for k, entry in enumerate(inputs) if entry.shape == shape]
                    found = self._answer(adapter, [inputs[k] for k in same])
                    for k, (text, n_visual_tokens, n_retained) in zip(same, found, strict=True):
                        i = chosen[k]
                        context, settings, _, doc_id, task, split = requests[i].args
                        answers[i] = text
                        counts[i] = {
                            "task": task,
                            "split": split,
                            "doc_id": doc_id,
                            "n_visual_tokens": n_visual_tokens,
                            "n_retained": n_retained,
                        }
                        self.cache_hook.add_partial("generate_until", (context, settings), text)
                if self._kept is not None:
                    self._kept.append(
                        {"key": keys[i], "answer": answers[i], "count": counts[i]} for i in chosen
                    )
                progress.update(len(chosen))
        # lmms-eval repeats requests so that all processes get as many; those answers are not counted.
        real = [
            count
            for count, request in zip(counts, requests, strict=True)
            if not (request.metadata or {}).get("__padding_only__")
        ]
        self._record(real)
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise: a conversation of several rounds is not supported."""
        raise ParameterError("output_type", "generate_until_multi_round", "generate_until")

    def all_counts(self) -> list[dict[str, Any]]:
        """Return the `counts` of all processes, by task and document; every process has to call it."""
        if self.world_size == 1:
            return list(self.counts)
        from accelerate.utils import gather_object

        return _in_order(gather_object(self.counts))

    def clean(self) -> None:
        """Do nothing where lmms-eval takes models apart after a run: the next task goes on with this one."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise: how likely a given answer is would have to be asked past `generate`, where no pruner stands."""
        raise ParameterError("output_type", "loglikelihood or multiple_choice", "generate_until")

    def _batches(self, requests: Sequence[Any], left: Sequence[int]) -> Iterator[list[int]]:
        """Yield numbers of requests, of those left, that are generated with the same settings, a batch at a time."""
        groups: dict[str, list[int]] = {}
        for i in left:
            groups.setdefault(repr(sorted(requests[i].args[1].items())), []).append(i)
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                yield members[start : start + self.batch_size]

    def _input(self, adapter: Adapter, request: Any) -> _Input:
        """Load what is shown, and write the prompt."""
        context, settings, doc_to_visual, doc_id, task, split = request.args
        shown = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        images, videos = [], []
        for entry in _flat(shown):
            if isinstance(entry, PIL.Image.Image):
                images.append(as_rgb(entry))
            elif isinstance(entry, str | os.PathLike) and _is_photo(entry):
                images.append(read_image(entry))
            elif isinstance(entry, str | os.PathLike):
                videos.append(VideoFile(entry, self.arguments.n_frames)[0].images)
            else:
                raise ParameterError(
                    "visual", type(entry).__name__, "PIL images, or paths of images or videos"
                )
        prompt = _prompt(adapter, context, len(images), len(videos))
        return _Input(prompt, images, videos, dict(settings), doc_id)

    def _answer(self, adapter: Adapter, batch: Sequence[_Input]) -> list[tuple[str, int, int]]:
        """Return for prompts of one shape: answer, and the visual rows that the LLM reads without and with pruning."""
        n_images, frames = batch[0].shape
        given: dict[str, Any] = {}
        if n_images:
            several = [entry.images for entry in batch]
            given["images"] = [image for (image,) in several] if n_images == 1 else several
        if frames:
            given["videos"] = [list(video) for entry in batch for video in entry.videos]
        prompts = [entry.prompt for entry in batch]
        begins = adapter.wants_first_token(prompts[0])
        inputs = self.processor(
            text=prompts, return_tensors="pt", padding=True, add_special_tokens=begins, **given
        )
        inputs = inputs.to(module_device(self.model.get_input_embeddings()), self.model.dtype)
        settings, until = _generation_settings(batch[0].settings)
        settings["pad_token_id"] = self.processor.tokenizer.pad_token_id
        placeholders = [adapter.image_token_id, adapter.video_token_id]
        placeholders = inputs["input_ids"].new_tensor([own for own in placeholders if own is not None])
        n_all = torch.isin(inputs["input_ids"], placeholders).sum(-1).tolist()
        n_retained = n_all
        if self.pruner is None or not given:
            output = self.model.generate(**inputs, **settings)
        else:
            n_each = n_images + len(frames)
            numbers = [entry.doc_id + _APART * k for entry in batch for k in range(n_each)]
            with self.pruner(self.model, self.processor, image_indices=numbers) as pruner:
                output = self.model.generate(**inputs, **settings)
            n_retained = [
                sum(pruner.n_retained[start : start + n_each])
                for start in range(0, len(batch) * n_each, n_each)
            ]
        texts = self.processor.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [
            (_ended(text, until).strip(), *numbers)
            for text, *numbers in zip(texts, n_all, n_retained, strict=True)
        ]

    def _record(self, counts: list[dict[str, Any]]) -> None:
        """Keep counts, and write them if a file was named.

        Processes do not meet here: one whose answers are all in lmms-eval's cache is not asked for any.
        """
        self.counts += _in_order(counts)
        if self.arguments.counts_file is not None:
            path = Path(self.arguments.counts_file)
            if self.world_size > 1:
                path = path.with_name(f"{path.stem}.{self.rank}{path.suffix}")
            facts = {"model_arguments": dataclasses.asdict(self.arguments), "provenance": provenance()}
            write_json(path, {**facts, "answers": self.counts})


@dataclass(frozen=True)
class _Input:
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


def manifest() -> Any:
    """Return what lmms-eval registers; its entry point names this function."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_NAME, simple_class_path=f"{RcbModel.__module__}.{RcbModel.__qualname__}")


def _in_order(counts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(counts, key=lambda row: (row["task"], row["doc_id"]))


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


def _prompt(adapter: Adapter, context: str, n_images: int, n_videos: int) -> str:
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


def _generation_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
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


def _ended(text: str, until: Sequence[str]) -> str:
    """Cut a text before the first of those that end it; white space in front of the answer ends nothing."""
    text = text.lstrip()
    places = [text.find(end) for end in until]
    return text[: min((place for place in places if place >= 0), default=len(text))]
