"""Evaluate pruning: generate answers from the tokens that survive, score them, and time what is saved."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from rcblib.data.choices import read_options
from rcblib.data.samples import load_pictures, sample_identity
from rcblib.evaluate.metrics import score_predictions
from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.fingerprint import model_fingerprint
from rcblib.mllm.placement import module_device
from rcblib.mllm.prompt import AssembledPrompt, Batch, Prompt
from rcblib.pruners.base import Pruner
from rcblib.records import (
    EncodedImage,
    ParameterError,
    Question,
    SceneObject,
)
from rcblib.runs.digest import code_digest, digest_of
from rcblib.runs.files import config_hash
from rcblib.runs.results import cached_table
from rcblib.tensors.geometry import check_features, check_integer

if TYPE_CHECKING:
    import os
from rcblib.data.base import AnySample

FEATURE_BYTES = 2 * 1024**3
"""Visual tokens kept in memory so that further pruners need not encode the images again."""


def evaluate(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    samples: Mapping[int, AnySample] | Iterable[AnySample],
    pruner: Pruner | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    *,
    categories: Iterable[str] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Answer questions greedily, with or without pruning, and score the answers.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    questions : sequence of Question
        Each about one of the samples.
    samples : Mapping or iterable of Sample or SequenceSample
        Images, several images that are asked about together, or videos, by id or in any order; ids are distinct. Each
        is loaded and encoded once. Several images stand in the prompt one after the other before the question.
    pruner : Pruner, optional
        ``None`` keeps all tokens.
    batch_size : int
        Questions answered together; it changes results by rounding only.
    max_new_tokens : int
        Longest answer in tokens.
    categories : iterable of str, optional
        Every category that counts in captions; by default those of the samples' objects.
    progress : bool
        Whether to print a line every few seconds.

    Returns
    -------
    pandas.DataFrame
        One row a question, in their order: ``image_id``, ``task``, ``subset``, ``question``, ``answer``,
        ``prediction``, ``score`` (in [0, 1], by `score_predictions`), and the rows that the LLM reads of the image,
        of all images, or of the video, newlines included: ``n_visual_tokens`` without and ``n_retained`` with pruning.

    Raises
    ------
    ParameterError
        Before any work: if there are no questions, one is about an unknown image, two samples share an id, a caption's
        image has no annotated objects, the family takes no videos, or a number is out of range; and as the pruner's
        own check. If visual tokens are not finite, or the frames of a video differ in size.
    ImageError
        If an image cannot be read.

    Notes
    -----
    A pruner is asked for every question by itself, or once an image where its choice does not depend on the prompt
    (`Pruner.reads_prompt`). The place of an image or video among those of all samples, by ascending id, is its
    `PruningContext.image_index`, so a random choice depends on seed and image, not on order or batch size.

    A question that lists options, as `rcblib.data.choices` writes them, is scored as multiple choice.
    """
    session = Session(model, processor, questions, samples, batch_size, max_new_tokens, categories)
    return session.answer(pruner, "evaluating" if progress else None)


