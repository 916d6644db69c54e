"""Answer the tasks of lmms-eval with a supported model, all visual tokens or pruned: its model ``rcb``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import field
from datetime import timedelta
from typing import Any

import PIL.Image
import torch
from tqdm import tqdm

from rcblib.data.video import N_FRAMES
from rcblib.evaluate.lmms.answers import AnswerFile
from rcblib.evaluate.lmms.requests import PicturedPrompt, ended, generation_settings, read_question
from rcblib.mllm import Adapter, adapter_for, load_model
from rcblib.mllm.fingerprint import model_fingerprint, processor_settings
from rcblib.mllm.placement import module_device
from rcblib.pruners.base import Pruner
from rcblib.pruners.generation import Pruned
from rcblib.pruners.registry import PRUNERS, find_method
from rcblib.records import ParameterError, UnsupportedModelError
from rcblib.runs.digest import code_digest, digest_of
from rcblib.runs.files import why_not_writable, write_json
from rcblib.runs.parameters import Count, checked, unknown_parameter
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import provenance

try:
    from lmms_eval.api.model import lmms
except ImportError:  # the page about this module is built without it; a model is not made without it
    lmms = None

MODEL_NAME = "rcb"

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
    pruner : str
        A registered method (`rcblib.pruners.PRUNERS`); ``"none"`` keeps all tokens.
    parameters : dict
        The method's, such as ``retain_ratio``, ``layout``, ``seed``, ``codebook``; lmms-eval hands them over beside the
        others. What is left open takes the method's default, and a codebook's rule that of the release for the model's
        family.
    n_frames : int
        Frames taken of a video.
    text_only : bool
        Whether questions are answered that show nothing although their task shows pictures, such as some of ScienceQA.
        By default the first one ends the run: an answer without the image would count like any other.
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
    pruner: str = "none"
    parameters: dict[str, Any] = field(default_factory=dict)
    n_frames: Count = N_FRAMES
    text_only: bool = False
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
        own = {entry.name for entry in dataclasses.fields(cls)} - {"parameters"}
        of_methods = {name for method in PRUNERS.values() for name in method.parameters}
        for name in plain.keys() - own - of_methods:
            raise unknown_parameter(name, plain[name], own | of_methods)
        parameters = {name: plain.pop(name) for name in sorted(plain.keys() - own)}
        parameters = {name: value for name, value in parameters.items() if value is not None}
        arguments = cls(**plain, parameters=parameters)
        for name in sorted(own & find_method(arguments.pruner).parameters.keys()):
            accepted = f"a method without a parameter {name!r}, which is a model argument"
            raise ParameterError("pruner", arguments.pruner, accepted)
        for name, is_folder in (("counts_file", False), ("answers_folder", True)):
            path = getattr(arguments, name)
            if path is not None and (reason := why_not_writable(user_path(path, name), is_folder)):
                raise ParameterError(name, path, f"one that can be written; it {reason}")
        arguments.make_pruner()
        return arguments

    def make_pruner(self, family: str | None = None) -> Pruner:
        """Return the method, its codebook loaded; with a model's family, settings left open as they go with it."""
        return find_method(self.pruner).make(self.parameters, family=family)


