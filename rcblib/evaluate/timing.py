"""Time the steps of pruned generation, and say what memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd
import torch

from rcblib.data.base import AnySample
from rcblib.data.samples import load_pictures
from rcblib.evaluate.grid import budget_columns, listed_pruners
from rcblib.evaluate.session import Session
from rcblib.mllm.versions import CACHE
from rcblib.pruners.base import Pruner
from rcblib.records import EncodedImage, ImageId, Question
from rcblib.tensors.checks import check_integer


def latency_and_memory(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    samples: Mapping[ImageId, AnySample] | Iterable[AnySample],
    pruners: Mapping[str, Pruner | None | Sequence[Pruner | None]],
    *,
    n_repeats: int = 5,
    n_warmup: int = 1,
    max_new_tokens: int = 16,
    progress: bool = False,
) -> pd.DataFrame:
    """Time the steps of pruned generation, one question at a time.

    Pruners take turns inside every repeat, so that a machine that slows down slows all of them.

    Parameters
    ----------
    model, processor, questions, samples, pruners
        As in `evaluate_grid`.
    n_repeats, n_warmup : int
        Measured and unmeasured rounds.
    max_new_tokens : int
        Tokens generated, at least 2; an end token does not stop.
    progress : bool
        Whether to print a line a round.

    Returns
    -------
    pandas.DataFrame
        One row a pruner and question: ``method``, the columns of `budget_columns`, ``image_id``, ``n_retained``,
        ``n_prompt`` (tokens after pruning, text included; both as the mean over the LLM's layers); medians over
        the repeats of ``process_seconds`` (of pixels, on the CPU), ``encode_seconds`` (vision encoder and connector),
        ``select_seconds`` (tokens chosen, the prompt cut to them), ``prefill_seconds`` (one pass of the LLM over the
        prompt) and ``tokens_per_second`` (of the answer after its first token);
        ``kv_cache_bytes`` after the prefill, as the cache holds them; ``peak_memory_bytes`` with
        ``peak_memory_kind``: ``"allocated"``, measured on a CUDA device, or ``"weights + cache"``, added up elsewhere.

    Raises
    ------
    ParameterError
        As `evaluate_grid`; or if a count is out of range.
    """
    check_integer("n_repeats", n_repeats, 1)
    check_integer("n_warmup", n_warmup, 0)
    check_integer("max_new_tokens", max_new_tokens, 2)
    listed = listed_pruners(pruners)
    session = Session(model, processor, questions, samples, 1, max_new_tokens, None)
    session.prepare([pruner for _, pruner in listed])
    measured: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for repeat in range(n_warmup + n_repeats):
        for p, (_, pruner) in enumerate(listed):
            for q in range(len(session.questions)):
                measured.setdefault((p, q), []).append(measure(session, [q], pruner))
        if progress:
            print(f"timing: round {repeat + 1} of {n_warmup + n_repeats}", flush=True)
    rows = []
    for (p, q), runs in measured.items():
        method, pruner = listed[p]
        row = {"method": method, **budget_columns(pruner), "image_id": session.questions[q].image_id}
        for name, value in runs[-1].items():
            row[name] = median(run[name] for run in runs[n_warmup:]) if isinstance(value, float) else value
        rows.append(row)
    return pd.DataFrame(rows).astype({"seed": "Int64"})


@torch.no_grad()
def measure(session: Session, indices: Sequence[int], pruner: Pruner) -> dict[str, Any]:
    """Answer some questions of a session together, once, step by step on the clock.

    Parameters
    ----------
    session : Session
        Prepared for the pruner.
    indices : sequence of int
        Places of the questions among those of the session.
    pruner : Pruner
        The method.

    Returns
    -------
    dict
        The columns of `latency_and_memory` but the first: floats are what differs from run to run. `n_prompt` is the
        length of the longest prompt; the rest is of all questions together.
    """
    device, on_cuda = session.device, session.device.type == "cuda"
    with pruner(session.model, session.processor) as pruned:
        groups = pictures_of(session, indices, pruned.resize)
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        clock = _Clock(device)
        pixels = [session.adapter.preprocess(*group) for group in groups]
        process_seconds = clock.lap()
        images = [session.adapter.encode_pixels(own, pruner.signals) for own in pixels]
        encode_seconds = clock.lap()
        prompts = session.hand_in(pruned, indices, _by_question(session, indices, images, pruner))
        clock.lap()  # an unpruned model is given prompts, too
        prepared = pruned.prepare(prompts)
        select_seconds = clock.lap()
        n_entering = sum(pruned.n_retained)
        with pruned.reading(prepared):
            prefill_seconds, cache_bytes, decode_seconds = _read(session, prepared.arguments, clock)
    n_retained = sum(pruned.n_retained)
    dropped_inside = n_entering - n_retained
    weights = sum(weight.nbytes for weight in session.model.parameters())
    return {
        "n_retained": n_retained,
        "n_prompt": prepared.spans.n_columns - (dropped_inside and dropped_inside / len(indices)),
        "process_seconds": process_seconds,
        "encode_seconds": encode_seconds,
        "select_seconds": select_seconds,
        "prefill_seconds": prefill_seconds,
        "tokens_per_second": len(indices) * (session.max_new_tokens - 1) / decode_seconds,
        "kv_cache_bytes": cache_bytes,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if on_cuda else weights + cache_bytes,
        "peak_memory_kind": "allocated" if on_cuda else "weights + cache",
    }


def pictures_of(
    session: Session, indices: Sequence[int], resize: Callable[[Sequence[Any]], list[Any]] = list
) -> list[tuple[list[Any], str]]:
    """Load the pictures of some questions: all single images to process together, else those of each question.

    Returns
    -------
    list of (list of PIL.Image.Image, str)
        Pictures, as `resize` makes them, and their kind, as `Adapter.preprocess` takes them.
    """
    samples = [session.samples[session.questions[index].image_id] for index in indices]
    loaded = [(resize(load_pictures(sample)), sample.kind) for sample in samples]
    if all(kind == "image" for _, kind in loaded):
        return [([picture for own, _ in loaded for picture in own], "image")]
    return loaded


def _by_question(
    session: Session, indices: Sequence[int], images: Sequence[list[EncodedImage]], pruner: Pruner
) -> list[list[EncodedImage]]:
    """Return the images of each question, with what an evaluation knows of its sample if the method asks for that."""
    ids = [session.questions[index].image_id for index in indices]
    own = list(images) if len(images) == len(ids) else [[image] for image in images[0]]
    return session.known.add(ids, own, pruner.of_samples) if pruner.of_samples else own


def _read(session: Session, inputs: dict[str, Any], clock: _Clock) -> tuple[float, int, float]:
    """Return the seconds of the prefill, the cache's bytes after it, and the seconds of the other tokens."""
    model = session.model
    output = model(**inputs, use_cache=True, logits_to_keep=1)
    cache = getattr(output, CACHE)
    prefill_seconds = clock.lap()
    cache_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    clock.lap()
    mask = inputs["attention_mask"]
    for n_new in range(session.max_new_tokens - 1):
        mask = torch.cat([mask, mask[:, -1:]], dim=1)
        place = {}
        if "position_ids" in inputs:
            place["position_ids"] = inputs["position_ids"][..., -1:] + 1 + n_new
        output = model(
            input_ids=output.logits[:, -1].argmax(-1, keepdim=True),
            attention_mask=mask,
            **{CACHE: cache},
            use_cache=True,
            **place,
        )
    return prefill_seconds, cache_bytes, clock.lap()


class _Clock:
    """Measure laps, waiting for a GPU to finish what it was given."""

    def __init__(self, device: torch.device):
        self.on_cuda = device.type == "cuda"
        self.last = self._now()

    def _now(self) -> float:
        if self.on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last call."""
        before, self.last = self.last, self._now()
        return self.last - before
