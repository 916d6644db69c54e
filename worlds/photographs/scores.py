"""Score a photographs model on held-out pictures: all tokens, fewer tokens, and pictures shuffled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rcblib.data.opening import open_images
from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate_grid
from rcblib.mllm.loading import load_model
from rcblib.pruners import OraclePruner, Pruner, RandomPruner
from rcblib.reading.comparison import corrected_scores
from rcblib.reading.gate_results import read_gates_file
from rcblib.records import ParameterError, Question, Sample
from rcblib.runs.files import read_json, write_json
from rcblib.runs.provenance import project_path, project_root, provenance
from worlds.fewer_tokens import ALL, score_settings
from worlds.held_out import SPLITS, shuffle_images
from worlds.photographs.assembly import WORLD, trained_files

SCORES_FILE = "scores.json"

SHUFFLED = "shuffled pictures"

N_QUESTIONS = {
    "one_word": 288,
    "caption": 144,
    "yes_no": 480,
    "count": 120,
    "position": 120,
    "larger": 192,
    "left": 192,
    "backdrop": 60,
}
"""Questions a family with all tokens, or as many as there are: 288 give one word at 0.75 an interval of ±0.05."""

N_FEWER = {
    "one_word": 96,
    "caption": 48,
    "yes_no": 96,
    "count": 48,
    "position": 48,
    "larger": 48,
    "left": 48,
}
"""How many of them, the first ones, are also asked with fewer tokens and about shuffled pictures."""

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)

RANDOM: dict[str, float] = {f"{100 * share:g} % at random": share for share in SHARES}
"""Setting to the share of the tokens that is left."""

N_RANDOM_SEEDS = 3

ORACLE: dict[str, float] = {f"the {100 * share:g} % that objects cover most": share for share in (0.1, 0.2)}
"""Setting to the share of the tokens that is left, at the positions they had."""

SEED = 0

BATCH_SIZE = 18


def fewer_settings() -> dict[str, list[Pruner]]:
    """Return the inputs with fewer tokens, as the card calls them: at random with several seeds, and by the masks."""
    drawn: dict[str, list[Pruner]] = {
        name: [RandomPruner(share, seed=seed) for seed in range(N_RANDOM_SEEDS)]
        for name, share in RANDOM.items()
    }
    return drawn | {name: [OraclePruner(share)] for name, share in ORACLE.items()}


def draw_questions(samples: Sequence[Sample], sizes: Mapping[str, int], scale: float) -> list[Question]:
    """Draw questions of each family, as many as `sizes` says times `scale`, or all there are."""
    asked: list[Question] = []
    for task, size in sizes.items():
        available = len(questions_for(samples, [task]))
        asked += questions_for(samples, [task], min(available, max(1, round(scale * size))), SEED)
    return asked


def first_questions(questions: Sequence[Question], sizes: Mapping[str, int], scale: float) -> list[Question]:
    """Take the first questions of each family, as many as `sizes` says times `scale`."""
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    return [q for task, size in sizes.items() for q in by_task[task][: max(1, round(scale * size))]]


def write_scores(
    folder: Path,
    split: str = "validation",
    *,
    scale: float = 1.0,
    dtype: str = "bfloat16",
    again: bool = False,
    results_folder: Path | None = None,
) -> dict[str, Any]:
    """Score the model that a folder of ``data/models`` names on a split, and write ``scores.json`` there.

    Parameters
    ----------
    folder : path
        Its name is the model's. What its ``scores.json`` holds of other splits with the same weights stays; what it
        holds of other weights is reduced to their scores with all tokens, under ``"earlier"``.
    split : {"validation", "test"}
        Which pictures of the sample. What is still to be trained is not scored on the test split.
    scale : float
        Factor of `N_QUESTIONS` and `N_FEWER`.
    dtype : str
        As for `load_model`.
    again : bool
        Whether a test split that these weights were scored on before may be scored again.
    results_folder : path, optional
        Where answers are kept, a setting at a time, so that a run goes on where it was interrupted; by default
        ``results/photographs`` of the project.

    Returns
    -------
    dict
        What was written of this split: ``scores`` (setting to family to value, n and interval, as
        `worlds.fewer_tokens.score_settings`), ``tasks`` (the families that the means over families are of), seed,
        number of questions, precision and provenance.

    Raises
    ------
    ParameterError
        If the split is another, or a test split was scored before.
    """
    if split not in SPLITS:
        raise ParameterError("split", split, ", ".join(SPLITS))
    known = read_scores(folder)
    if split == "test" and split in known and not again:
        raise ParameterError("split", split, "a split not scored yet with these weights, or --again")
    kept = results_folder or project_root() / "results" / "photographs"
    model, processor = load_model(folder.name, "auto", dtype)
    samples = list(open_images(WORLD, split))
    questions = draw_questions(samples, N_QUESTIONS, scale)
    fewer = first_questions(questions, N_FEWER, scale)

    def ask(
        asked: Sequence[Question], shown: Sequence[Sample], settings: Mapping[str, Sequence[Pruner | None]]
    ) -> pd.DataFrame:
        ids = {question.image_id for question in asked}
        about = [sample for sample in shown if sample.image_id in ids]
        return evaluate_grid(model, processor, asked, about, settings, BATCH_SIZE, folder=kept)

    whole = ask(questions, samples, {ALL: [None]})
    shuffled = shuffle_images(samples, np.random.default_rng([SEED, 5]))
    mistaken = ask(fewer, shuffled, {ALL: [None]}).assign(method=SHUFFLED)
    reduced = ask(fewer, samples, fewer_settings())
    known[split] = {
        "seed": SEED,
        "n_questions": len(questions),
        "n_questions_fewer": len(fewer),
        "dtype": dtype,
        "provenance": provenance(),
        **reduce_answers(whole, pd.concat([mistaken, reduced], ignore_index=True)),
    }
    write_json(folder / SCORES_FILE, known)
    return known[split]


def reduce_answers(whole: pd.DataFrame, others: pd.DataFrame) -> dict[str, Any]:
    """Reduce answers to scores.

    Parameters
    ----------
    whole : pandas.DataFrame
        From `evaluate_grid`: all questions with all tokens, method `ALL`.
    others : pandas.DataFrame
        Some of these questions in other settings.

    Returns
    -------
    dict
        ``tasks`` and ``scores``, see `write_scores`. Of `ALL` and ``"guessing"`` scores are over all questions; those
        of the others' questions are ``"all tokens, the same questions"`` and ``"guessing, the same questions"``.
    """
    generator = np.random.default_rng([SEED, 6])
    scores = score_settings(whole, generator)
    unpruned = corrected_scores(whole, {ALL: (ALL, None)}, generator=generator)
    limits, *_ = read_gates_file(project_path("data/gates.yml"))
    least = limits.least_score  # of G1: a family that is not done counts in no mean
    tasks = [t for t in unpruned.draws.tasks if unpruned.corrected(ALL, t).value >= least]
    question = ["image_id", "task", "subset", "question"]
    guesses = others[[*question, "guess"]].drop_duplicates(
        question
    )  # the best guess depends on what is asked
    same = whole.drop(columns="guess").merge(guesses, on=question)
    found = score_settings(pd.concat([same, others], ignore_index=True), generator, tasks)
    renamed = {f"{name}, the same questions": found.pop(name) for name in (ALL, "guessing")}
    return {"tasks": tasks, "scores": scores | renamed | found}


def read_scores(folder: Path) -> dict[str, Any]:
    """Read the scores of a folder; splits scored with other weights than those there are reduced to ``"earlier"``."""
    path, digest = folder / SCORES_FILE, weights_digest(folder)
    known = read_json(path) if path.is_file() else {"weights_sha256": digest}
    if known.get("weights_sha256") == digest:
        return known
    earlier = known.get("earlier", [])
    for split in SPLITS:
        if split in known:
            told = {name: known[split][name] for name in ("n_questions", "dtype")}
            made = {name: known[split]["provenance"][name] for name in ("date", "git_commit")}
            earlier.append({"split": split, **told, **made, "scores": known[split]["scores"][ALL]})
    return {"weights_sha256": digest, "earlier": earlier}


def weights_digest(folder: Path) -> str:
    """Return the sha256 of what was trained of a model of ``data/models``."""
    digest = hashlib.sha256()
    for path in trained_files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def random_curve(folder: Path, split: str = "validation") -> pd.DataFrame:
    """Lay out what is left of a model's scores with random tokens, for `rcblib.reading.figures.score_against_retained`.

    Returns
    -------
    pandas.DataFrame
        ``method`` (the model's name), ``retained`` (share of the tokens), ``kind``: ``"relative"`` or ``"corrected"``
        (see `worlds.fewer_tokens.score_settings`), ``mean``, ``low``, ``high``; a row a share and kind, without those
        undefined. Empty where the split was not scored with the weights that are there.
    """
    scores = read_scores(folder).get(split, {}).get("scores", {})
    rows = []
    for name, share in RANDOM.items():
        for kind in ("relative", "corrected"):
            found = scores.get(name, {}).get(kind)
            if found and found["value"] is not None:
                low, high = found["interval"]
                rows.append((folder.name, share, kind, found["value"], low, high))
    table = pd.DataFrame(rows, columns=["method", "retained", "kind", "mean", "low", "high"])
    return table.astype(dict.fromkeys(["retained", "mean", "low", "high"], float))
