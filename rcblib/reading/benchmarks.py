"""Turn the tables of benchmark runs into results with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from rcblib.evaluate.lmms.runs import FULL
from rcblib.evaluate.lmms.tasks.utils import CAPTIONS
from rcblib.reading.statistics import mean_interval, paired_ratio
from rcblib.records import ParameterError


def score_results(
    full: pd.DataFrame, pruned: Mapping[str, pd.DataFrame], *, generator: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Turn the tables of `run_tasks` into results as `rcblib.runs.results.write_results` takes them.

    Parameters
    ----------
    full : pandas.DataFrame
        Without pruning.
    pruned : Mapping
        Name of a setting, such as ``"retain_20"``, to its table, on the same questions.
    generator : numpy.random.Generator
        Source of the bootstrap over images.

    Returns
    -------
    dict
        For each task ``<task>_score_full``, and for each setting ``<task>_score_<setting>``,
        ``<task>_relative_score_<setting>`` (pruned over full) and ``<task>_retained_<setting>`` (mean share of visual
        tokens). An interval is given where the questions' own scores make up the task's value as their mean. A task
        whose answers are written out for a judge has no scores, and so only the share.

    Raises
    ------
    ParameterError
        If a setting was run on other questions.
    """
    results: dict[str, dict[str, Any]] = {}
    for task, rows in full.groupby("task", sort=False):
        is_scored = rows["metric"].iloc[0] != CAPTIONS
        if is_scored:
            results[f"{task}_score_{FULL}"] = _score_result(rows, generator)
        for name, frame in pruned.items():
            own = frame[frame["task"] == task]
            if own["doc_id"].tolist() != rows["doc_id"].tolist():
                raise ParameterError(
                    name, f"{len(own)} questions of {task}", f"the {len(rows)} that were asked in full"
                )
            if is_scored:
                results[f"{task}_score_{name}"] = _score_result(own, generator)
                results[f"{task}_relative_score_{name}"] = _relative_result(rows, own, generator)
            share = own["n_retained"] / own["n_visual_tokens"]
            results[f"{task}_retained_{name}"] = {
                "value": float(share.mean()),
                "n": len(own),
                "unit": "share",
            }
    return results


def _scale(rows: pd.DataFrame) -> float | None:
    """Return by what a task multiplies the mean of its questions' scores; ``None`` where it computes something else."""
    mean, value = rows["score"].mean(skipna=False), rows["value"].iloc[0]
    return next(
        (scale for scale in (1.0, 100.0) if np.isclose(mean * scale, value, rtol=1e-6, atol=1e-9)), None
    )


def _score_result(rows: pd.DataFrame, generator: np.random.Generator) -> dict[str, Any]:
    metric, value, scale = rows["metric"].iloc[0], rows["value"].iloc[0], _scale(rows)
    if scale is None:
        return {"value": None if math.isnan(value) else float(value), "n": len(rows), "metric": metric}
    estimate = mean_interval(rows["score"] * scale, rows["image"], generator=generator)
    return {**estimate.as_result(), "metric": metric}


def _relative_result(
    full: pd.DataFrame, pruned: pd.DataFrame, generator: np.random.Generator
) -> dict[str, Any]:
    metric, scale = full["metric"].iloc[0], _scale(full)
    if scale is not None and scale == _scale(pruned):
        estimate = paired_ratio(pruned["score"], full["score"], full["image"], generator=generator)
        return {**estimate.as_result(), "metric": metric}
    above, below = pruned["value"].iloc[0], full["value"].iloc[0]
    defined = below != 0 and not math.isnan(above) and not math.isnan(below)
    return {"value": float(above / below) if defined else None, "n": len(full), "metric": metric}