class RcbModel(lmms or object):
    """Answer lmms-eval's requests through plain `generate`, inside a pruner's context if one is asked for.

    Every process of ``accelerate launch`` loads the model and answers its share of the questions. Images stand before
    the question unless its text says where they belong (`IMAGE_MARK` of `requests`); videos are decoded to evenly
    spaced frames.
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
    pruner : Pruner
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
        self.pruner = self.arguments.make_pruner(adapter.family)
        self.pruner.check(adapter)
        self._rank, self._world_size = self.accelerator.process_index, n_processes
        self._kept = None
        if self.arguments.answers_folder is not None:
            made_with = {
                "model": model_fingerprint(self.model),
                "processor": processor_settings(self.processor),
                "pruner": self.pruner.description(),
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
        ImageError
            If nothing is shown (see `ModelArguments.text_only`), or what is shown is missing, neither image nor video,
            or cannot be read.
        ParameterError
            If a text marks more or fewer places for images than there are.
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
                inputs = [self._read(adapter, requests[i]) for i in chosen]
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

    def _read(self, adapter: Adapter, request: Any) -> PicturedPrompt:
        """Load what is shown, and write the prompt."""
        *_, doc_id, task, split = request.args
        document, own = self.task_dict[task][split][doc_id], self.arguments
        return read_question(adapter, request, document, own.n_frames, own.text_only)

    def _processed(
        self, adapter: Adapter, batch: Sequence[PicturedPrompt], pruned: Pruned | None = None
    ) -> Any:
        """Return what the processor makes of prompts of one shape, their pictures resized by a pruner's context."""

        def resized(pictures: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
            return list(pictures) if pruned is None else pruned.resize(pictures)

        n_images, frames = batch[0].shape
        given: dict[str, Any] = {}
        if n_images:
            several = [resized(entry.images) for entry in batch]
            given["images"] = [image for (image,) in several] if n_images == 1 else several
        if frames:
            given["videos"] = [resized(video) for entry in batch for video in entry.videos]
        prompts = [entry.prompt for entry in batch]
        begins = adapter.wants_first_token(prompts[0])
        inputs = self.processor(
            text=prompts, return_tensors="pt", padding=True, add_special_tokens=begins, **given
        )
        return inputs.to(module_device(self.model.get_input_embeddings()), self.model.dtype)

    def _answer(self, adapter: Adapter, batch: Sequence[PicturedPrompt]) -> list[tuple[str, int, float]]:
        """Return for prompts of one shape: answer, and the visual rows that the LLM reads without and with pruning."""
        n_images, frames = batch[0].shape
        n_each = n_images + len(frames)
        settings, until = generation_settings(batch[0].settings)
        settings["pad_token_id"] = self.processor.tokenizer.pad_token_id
        inputs = self._processed(adapter, batch)
        placeholders = [adapter.image_token_id, adapter.video_token_id]
        placeholders = inputs["input_ids"].new_tensor([own for own in placeholders if own is not None])
        n_all = torch.isin(inputs["input_ids"], placeholders).sum(-1).tolist()
        numbers = [entry.doc_id + _APART * k for entry in batch for k in range(n_each)]
        context = self.pruner(self.model, self.processor, image_indices=numbers) if n_each else nullcontext()
        with context as pruned:
            if n_each and self.pruner.resizes:
                inputs = self._processed(adapter, batch, pruned)
            output = self.model.generate(**inputs, **settings)
        left = pruned.n_retained if n_each else []
        n_retained = [sum(left[i * n_each : (i + 1) * n_each]) for i in range(len(batch))]
        texts = self.processor.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [
            (ended(text, until).strip(), *counts)
            for text, *counts in zip(texts, n_all, n_retained, strict=True)
        ]

    def _record(self, counts: list[dict[str, Any]]) -> None:
        """Keep counts, and write them if a file was named.

        Processes do not meet here: one whose answers are all in lmms-eval's cache is not asked for any.
        """
        self.counts += _in_order(counts)
        if self.arguments.counts_file is not None:
            path = user_path(self.arguments.counts_file, "counts_file")
            if self.world_size > 1:
                path = path.with_name(f"{path.stem}.{self.rank}{path.suffix}")
            given = dataclasses.asdict(self.arguments)
            facts = {"model_arguments": given | given.pop("parameters"), "provenance": provenance()}
            write_json(path, {**facts, "answers": self.counts})


def manifest() -> Any:
    """Return what lmms-eval registers; its entry point names this function."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_NAME, simple_class_path=f"{RcbModel.__module__}.{RcbModel.__qualname__}")


def _in_order(counts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(counts, key=lambda row: (row["task"], row["doc_id"]))
