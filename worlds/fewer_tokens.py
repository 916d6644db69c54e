"""Score a model of a drawn world with fewer visual tokens: some at random, and those that objects cover."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate_grid
from rcblib.pruners import OraclePruner, Pruner, RandomPruner
from rcblib.reading.comparison import corrected_scores
from worlds.datasets import SceneDataset
from worlds.scenes.generator import WORLDS

TASKS = ("one_word", "color", "yes_no", "digit", "count", "position")
"""What is asked: all that is right or wrong."""

ALL = "all tokens"

SETTINGS: dict[str, Pruner | None] = {
    ALL: None,
    "20 % at random": RandomPruner(0.2),
    "10 % at random": RandomPruner(0.1),
    "the 20 % that objects cover most": OraclePruner(0.2, position_ids="renumbered"),
    "the same, at the positions they had": OraclePruner(0.2),
}
"""Inputs that are compared, as the card calls them."""


def fewer_token_scores(
    model: Any,
    processor: Any,
    n_images: int,
    seed: int,
    *,
    split: str = "validation",
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Ask held-out scenes with all visual tokens and with fewer.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    n_images : int
        Scenes; all questions of `TASKS` about them are asked.
    seed : int
        Seed of the scenes and of the questions.
    split : str
        ``"validation"`` or ``"test"``.
    batch_size, progress
        As in `rcblib.evaluate.grid.evaluate_grid`.

    Returns
    -------
    dict
        Of each of `SETTINGS`, as `score_settings` returns it.
    """
    world = WORLDS[model.config.rcb_world]
    samples = list(SceneDataset(split, n_images, seed=seed, config=world))
    questions = questions_for(samples, TASKS, seed=seed)
    answers = evaluate_grid(model, processor, questions, samples, SETTINGS, batch_size, progress=progress)
    return score_settings(answers, np.random.default_rng([seed, 4]))


def score_settings(
    answers: pd.DataFrame, generator: np.random.Generator, tasks: Collection[str] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Reduce answers of several settings, of which one is `ALL`, to scores.

    Parameters
    ----------
    answers : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`; each method is one setting, with any number of seeds.
    generator : numpy.random.Generator
        Source of the draws over seeds and images.
    tasks : collection of str, optional
        Those that count in the means over tasks; by default all.

    Returns
    -------
    dict
        Setting, and ``"guessing"``, to a score for each task, in [0, 1]; a setting with fewer tokens also to
        ``"relative"``: the mean over tasks of its score by that with all tokens, and ``"corrected"``: the same of
        scores less what guessing gets. Each with n, interval, n_clusters (images) and level. Without a task that
        counts the means are left out.
    """
    names = {ALL: (ALL, None), **{name: (name, None) for name in answers["method"].unique()}}
    scores = corrected_scores(answers, names, generator=generator)
    counted = scores
    if tasks is not None:
        counted = corrected_scores(answers, names, tasks, generator=generator) if tasks else None
    found = {}
    for name in (*names, "guessing"):
        found[name] = {task: scores.score(name, task).as_result() for task in scores.draws.tasks}
        if name not in (ALL, "guessing") and counted is not None:
            draws = counted.draws
            whole = np.where(draws[ALL] > 0, draws[ALL], np.nan)
            found[name] |= {
                "relative": draws.estimate((draws[name] / whole).mean(1)).as_result(),
                "corrected": counted.relative(name).as_result(),
            }
    return found


def fewer_token_table(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]], labels: Mapping[str, str]
) -> pd.DataFrame:
    """Lay `fewer_token_scores` out as text: a row a setting, a column a task, with what `labels` calls it."""
    table = pd.DataFrame(
        {
            labels.get(column, column): {
                name: "" if column not in scores else _written(scores[column], column not in TASKS)
                for name, scores in found.items()
            }
            for column in (*found["guessing"], "relative", "corrected")
        }
    )
    return table.rename_axis("visual tokens").reset_index()


def _written(estimate: Mapping[str, Any], with_interval: bool) -> str:
    if estimate["value"] is None:  # relative to a model that does no better than guessing
        return "undefined"
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if with_interval else "")
