"""Evaluate pruning: generate answers from the tokens that survive, and score them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rcblib.data.base import AnySample
from rcblib.evaluate.session import Session
from rcblib.mllm.fingerprint import model_name
from rcblib.pruners.all import AllTokens
from rcblib.pruners.base import Pruner
from rcblib.records import ImageId, ParameterError, Question
from rcblib.runs.digest import code_digest, digest_of
from rcblib.runs.files import config_hash
from rcblib.runs.records import Record, is_record, read_record
from rcblib.runs.results import cached_unit

if TYPE_CHECKING:
    import os


def evaluate(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    samples: Mapping[ImageId, AnySample] | Iterable[AnySample],
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
        is loaded to see that it is whole, and encoded once. Several images stand in the prompt one after the other
        before the question.
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
        ``prediction``, ``score`` (in [0, 1], by `score_predictions`), ``guess`` (what the best guess
        without the image scores here, by `blind_scores`), and the rows that the LLM reads of the image, of all images,
        or of the video, newlines included: ``n_visual_tokens`` without and ``n_retained`` with pruning, the latter as
        the mean over the LLM's layers.

    Raises
    ------
    ParameterError
        Before any work: if there are no questions, one is about an unknown image, two samples share an id, a caption's
        image has no annotated objects, the family takes no videos, or a number is out of range; and as the pruner's
        own check. If visual tokens are not finite, or the frames of a video differ in size.
    ImageError
        Before any work: if images cannot be read, or are of a shape that the processor refuses; all of these are named.

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
    samples: Mapping[ImageId, AnySample] | Iterable[AnySample],
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
        The path of a recorded table (``.parquet``) instead: what it holds is read, and a line says when it was made.
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
        As `evaluate`; also without pruners, or if a record is damaged or of another model, questions or images.
    """
    listed = listed_pruners(pruners)
    session = Session(model, processor, questions, samples, batch_size, max_new_tokens, categories)
    if folder is not None and is_record(folder):
        return recorded_answers(read_record(folder), session, listed, progress)
    return pd.concat([frame for frame, _ in grid_units(session, listed, folder, progress)], ignore_index=True)


def grid_units(
    session: Session,
    listed: Sequence[tuple[str, Pruner]],
    folder: str | os.PathLike | None,
    progress: bool,
    name: str = "evaluating",
) -> Iterator[tuple[pd.DataFrame, dict[str, Any]]]:
    """Yield the rows of one pruner after the other, as `evaluate_grid`, with the metadata of the file that keeps them.

    Parameters
    ----------
    listed
        As `listed_pruners` returns them.
    name : str
        What the lines of progress begin with.
    session, folder, progress
        The session that answers, and as in `evaluate_grid`.
    """
    session.prepare([pruner for _, pruner in listed])
    for k, (method, pruner) in enumerate(listed, 1):
        title = f"{name} {k} of {len(listed)}: {method} ({_words(pruner)})" if progress else None

        def compute(pruner: Pruner = pruner, title: str | None = title) -> pd.DataFrame:
            return session.answer(pruner, title)

        if folder is None:
            frame, made = compute(), {}
        else:
            frame, made = cached_unit(
                folder, "evaluation", session.description(pruner), evaluation_code(pruner), compute
            )
        if progress:
            print(f"{title}: mean score {frame['score'].mean():.3f}", flush=True)
        yield with_budget(frame, method, pruner), made


def recorded_answers(
    record: Record, session: Session, listed: Sequence[tuple[str, Pruner]], progress: bool
) -> pd.DataFrame:
    """Return what `evaluate_grid` does from a record; settings that it lacks are computed, and a line says so.

    Raises
    ------
    ParameterError
        If the record is of other questions, images or settings, or of another model.
    """
    record.check(session_description(session), {})
    codes = sorted({evaluation_code(pruner) for _, pruner in listed})
    print(f"evaluating: {record.origin(' '.join(codes))}", flush=True)
    order = np.argsort([question.image_id for question in session.questions], kind="stable")
    groups = record.table.groupby("setting", sort=False).indices
    frames = []
    for method, pruner in listed:
        rows = groups.get(setting_of(pruner))
        if rows is None:
            print(f"evaluating: {method} ({_words(pruner)}) is not recorded: computed here", flush=True)
            frames += [frame for frame, _ in grid_units(session, [(method, pruner)], None, progress)]
            continue
        frame = record.table.iloc[rows].drop(columns=["setting", "method", *budget_columns(pruner)])
        frames.append(with_budget(frame.set_axis(order).sort_index(), method, pruner))
    return pd.concat(frames, ignore_index=True)


def _words(pruner: Pruner) -> str:
    """Tell a pruner from others of its method in words."""
    told = {name: value for name, value in budget_columns(pruner).items() if not pd.isna(value)}
    return ", ".join(f"{name} {value}" for name, value in told.items() if value != "")


def with_budget(frame: pd.DataFrame, method: str, pruner: Pruner) -> pd.DataFrame:
    """Return rows with the method's name and the columns of `budget_columns` in front."""
    columns = {"method": method, **budget_columns(pruner)}
    head = pd.DataFrame(columns, index=frame.index)
    return pd.concat([head, frame], axis=1).astype({"seed": "Int64"})


def setting_of(pruner: Pruner) -> str:
    """Name a pruner with all its parameters by a hash, the codebook's prototypes included.

    Numbers count with six digits: a cut-off that was calibrated on another machine is the same setting.
    """
    described = pruner.description().items()
    return config_hash(
        {n: float(f"{value:.6g}") if isinstance(value, float) else value for n, value in described}
    )


def evaluation_code(pruner: Pruner) -> str:
    """Name the code that the answers of a pruner depend on, that of a method which chooses for it included."""
    chooses = getattr(pruner, "inner", None)
    return (
        code_digest(Session.__module__)
        + digest_of(type(pruner))
        + (digest_of(type(chooses)) if chooses else "")
    )


def session_description(session: Session) -> dict[str, Any]:
    """Return what all answers of a session depend on, besides code and pruner."""
    described = session.description(AllTokens())
    del described["pruner"]
    return described | {"model": model_name(session.model), "model_fingerprint": described["model"]}


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
        ``retain_ratio`` (`Pruner.asked_share`, 1 without pruner; NaN where the budget is another),
        ``max_similarity`` (NaN without), ``settings`` (text: its other parameters that are not at their default, such
        as ``"layer=2, share=0.5"``, a codebook left out) and ``seed`` (missing where nothing is drawn).
    """
    numbers = {"retain_ratio": pruner.asked_share}
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
