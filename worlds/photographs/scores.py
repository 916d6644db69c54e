"""Score a photographs model on held-out pictures: all tokens, fewer tokens, and pictures shuffled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rcblib.data.opening import open_images
from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate_grid
from rcblib.mllm.loading import load_model
from rcblib.runs.files import write_json
from rcblib.runs.provenance import provenance
from worlds.fewer_tokens import ALL, SETTINGS, score_settings
from worlds.held_out import shuffle_images
from worlds.photographs.assembly import WORLD

SCORES_FILE = "scores.json"

N_PER_TASK = 36

SEED = 0


def write_scores(folder: Path, split: str = "validation", dtype: str = "bfloat16") -> dict[str, Any]:
    """Score the model that a folder of ``data/models`` names, and write ``scores.json`` there.

    Parameters
    ----------
    folder : path
        Its name is the model's.
    split : {"validation", "test"}
        Which pictures of the sample. What is still to be trained is not scored on the test split.
    dtype : str
        As for `load_model`.

    Returns
    -------
    dict
        Setting of `worlds.fewer_tokens.SETTINGS`, ``"guessing"`` or ``"shuffled pictures"``, to task, to value, n and
        interval.
    """
    model, processor = load_model(folder.name, "auto", dtype)
    samples = open_images(WORLD, split)
    questions = questions_for(samples, n_per_task=N_PER_TASK, seed=SEED)
    asked_about = {question.image_id for question in questions}
    samples = [sample for sample in samples if sample.image_id in asked_about]
    shown = shuffle_images(samples, np.random.default_rng([SEED, 5]))
    generator = np.random.default_rng([SEED, 6])
    answers = evaluate_grid(model, processor, questions, samples, SETTINGS, batch_size=18)
    mistaken = evaluate_grid(model, processor, questions, shown, {ALL: None}, batch_size=18)
    scores = score_settings(answers, generator)
    scores["shuffled pictures"] = score_settings(mistaken, generator)[ALL]
    found = {"seed": SEED, "n_questions": len(questions), "dtype": dtype, "provenance": provenance()}
    write_json(folder / SCORES_FILE, {split: {**found, "scores": scores}})
    return scores
