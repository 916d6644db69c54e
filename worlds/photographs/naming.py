"""Score what a connector alone says about held-out pictures: how many of the objects' patches it names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from rcblib.data.opening import open_images
from rcblib.reading.recognition import tabulate_nearest_words
from rcblib.reading.statistics import mean_interval, roc_auc
from worlds.photographs.assembly import IMAGE_SIZE, WORLD, build_processor
from worlds.photographs.parts import vision_encoder
from worlds.photographs.reading import SIDE
from worlds.photographs.sources import nouns
from worlds.photographs.words import Connector

LEAST_COVERAGE = 0.7
"""Share of a patch from which on it counts as lying on an object."""


@torch.no_grad()
def score_naming(
    connector: Connector, words: torch.Tensor, n_pictures: int = 200, split: str = "validation"
) -> dict[str, Any]:
    """Name every patch of held-out pictures by the nearest noun; masks decide here, and only here, what is right.

    Parameters
    ----------
    connector : Connector
        From encoder rows to words.
    words : torch.Tensor
        ``(n_nouns, d_model)`` word embeddings of `nouns`.
    n_pictures : int
        The first so many of the sample's split.

    Returns
    -------
    dict
        ``named_on_objects``: share of the objects' patches whose nearest noun is theirs; ``area_nearest_noun``: area
        under the ROC curve of the cosine to that noun against being on an object, within pictures; ``picture_named``:
        share of the pictures whose best noun of all patches is in them. Each as `Estimate.as_result` gives it.
    """
    processor, tower = build_processor().image_processor, vision_encoder(IMAGE_SIZE)
    parts = []
    for sample in open_images(WORLD, split, n_pictures):
        pixels = processor([sample.image], return_tensors="pt")["pixel_values"]
        rows = connector(tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:])
        table = tabulate_nearest_words(sample, rows, (SIDE, SIDE), words, nouns())
        there = {item.category for item in sample.objects or ()}
        parts.append(table.assign(on=table["coverage"] >= LEAST_COVERAGE, there=table["word"].isin(there)))
    table, generator = pd.concat(parts, ignore_index=True), np.random.default_rng(0)
    images, on = table["image_id"], table["on"]
    best = table.loc[table.groupby("image_id")["cosine"].idxmax()]
    found = {
        "named_on_objects": mean_interval(table.loc[on, "right"], images[on], generator=generator),
        "area_nearest_noun": roc_auc(table["cosine"], on, images, strata=images, generator=generator),
        "picture_named": mean_interval(best["there"], best["image_id"], generator=generator),
    }
    return {name: estimate.as_result() for name, estimate in found.items()}
