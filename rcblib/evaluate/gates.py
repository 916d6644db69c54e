"""Measure, on images with masks, what the gates of the verdicts are judged by: answers under conditions, and tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rcblib.data.base import AnySample
from rcblib.evaluate.parts import evaluate_parts
from rcblib.evaluate.swapping import SwapPruner
from rcblib.evaluate.tokens import measure_tokens
from rcblib.pruners.all import AllTokens
from rcblib.pruners.base import Pruner
from rcblib.pruners.oracle import OraclePruner
from rcblib.records import ImageId, Question
from rcblib.runs.shards import Shard
from rcblib.tensors.checks import check_integer

UNPRUNED = "all tokens"
SHUFFLED, BACKGROUND, OBJECTS = "shuffled image", "background swapped", "objects swapped"
ORACLE = "oracle by masks"
ANSWERS, TOKENS = "answers", "tokens"


def conditions(retain_ratios: Sequence[float]) -> dict[str, list[Pruner]]:
    """Return the conditions under which gates ask every question, by name, for `evaluate_parts`."""
    return {
        UNPRUNED: [AllTokens()],
        SHUFFLED: [SwapPruner("image")],
        BACKGROUND: [SwapPruner("background")],
        OBJECTS: [SwapPruner("objects")],
        ORACLE: [OraclePruner(ratio) for ratio in retain_ratios],
    }


def measure_gates(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    samples: Mapping[ImageId, AnySample] | Sequence[AnySample],
    retain_ratios: Sequence[float] = (0.2, 0.1),
    n_token_images: int = 20,
    *,
    n_influence_images: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    folder: str | os.PathLike,
    images_per_part: int | None = None,
    shard: Shard | None = None,
    skipped: Mapping[ImageId, str] | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Ask every question under every condition, and measure the tokens of some images.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    questions, samples
        As in `evaluate_parts`; the samples have masks.
    retain_ratios : sequence of float
        Budgets of the claims, at which the oracle answers.
    n_token_images : int
        Of the first so many samples, single images, tokens are measured where questions are asked about them; none
        with 0, or of other kinds of samples.
    n_influence_images : int
        Of the first so many of these images the influence of tokens is measured too, for G5: about five times as long.
    batch_size, max_new_tokens, folder, images_per_part, shard, skipped, progress
        As in `evaluate_parts`; what is finished stays in the folder under a hash of all that it depends on. Of the
        first images of a shard no more is returned than was asked for, though their last part is answered whole, and
        of their tokens only some are measured.

    Returns
    -------
    table : pandas.DataFrame
        ``part`` tells two kinds of rows apart, and columns of one kind are empty in the other: ``"answers"``, one a
        question and condition, as `evaluate_parts` gives them with the condition as ``method``; ``"tokens"``, one a
        token, as `measure_tokens` does.
    facts : dict
        Of the answers, as `evaluate_parts` returns them; ``sampled`` where not all rows of tokens are there.

    Raises
    ------
    ParameterError
        Before any work: without masks, with one image only; and as `evaluate_parts`.
    """
    check_integer("n_token_images", n_token_images, 0)
    check_integer("n_influence_images", n_influence_images, 0)
    listed = list(samples.values() if isinstance(samples, Mapping) else samples)
    answers, facts = evaluate_parts(
        model,
        processor,
        questions,
        listed,
        conditions(retain_ratios),
        batch_size,
        max_new_tokens,
        folder=folder,
        images_per_part=images_per_part,
        shard=shard,
        skipped=skipped,
        progress=progress,
    )
    first = None if shard is None else shard.first
    if first is not None:  # tokens cost most: not those of all images of the last part
        facts["samples"] = dict(list(facts["samples"].items())[:first])
        answers = answers[answers["image_id"].astype(str).isin(facts["samples"])]
    parts = [answers.assign(part=ANSWERS)]
    chosen = [sample for sample in listed if sample.kind == "image"][:n_token_images]
    for influence, some in ((True, chosen[:n_influence_images]), (False, chosen[n_influence_images:])):
        # Tokens go with the answers about their image, so that all of an image is one shard's.
        own = [sample for sample in some if str(sample.image_id) in facts["samples"]]
        if own:
            tokens = measure_tokens(
                model,
                processor,
                own,
                influence=influence,
                sample=first is not None,
                batch_size=batch_size,
                folder=folder,
                progress=progress,
            )
            parts.append(tokens.assign(part=TOKENS))
    table = pd.concat(parts, ignore_index=True)
    keys = [*facts["keys"], "part", *(name for name in ("view", "position") if name in table)]
    sampled = {} if first is None or len(parts) == 1 else {"sampled": {"part": TOKENS}}
    return table, facts | {"keys": keys} | sampled


def part_of(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """Return the rows of one part of a table of `measure_gates`, without the columns of the other."""
    rows, place = table[table["part"] == part], table.columns.get_loc("part")
    if part == ANSWERS:
        return rows[table.columns[:place]].reset_index(drop=True)
    own = ["image_id", *table.columns[place + 1 :]]
    return rows[own].astype({"named": bool} if len(rows) else {}).reset_index(drop=True)
