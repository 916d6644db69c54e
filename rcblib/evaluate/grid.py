"""Evaluate pruning: generate answers from the tokens that survive, and score them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from rcblib.data.base import AnySample
from rcblib.evaluate.session import Session
from rcblib.pruners.all import AllTokens
from rcblib.pruners.base import Pruner
from rcblib.records import ParameterError, Question
from rcblib.runs.digest import code_digest, digest_of
from rcblib.runs.results import cached_table

if TYPE_CHECKING:
    import os


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
        ``prediction``, ``score`` (in [0, 1], by `score_predictions`), ``guess`` (what the best constant answer of the
        task scores here, by `constant_scores`), and the rows that the LLM reads of the image, of all images, or of the
        video, newlines included: ``n_visual_tokens`` without and ``n_retained`` with pruning, the latter as the mean
        over the LLM's layers.

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
    return session.answer(AllTokens() if pruner is None else pruner, "evaluating" if progress else None)


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
        The rows of `evaluate` for every pruner, with ``method`` and the columns of `budget_columns` in front.

    Raises
    ------
    ParameterError
        As `evaluate`; also without pruners.
    """
    listed = listed_pruners(pruners)
    session = Session(model, processor, questions, samples, batch_size, max_new_tokens, categories)
    session.prepare([pruner for _, pruner in listed])
    frames = []
    for k, (method, pruner) in enumerate(listed, 1):
        budget = budget_columns(pruner)
        words = ", ".join(
            f"{name} {value}" for name, value in budget.items() if not pd.isna(value) and value != ""
        )
        title = f"evaluating {k} of {len(listed)}: {method} ({words})" if progress else None

        def compute(pruner: Pruner = pruner, title: str | None = title) -> pd.DataFrame:
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
) -> list[tuple[str, Pruner]]:
    """Return (method, pruner) pairs, checked."""
    pairs = [
        (method, AllTokens() if pruner is None else pruner)
        for method, given in pruners.items()
        for pruner in (given if isinstance(given, Sequence) else [given])
    ]
    strangers = [type(pruner).__name__ for _, pruner in pairs if not isinstance(pruner, Pruner)]
    if not pairs or strangers:
        raise ParameterError("pruners", strangers or "none", "a name for each pruner, or None; at least one")
    return pairs


def budget_columns(pruner: Pruner) -> dict[str, Any]:
    """Return what tells a pruner from others of its method, as columns of a table.

    Returns
    -------
    dict
        ``retain_ratio`` (the share of its `Pruner.budget`, 1 without pruner; NaN where the budget is another),
        ``max_similarity`` (NaN without), ``settings`` (text: its other parameters that are not at their default, such
        as ``"layer=2, share=0.5"``, a codebook left out) and ``seed`` (missing where nothing is drawn).
    """
    numbers = {"retain_ratio": pruner.budget().retain_ratio}
    numbers["max_similarity"] = getattr(pruner, "max_similarity", None)
    columns = {name: float("nan") if value is None else float(value) for name, value in numbers.items()}
    seed = {"seed": getattr(pruner, "seed", pd.NA)}
    told = []
    for entry in sorted(fields(pruner), key=lambda entry: entry.name):
        value = getattr(pruner, entry.name)
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        is_plain = value is None or isinstance(value, (str, int, float, tuple, frozenset))
        if is_plain and value != default and value != (columns | seed).get(entry.name):
            told.append(f"{entry.name}={value}")
    return columns | {"settings": ", ".join(told)} | seed
