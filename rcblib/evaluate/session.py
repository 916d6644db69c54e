"""Answer questions with one pruner after the other, encoding each image once."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from rcblib.data.base import AnySample
from rcblib.data.choices import read_options
from rcblib.data.samples import as_samples, identified, load_pictures
from rcblib.evaluate.guessing import blind_scores
from rcblib.evaluate.known import Known
from rcblib.evaluate.metrics import score_predictions
from rcblib.mllm import Adapter, adapter_for
from rcblib.mllm.fingerprint import model_fingerprint, processor_settings
from rcblib.mllm.placement import module_device
from rcblib.mllm.prompt import Prompt
from rcblib.pruners.base import Pruner
from rcblib.pruners.generation import Pruned
from rcblib.records import EncodedImage, ImageId, ParameterError, Question, SceneObject
from rcblib.runs.files import config_hash
from rcblib.tensors.checks import check_features, check_integer

FEATURE_BYTES = 2 * 1024**3
"""Visual tokens kept in memory so that further pruners need not encode the images again."""


class Session:
    """Answer the same questions with one pruner after the other, encoding each image once."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[Question],
        samples: Mapping[ImageId, AnySample] | Iterable[AnySample],
        batch_size: int,
        max_new_tokens: int,
        categories: Iterable[str] | None,
    ):
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.max_new_tokens = check_integer("max_new_tokens", max_new_tokens, 1)
        self.questions = _as_questions(questions)
        given = as_samples(samples.values() if isinstance(samples, Mapping) else samples)
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
        asked = pd.DataFrame([dataclasses.asdict(question) for question in self.questions])
        self.guesses = blind_scores(asked, self.present).tolist()
        self.options = [read_options(question.text) for question in self.questions]
        self._score([{"prediction": ""} for _ in self.questions])  # so that wrong answers end before any work
        self.processor, self.adapter = processor, adapter_for(model, processor)
        self.model = self.adapter.model
        self.tokenizer = processor.tokenizer
        self.prompts = [self._prompt(question) for question in self.questions]
        self.features = _Features(self.adapter, self.samples)
        self.known = Known(self.adapter, self.samples, self.features.encode)

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

    def part(self, places: Sequence[int]) -> Session:
        """Return a session that asks only the questions at some places; all else is shared with this one."""
        part = copy.copy(self)
        for name in ("questions", "guesses", "options", "prompts"):
            setattr(part, name, [getattr(self, name)[i] for i in places])
        return part

    def prepare(self, pruners: Iterable[Pruner]) -> None:
        """Check all pruners, and have images encoded for all of them at once."""
        for pruner in pruners:
            if not isinstance(pruner, Pruner):
                given = pruner if isinstance(pruner, str) else type(pruner).__name__
                raise ParameterError("pruner", given, "a pruner, such as RandomPruner(0.5), or none")
            pruner.check(self.adapter)
            self.known.check(pruner.of_samples)
            self.features.needs |= pruner.signals

    def hand_in(
        self, pruned: Pruned, indices: Sequence[int], images: Sequence[Sequence[EncodedImage]]
    ) -> dict[str, torch.Tensor]:
        """Give the encoded images of questions to a pruner's context; return the prompts, padded on the left."""
        prompts = []
        for index, own in zip(indices, images, strict=True):
            first = self.image_index[self.questions[index].image_id]
            pruned.hand_in(own, range(first, first + len(own)))
            counts = [self.adapter.n_placeholders(image) for image in own]
            prompts.append(self.prompts[index].expanded(counts).ids)
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def n_visual_tokens(self, images: Sequence[EncodedImage]) -> int:
        """Count the rows that the LLM reads of a sample without pruning."""
        return sum(self.adapter.n_placeholders(image) for image in images)

    @torch.no_grad()
    def answer(self, pruner: Pruner, title: str | None) -> pd.DataFrame:
        """Return the frame of `evaluate`."""
        self.prepare([pruner])
        _ = self.identities  # all images are read once, so that damaged ones end the run before it begins
        order = sorted(
            range(len(self.questions)),
            key=lambda i: (
                self.samples[self.questions[i].image_id].n_images,  # inputs of like length together
                len(self.prompts[i].ids),
                self.image_index[self.questions[i].image_id],
            ),
        )
        rows: list[dict[str, Any]] = [{} for _ in order]
        report = _Progress(title, len(order))
        with pruner(self.model, self.processor) as pruned:
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                ids = [self.questions[i].image_id for i in chosen]
                whole = self.features.encode(ids)
                images = self.features.encode(ids, pruned) if pruner.resizes else whole
                if pruner.of_samples:
                    images = self.known.add(ids, images, pruner.of_samples)
                inputs = self.hand_in(pruned, chosen, images)
                n_before = len(pruned.n_retained)
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
                new = output[:, inputs["input_ids"].shape[1] :]
                texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
                n_retained = iter(pruned.n_retained[n_before:])
                for i, own, full, text in zip(chosen, images, whole, texts, strict=True):
                    rows[i] = {
                        "prediction": text.strip(),
                        "n_visual_tokens": self.n_visual_tokens(full),
                        "n_retained": sum(next(n_retained) for _ in own),
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
        frame.insert(7, "guess", self.guesses)
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
    def identities(self) -> dict[ImageId, dict[str, Any]]:
        """Identify each of the samples, its pixels and objects."""
        return identified(list(self.samples.values()), limit=self.adapter.size_limit)[0]

    @cached_property
    def images_hash(self) -> str:
        """Identify the samples together."""
        return config_hash({"samples": list(self.identities.values())})

    def description(self, pruner: Pruner) -> dict[str, Any]:
        """Return everything that answers depend on, in what JSON can hold."""
        prompts = {"prompts": [prompt.ids.tolist() for prompt in self.prompts]}
        return {
            "model": self.fingerprint,
            "processor": config_hash(prompts | processor_settings(self.processor)),
            "questions": config_hash({"questions": [dataclasses.asdict(q) for q in self.questions]}),
            "samples": self.images_hash,
            "categories": self.categories,
            "max_new_tokens": self.max_new_tokens,
            "pruner": pruner.description(),
        }


def _as_questions(given: Any) -> list[Question]:
    """Return what is given as questions as a list of them, each with a text and an answer."""
    questions = [given] if isinstance(given, Question) or not hasattr(given, "__iter__") else list(given)
    for question in questions:
        if not isinstance(question, Question):
            raise ParameterError("questions", type(question).__name__, "an iterable of Question")
        for name in ("task", "text", "answer"):
            if not isinstance(getattr(question, name), str):
                what = f"{name} {getattr(question, name)!r:.80} about image {question.image_id!r}"
                raise ParameterError("questions", what, "questions whose task, text and answer are text")
    return questions


class _Features:
    """Encode the images of samples when they are first asked for, and keep what fits in memory.

    Attributes
    ----------
    needs : set of str
        Signals to encode them with. Most methods that look at the encoder look at the first.
    """

    def __init__(self, adapter: Adapter, samples: Mapping[ImageId, AnySample]):
        self.adapter, self.samples = adapter, samples
        self.needs = {"cls_similarity"}
        self.images: dict[tuple[ImageId, str], list[EncodedImage]] = {}

    def encode(self, image_ids: Iterable[ImageId], pruned: Pruned | None = None) -> list[list[EncodedImage]]:
        """Return the images of some samples, as a pruner's context resizes them if one is given."""
        variant = "" if pruned is None else config_hash(pruned.pruner.description())
        asked = [(image_id, variant) for image_id in image_ids]
        wanted = list(dict.fromkeys(asked))
        missing = [key for key in wanted if not self._has(key)]
        if missing and sum(_n_bytes(image) for own in self.images.values() for image in own) > FEATURE_BYTES:
            self.images = {key: self.images[key] for key in wanted if key not in missing}
        single = [key for key in missing if self.samples[key[0]].kind == "image"]
        for together in (single, *([key] for key in missing if key not in single)):
            if not together:
                continue
            kind = self.samples[together[0][0]].kind
            loaded = [load_pictures(self.samples[i]) for i, _ in together]
            if pruned is not None:  # sample by sample: a method sees the pictures of one question
                loaded = [pruned.resize(own) for own in loaded]
            pictures = [picture for own in loaded for picture in own]
            images = self.adapter.encode_input(pictures, kind, needs=self.needs)
            n_each = len(images) // len(together)
            for k, key in enumerate(together):
                self._keep(key, images[k * n_each : (k + 1) * n_each])
        return [self.images[key] for key in asked]

    def _keep(self, key: tuple[ImageId, str], images: list[EncodedImage]) -> None:
        for view in (view for image in images for view in image.views):
            check_features("visual tokens", view.tokens, "(n_tokens, d_model)")
        self.images[key] = [image.to("cpu") for image in images]

    def _has(self, key: tuple[ImageId, str]) -> bool:
        images = self.images.get(key)
        return images is not None and self.needs & self.adapter.offers <= set(images[0].views[0].signals)


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
            rate = n_done / max(now - self.start, 1e-9)  # coarse clocks stand still
            print(f"{self.title}: question {n_done} of {self.n}, {rate:.1f} a second", flush=True)
            self.printed = now
