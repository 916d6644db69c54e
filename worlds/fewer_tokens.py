"""Score a model of a drawn world with fewer visual tokens: at random, and by an oracle that knows the masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from rcblib.data.questions import questions_for
from rcblib.evaluate.grid import evaluate_grid
from rcblib.probe.pictures import view_coverage
from rcblib.pruners import Pruner, RandomPruner
from rcblib.pruners.context import PruningContext
from rcblib.reading.comparison import guessing_scores
from rcblib.reading.statistics import mean_interval, mean_of_ratios
from rcblib.records import Sample, VisualView
from worlds.datasets import SceneDataset
from worlds.scenes.generator import WORLDS

TASKS = ("one_word", "color", "yes_no", "digit", "count", "position")
"""What is asked: all that is scored as right or wrong."""

SETTINGS = {
    "all": "all tokens",
    "random_20": "20 % at random",
    "random_10": "10 % at random",
    "oracle_20": "the 20 % that objects cover most",
    "oracle_20_kept": "the same, at the positions they had",
}
"""Inputs that are compared, and what the card calls them."""


@dataclass(frozen=True)
class MaskOracle(Pruner):
    """Keep the tokens that objects cover most, as their masks tell; among equals, the ones that a seed draws.

    Parameters
    ----------
    retain_ratio : float
        Share of the tokens to keep, in [0, 1].
    samples : list of Sample
        Those that are asked about, by ascending id.
    processor : transformers.ProcessorMixin
        Says what is cropped.
    """

    retain_ratio: float
    samples: list[Sample] = field(default_factory=list)
    processor: Any = None

    def score(self, views: tuple[VisualView, ...], context: PruningContext | None = None) -> torch.Tensor:
        """Score by the share of each patch that objects cover."""
        place = context.image_index if context else 0
        sample = self.samples[place]
        coverage = [view_coverage(self.processor, sample, view).share for view in views]
        covered = torch.cat(coverage).double().numpy()
        first = context.view_index if context else 0
        return torch.from_numpy(covered + 1e-6 * np.random.default_rng((place, first)).random(len(covered)))


def fewer_token_scores(
    model: Any,
    processor: Any,
    split: str,
    n_images: int,
    seed: int,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Ask held-out scenes with all visual tokens and with fewer.

    Parameters
    ----------
    model, processor : transformers.PreTrainedModel, transformers.ProcessorMixin
        As `load_model` returns them.
    split : str
        ``"validation"`` or ``"test"``.
    n_images : int
        Scenes; all questions of `TASKS` about them are asked.
    seed : int
        Seed of the scenes, of the questions and of what is kept at random.
    batch_size, progress
        As in `rcblib.evaluate.grid.evaluate_grid`.

    Returns
    -------
    dict
        Of `SETTINGS` each to ``scores`` (task to share of right answers), and, but for ``all``, ``relative``: the mean
        over tasks of the score by that with all tokens, and ``corrected``: of both less what guessing gives, as
        `rcblib.reading.statistics.Estimate.as_result`. Also ``guessing``, task to the best constant answer's share.
    """
    samples = sorted(
        SceneDataset(split, n_images, seed=seed, config=WORLDS[model.config.rcb_world]),
        key=lambda sample: sample.image_id,
    )
    questions = questions_for(samples, TASKS, seed=seed)
    oracle = {"samples": samples, "processor": processor}
    pruners: dict[str, Pruner | None] = {
        "all": None,
        "random_20": RandomPruner(0.2, seed=seed),
        "random_10": RandomPruner(0.1, seed=seed),
        "oracle_20": MaskOracle(0.2, position_ids="renumbered", **oracle),
        "oracle_20_kept": MaskOracle(0.2, position_ids="kept", **oracle),
    }
    answers = evaluate_grid(model, processor, questions, samples, pruners, batch_size, progress=progress)
    return score_settings(answers, np.random.default_rng([seed, 4]))


def score_settings(answers: pd.DataFrame, generator: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Reduce answers of several settings to scores and relative scores; see `fewer_token_scores`."""
    by_setting = {name: rows.reset_index(drop=True) for name, rows in answers.groupby("method", sort=False)}
    whole = by_setting["all"]
    guessing = guessing_scores(whole)
    guessed = whole["task"].map(guessing)
    found: dict[str, dict[str, Any]] = {"guessing": guessing}
    for name, rows in by_setting.items():
        scores = {
            task: mean_interval(group["score"], group["image_id"], generator=generator).as_result()
            for task, group in rows.groupby("task", sort=False)
        }
        found[name] = {"scores": scores}
        if name == "all":
            continue
        pairs = {
            "relative": (rows["score"], whole["score"]),
            "corrected": (rows["score"] - guessed, whole["score"] - guessed),
        }
        for kind, (first, second) in pairs.items():
            estimate = mean_of_ratios(first, second, rows["task"], rows["image_id"], generator=generator)
            found[name][kind] = estimate.as_result()
    return found


def fewer_token_table(found: dict[str, dict[str, Any]], labels: dict[str, str]) -> pd.DataFrame:
    """Lay `fewer_token_scores` out: a row a setting, a column a task, as text."""
    rows = []
    for name, words in [*SETTINGS.items(), ("guessing", "guessing")]:
        if name not in found:
            continue
        scores = found[name] if name == "guessing" else _values(found[name]["scores"])
        row = {"visual tokens": words}
        row |= {labels.get(task, task): f"{scores[task]:.3f}" for task in found["guessing"]}
        for kind, head in (("relative", "relative"), ("corrected", "relative, above guessing")):
            estimate = found[name].get(kind) if name != "guessing" else None
            row[head] = "" if estimate is None else _estimate(estimate)
        rows.append(row)
    return pd.DataFrame(rows)


def _values(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {task: estimate["value"] for task, estimate in scores.items()}


def _estimate(estimate: dict[str, Any]) -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:.2f} [{low:.2f}, {high:.2f}]"
