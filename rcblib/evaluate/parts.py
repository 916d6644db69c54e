"""Evaluate a grid in parts of a few images each, so that several machines share it and a killed run loses little."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from rcblib.data.base import AnySample
from rcblib.evaluate.grid import (
    evaluation_code,
    grid_units,
    listed_pruners,
    session_description,
    setting_of,
)
from rcblib.evaluate.session import Session
from rcblib.pruners.base import Pruner
from rcblib.records import ImageId, ParameterError, Question
from rcblib.runs.files import to_plain
from rcblib.runs.records import sample_hash, table_facts
from rcblib.runs.shards import Shard
from rcblib.tensors.checks import check_integer

KEYS = ("setting", "task", "subset", "question")
"""Columns that tell an answer from the others about its image."""


def evaluate_parts(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    samples: Mapping[ImageId, AnySample] | Iterable[AnySample],
    pruners: Mapping[str, Pruner | None | Sequence[Pruner | None]],
    batch_size: int = 32,
    max_new_tokens: int = 32,
    *,
    folder: str | os.PathLike,
    images_per_part: int | None = None,
    shard: Shard | None = None,
    skipped: Mapping[ImageId, str] | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Evaluate a grid, or a shard of it, images by images.

    Questions about the images of one part are answered together, whatever shard the part belongs to: so an answer does
    not depend on how many shards there are, not even by rounding.

    Parameters
    ----------
    folder : path-like
        Where each pruner's answers about each part are kept. Shards may share it.
    images_per_part : int, optional
        By default one part holds all images.
    shard : Shard, optional
        Which of the parts; by default all. All questions and samples are given all the same: random choices and the
        categories of captions depend on them.
    skipped : Mapping, optional
        Id or file name to the reason of each image that was left out, for the facts.
    model, processor, questions, samples, pruners, batch_size, max_new_tokens, progress
        As in `evaluate_grid`.

    Returns
    -------
    tuple
        The rows of `evaluate_grid` with ``setting`` in front, a hash of the pruner with all its parameters; pruner by
        pruner, each in the order of the questions. And facts, as `rcblib.runs.records.table_facts` gives them.

    Raises
    ------
    ParameterError
        As `evaluate_grid`; also if there are fewer parts than the shard's number.
    """
    listed = listed_pruners(pruners)
    session = Session(model, processor, questions, samples, batch_size, max_new_tokens, None)
    description = session_description(session)
    by_image: dict[ImageId, list[int]] = {}
    for place, question in enumerate(session.questions):
        by_image.setdefault(question.image_id, []).append(place)
    ids = [image_id for image_id in session.samples if image_id in by_image]
    size = len(ids) if images_per_part is None else check_integer("images_per_part", images_per_part, 1)
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    shard = shard or Shard()
    chosen = shard.of(parts, size)
    if not chosen:
        accepted = f"at most {len(parts)} shards, of {size} images each"
        raise ParameterError("shard", f"{shard.number}/{shard.n_shards}", accepted)
    frames: list[list[pd.DataFrame]] = [[] for _ in listed]
    units = []
    for number, part in enumerate(chosen, 1):
        places = sorted(place for image_id in part for place in by_image[image_id])
        name = "evaluating" if len(chosen) == 1 else f"part {number} of {len(chosen)}, evaluating"
        for own, (_, pruner), (frame, made) in zip(
            frames, listed, grid_units(session.part(places), listed, folder, progress, name), strict=True
        ):
            frame.insert(0, "setting", setting_of(pruner))
            own.append(frame.set_axis(places))
            units.append(made)
    tables = [pd.concat(own).sort_index() for own in frames]
    codes = dict.fromkeys(evaluation_code(pruner) for _, pruner in listed)
    facts = table_facts(
        description | {"code": " ".join(sorted(codes))},
        KEYS,
        {i: sample_hash(session.identities[i]) for part in chosen for i in part},
        units,
    )
    settings = {setting_of(pruner): {"method": method} | pruner.description() for method, pruner in listed}
    share = shard.share(ids, skipped or {})
    return pd.concat(tables, ignore_index=True), facts | share | {"settings": to_plain(settings)}


def scores_text(frame: pd.DataFrame) -> str:
    """Lay out mean scores and what was retained, a line a method, budget and task."""
    budget = frame["retain_ratio"].fillna(frame["max_similarity"]).rename("budget")
    kept = frame.assign(retained=frame["n_retained"] / frame["n_visual_tokens"])
    differ = (frame.groupby("method")["settings"].nunique() > 1).any()
    keys = ["method", *(["settings"] if differ else []), budget, "task"]
    groups = kept.groupby(keys, sort=False, dropna=False)
    found = groups.agg(n=("score", "size"), retained=("retained", "mean"), score=("score", "mean"))
    return found.round(3).to_string()