def evaluate_grid(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    samples: Mapping[int, AnySample] | Iterable[AnySample],
    pruners: Mapping[str, Pruner | None | Sequence[Pruner | None]],
    batch_size: int = 32,
    max_new_tokens: int = 32,
    *,
    categories: Iterable[str] | None = None,
    folder: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluate several methods at several budgets and seeds; images are encoded once for all of them.

    Parameters
    ----------
    pruners : Mapping
        Name of a method to its pruner, or to one pruner for each budget and seed; ``None`` keeps all tokens.
    folder : path-like, optional
        Where the results of each pruner are kept (one Parquet each, named by a hash of everything they depend on, the
        code of evaluation and of the pruner's class included); a later call reads what is there and computes the rest.
    progress : bool
        Whether to print a line a pruner, and every few seconds.
    model, processor, questions, samples, batch_size, max_new_tokens, categories
        As in `evaluate`.

    Returns
    -------
    pandas.DataFrame
        The rows of `evaluate` for every pruner, with ``method``, ``retain_ratio`` and ``max_similarity`` (NaN where the
        budget is the other one; a ratio of 1 without pruner) and ``seed`` (missing where nothing is drawn) in front.

    Raises
    ------
    ParameterError
        As `evaluate`; also without pruners.
    """
    listed = listed_pruners(pruners)
    session = Session(model, processor, questions, samples, batch_size, max_new_tokens, categories)
    for _, pruner in listed:
        if pruner is not None:
            pruner.check(session.adapter)
    frames = []
    for k, (method, pruner) in enumerate(listed, 1):
        budget = budget_columns(pruner)
        words = ", ".join(f"{name} {value}" for name, value in budget.items() if not pd.isna(value))
        title = f"evaluating {k} of {len(listed)}: {method} ({words})" if progress else None

        def compute(pruner: Pruner | None = pruner, title: str | None = title) -> pd.DataFrame:
            return session.answer(pruner, title)

        if folder is None:
            frame = compute()
        else:
            code = code_digest(__name__) + digest_of(type(pruner))
            frame = cached_table(folder, "evaluation", session.description(pruner), code, compute)
        for place, (name, value) in enumerate({"method": method, **budget}.items()):
            frame.insert(place, name, value)
        frames.append(frame.astype({"seed": "Int64"}))
        if progress:
            print(f"{title}: mean score {frame['score'].mean():.3f}", flush=True)
    return pd.concat(frames, ignore_index=True)


def listed_pruners(
    pruners: Mapping[str, Pruner | None | Sequence[Pruner | None]],
) -> list[tuple[str, Pruner | None]]:
    """Return (method, pruner) pairs, checked."""
    pairs = [
        (method, pruner)
        for method, given in pruners.items()
        for pruner in (given if isinstance(given, Sequence) else [given])
    ]
    strangers = [type(pruner).__name__ for _, pruner in pairs if not isinstance(pruner, Pruner | None)]
    if not pairs or strangers:
        raise ParameterError("pruners", strangers or "none", "a name for each pruner, or None; at least one")
    return pairs


def budget_columns(pruner: Pruner | None) -> dict[str, Any]:
    budget = {"retain_ratio": 1.0} if pruner is None else pruner.budget()
    numbers = {name: budget.get(name) for name in ("retain_ratio", "max_similarity")}
    columns = {name: float("nan") if value is None else float(value) for name, value in numbers.items()}
    return columns | {"seed": getattr(pruner, "seed", pd.NA)}


class Session:
    """Answer the same questions with one pruner after the other, encoding each image once."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[Question],
        samples: Mapping[int, AnySample] | Iterable[AnySample],
        batch_size: int,
        max_new_tokens: int,
        categories: Iterable[str] | None,
    ):
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.max_new_tokens = check_integer("max_new_tokens", max_new_tokens, 1)
        self.questions = list(questions)
        given = list(samples.values() if isinstance(samples, Mapping) else samples)
        self.samples = {
            sample.image_id: sample for sample in sorted(given, key=lambda sample: sample.image_id)
        }
        if len(self.samples) < len(given):
            raise ParameterError("samples", "an image id more than once", "distinct image ids")
        self.present = {
            image_id: {item.category for item in _objects(sample)}
            for image_id, sample in self.samples.items()
            if sample.objects is not None
        }
        self._check_questions()
        self.image_index, n_before = {}, 0  # number of a sample's first image, or of the video
        for image_id, sample in self.samples.items():
            self.image_index[image_id] = n_before
            n_before += _n_pieces(sample)
        named = set().union(*self.present.values()) if categories is None else set(categories)
        self.categories = sorted(named)
        self.options = [read_options(question.text) for question in self.questions]
        self._score([{"prediction": ""} for _ in self.questions])  # so that wrong answers end before any work
        self.model, self.adapter = model, adapter_for(model, processor)
        self.tokenizer = processor.tokenizer
        self.prompts = [self._prompt(question) for question in self.questions]
        self.features = _Features(self.adapter, self.samples)

    def _check_questions(self) -> None:
        if not self.questions:
            raise ParameterError("questions", "none", "at least one")
        unknown = sorted({q.image_id for q in self.questions} - set(self.samples))
        if unknown:
            raise ParameterError("questions", f"about images {unknown[:5]}", "questions about the samples")
        bare = [
            q.image_id for q in self.questions if q.task == "caption" and not self.present.get(q.image_id)
        ]
        if bare:
            raise ParameterError(
                "questions", f"captions of images {bare[:5]}", "captions of images with objects"
            )

    def _prompt(self, question: Question) -> Prompt:
        sample, adapter = self.samples[question.image_id], self.adapter
        is_video, n = sample.kind == "video", _n_pieces(sample)
        prompt = adapter.read_prompt(
            adapter.prompt(question.text, 0 if is_video else n, n if is_video else 0)
        )
        if len(prompt.spans) != n:
            raise ParameterError("question", question.text, "text without image placeholders")
        return prompt

    def _input(
        self, index: int, pruner: Pruner | None, chosen: dict[int, list[list[torch.Tensor]]] | None = None
    ) -> _Input:
        """Prune the images of a question, and put what survives where the prompt has their placeholders.

        `chosen` holds what the pruner kept of samples so far, for one that does not read the prompt.
        """
        prompt, image_id = self.prompts[index], self.questions[index].image_id
        images = self.features.get(image_id, self.device)
        counts = [self.adapter.n_placeholders(image) for image in images]
        if pruner is None:
            visual = [self.adapter.assemble(image) for image in images]
        else:
            images = [image.arranged(pruner.layout) for image in images]
            kept = None if chosen is None else chosen.get(image_id)
            if kept is None:
                first, ids = self.image_index[image_id], prompt.expanded(counts).ids
                kept = [
                    pruner.select_image(image, first + i, ids, self.adapter) for i, image in enumerate(images)
                ]
            if chosen is not None:
                chosen[image_id] = kept
            visual = [self.adapter.gather(image, own) for image, own in zip(images, kept, strict=True)]
        renumbered = pruner is not None and not pruner.keeps_positions(self.adapter)
        return _Input(prompt.filled(visual, renumbered=renumbered), sum(counts), sum(map(len, visual)))

    def model_inputs(self, inputs: Sequence[_Input], pruner: Pruner | None) -> dict[str, Any]:
        """Pad inputs on the left and name them as `generate` and the model's forward do."""
        batch = Batch([entry.prompt for entry in inputs])
        columns = {
            "input_ids": batch.input_ids(self.adapter.image_token_id, self.tokenizer.pad_token_id or 0),
            "attention_mask": batch.attention_mask,
        }
        # On one axis `generate` numbers rows one after the other by itself.
        is_kept = pruner is not None and pruner.keeps_positions(self.adapter)
        if is_kept or self.adapter.n_position_axes > 1:
            columns["position_ids"] = batch.position_ids
        columns = {name: column.to(self.device) for name, column in columns.items()}
        return columns | self.adapter.generation_inputs(batch.visual_rows())

    @torch.no_grad()
    def answer(self, pruner: Pruner | None, title: str | None) -> pd.DataFrame:
        """Return the frame of `evaluate`."""
        if pruner is not None:
            pruner.check(self.adapter)
        # Most methods that look at the encoder look at this; so images need not be encoded again for them.
        needs = {"cls_similarity"} | (pruner.needs if pruner else set())
        order = sorted(
            range(len(self.questions)),
            key=lambda i: (
                self.samples[self.questions[i].image_id].n_images,  # inputs of like length together
                len(self.prompts[i].ids),
                self.image_index[self.questions[i].image_id],
            ),
        )
        rows: list[dict[str, Any]] = [{} for _ in order]
        kept = None if pruner is None or pruner.reads_prompt else {}
        report = _Progress(title, len(order))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            self.features.encode([self.questions[i].image_id for i in chosen], needs)
            batch = [self._input(i, pruner, kept) for i in chosen]
            inputs = self.model_inputs(batch, pruner)
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            texts = self.tokenizer.batch_decode(
                output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for i, entry, text in zip(chosen, batch, texts, strict=True):
                rows[i] = {
                    "prediction": text.strip(),
                    "n_visual_tokens": entry.n_tokens,
                    "n_retained": entry.n_retained,
                }
            report(start + len(chosen))
        return self._score(rows)

    def _score(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Return a frame of the questions with what was found for each, and its score."""
        names = {
            "image_id": "image_id",
            "task": "task",
            "subset": "subset",
            "text": "question",
            "answer": "answer",
        }
        asked = [
            {name: getattr(question, field) for field, name in names.items()} for question in self.questions
        ]
        frame = pd.DataFrame([{**question, **row} for question, row in zip(asked, rows, strict=True)])
        scores = score_predictions(frame, self.present, self.categories or None, self.options)
        frame.insert(6, "score", scores)
        return frame

    @property
    def device(self) -> torch.device:
        """Return the device that inputs go to; `model.device` may name another one where parts lie on several."""
        return module_device(self.model.get_input_embeddings())

    @cached_property
    def fingerprint(self) -> str:
        """Identify the model."""
        return model_fingerprint(self.model)

    @cached_property
    def images_hash(self) -> str:
        """Identify the samples, their pixels and objects."""
        return config_hash({"samples": [sample_identity(sample) for sample in self.samples.values()]})

    def description(self, pruner: Pruner | None) -> dict[str, Any]:
        """Return everything that answers depend on, in what JSON can hold."""
        return {
            "model": self.fingerprint,
            "processor": config_hash({"prompts": [prompt.ids.tolist() for prompt in self.prompts]}),
            "questions": config_hash({"questions": [dataclasses.asdict(q) for q in self.questions]}),
            "samples": self.images_hash,
            "categories": self.categories,
            "max_new_tokens": self.max_new_tokens,
            "pruner": {} if pruner is None else pruner.description(),
        }


@dataclass(frozen=True)
class _Input:
    """Hold one question's pruned prompt, and the rows of its images before and after."""

    prompt: AssembledPrompt
    n_tokens: int
    n_retained: int


class _Features:
    """Encode the images of samples when they are first asked for, and keep what fits in memory."""

    def __init__(self, adapter: Adapter, samples: Mapping[int, AnySample]):
        self.adapter, self.samples = adapter, samples
        self.images: dict[int, list[EncodedImage]] = {}
        self.signals: dict[int, set[str]] = {}  # asked for, of each of these

    def get(self, image_id: int, device: torch.device) -> list[EncodedImage]:
        """Return the images of a sample that the last call of `encode` asked for, their tokens on the device."""
        return [image.to(device) for image in self.images[image_id]]

    def encode(self, image_ids: Iterable[int], needs: Collection[str]) -> None:
        """Encode the images of those of some samples that are not there yet; single images all at once."""
        wanted = list(dict.fromkeys(image_ids))
        needs = set(needs) & self.adapter.offers
        missing = [i for i in wanted if i not in self.images or not needs <= self.signals[i]]
        if not missing:
            return
        if sum(_n_bytes(image) for images in self.images.values() for image in images) > FEATURE_BYTES:
            self.images = {i: self.images[i] for i in wanted if i not in missing}
        single = [i for i in missing if self.samples[i].kind == "image"]
        for together in (single, *([i] for i in missing if i not in single)):
            if together:
                pictures = [picture for i in together for picture in load_pictures(self.samples[i])]
                kind = self.samples[together[0]].kind
                images = self.adapter.encode_input(pictures, kind, needs)
                n_each = len(images) // len(together)
                for k, image_id in enumerate(together):
                    self._keep(image_id, images[k * n_each : (k + 1) * n_each])
                    self.signals[image_id] = needs

    def _keep(self, image_id: int, images: list[EncodedImage]) -> None:
        for view in (view for image in images for view in image.views):
            check_features("visual tokens", view.tokens, "(n_tokens, d_model)")
        self.images[image_id] = [image.to("cpu") for image in images]


def _n_bytes(image: EncodedImage) -> int:
    """Return the memory that an image's tokens take."""
    views = {id(view): view for view in (*image.views, *(image.whole or ()))}
    return sum(view.tokens.nbytes for view in views.values())


def _n_pieces(sample: AnySample) -> int:
    """Count what has a placeholder of its own in a prompt: every image, or the video."""
    return 1 if sample.kind == "video" else sample.n_images


def _objects(sample: AnySample) -> list[SceneObject]:
    """List the annotated objects of all images of a sample."""
    if sample.kind == "image":
        return list(sample.objects)
    return [item for objects in sample.objects for item in objects]


class _Progress:
    """Print how far a run is, at most every ten seconds."""

    def __init__(self, title: str | None, n: int):
        self.title, self.n, self.start = title, n, time.perf_counter()
        self.printed = self.start

    def __call__(self, n_done: int) -> None:
        """Report that so many of the questions are answered."""
        now = time.perf_counter()
        if self.title is not None and (n_done == self.n or now - self.printed >= 10):
            rate = n_done / (now - self.start)
            print(f"{self.title}: question {n_done} of {self.n}, {rate:.1f} a second", flush=True)
            self.printed = now
