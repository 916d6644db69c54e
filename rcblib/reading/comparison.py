"""Compare pruning methods: turn the answers of `evaluate_grid` into scores a budget, with intervals over images.

A *setting* is a method at a budget: its rows differ in question and, where something is drawn, in seed. Seeds of a
setting are averaged question by question before anything else, so that intervals are over images alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from rcblib.evaluate.guessing import blind_scores, kinds_of
from rcblib.reading.resampling import Draws, draw_means
from rcblib.reading.statistics import Estimate
from rcblib.records import ParameterError

SETTING = ["method", "retain_ratio", "max_similarity", "settings"]

ALL_TOKENS = "all tokens"

ALL_TASKS = "mean over tasks"

_QUESTION = ["image_id", "task", "subset", "question"]


def average_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Average the seeds of each setting, question by question.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`.

    Returns
    -------
    pandas.DataFrame
        One row a setting and question, both in the order given: `SETTING`, ``image_id``, ``task``, ``subset``,
        ``question``, ``score`` and ``retained``, the share of the image's visual tokens that the LLM was fed.

    Raises
    ------
    ParameterError
        If a column is missing.
    """
    needed = [*SETTING, *_QUESTION, "score", "n_retained", "n_visual_tokens"]
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise ParameterError("frame", list(frame.columns), f"columns {missing} too")
    shares = frame.assign(retained=frame["n_retained"] / frame["n_visual_tokens"])
    groups = shares.groupby([*SETTING, *_QUESTION], dropna=False, sort=False)
    return groups[["score", "retained"]].mean().reset_index()


def score_table(frame: pd.DataFrame, *, generator: np.random.Generator) -> pd.DataFrame:
    """Average the scores of each setting and task.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `average_seeds`.
    generator : numpy.random.Generator
        Source of the draws over images (`rcblib.reading.resampling`).

    Returns
    -------
    pandas.DataFrame
        `SETTING`, ``task``, ``retained`` (mean share of visual tokens), ``mean``, ``low`` and ``high`` of the score,
        ``n`` questions and ``n_images``; in the order given.
    """
    rows = []
    for setting, group in _settings(frame):
        for task, answers in group.groupby("task", sort=False):
            draws = draw_means({"score": answers}, generator=generator)
            estimate = draws.estimate(draws["score"][:, 0])
            rows.append({**setting, "task": task, **_numbers(answers, estimate)})
    return pd.DataFrame(rows)


def relative_table(
    frame: pd.DataFrame, *, generator: np.random.Generator, reference: str = ALL_TOKENS
) -> pd.DataFrame:
    """Divide the scores of each setting by those of the reference on the same questions.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `average_seeds`.
    generator : numpy.random.Generator
        Source of the draws over images, of both scores of a question together.
    reference : str
        Method with one setting, such as the unpruned model.

    Returns
    -------
    pandas.DataFrame
        As `score_table`; per setting one row a task and one, ``"mean over tasks"``, of the mean of the tasks' ratios.
        A task that the reference fails altogether is left out, and so is the mean.
    """
    rows = []
    for setting, group in _settings(frame):
        if setting["method"] == reference:
            continue
        baseline = _matched(frame, reference, None, group)
        for task, chosen in [*group.groupby("task", sort=False).indices.items(), (ALL_TASKS, slice(None))]:
            answers = group.iloc[chosen]
            estimate = _ratio(answers, baseline[chosen], generator)
            if not np.isnan(estimate.value):
                rows.append({**setting, "task": task, **_numbers(answers, estimate)})
    return pd.DataFrame(rows)


def advantage_table(
    frame: pd.DataFrame, method: str, others: Sequence[str], *, generator: np.random.Generator
) -> pd.DataFrame:
    """Subtract the scores of other methods from a method's at the same ``retain_ratio``, on the same questions.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `average_seeds`.
    method : str
        The one to judge.
    others : sequence of str
        What it is compared with; budgets that they lack are left out.
    generator : numpy.random.Generator
        Source of the draws over images, of both scores of a question together.

    Returns
    -------
    pandas.DataFrame
        ``other``, ``retain_ratio``, ``settings`` of `method`, ``mean`` over tasks of the difference in
        score (positive: `method` is better), ``low``, ``high``, ``n`` questions and ``n_images``.
    """
    rows = []
    for setting, group in _settings(frame[(frame["method"] == method) & frame["retain_ratio"].notna()]):
        for other in others:
            ratio = setting["retain_ratio"]
            if not ((frame["method"] == other) & (frame["retain_ratio"] == ratio)).any():
                continue
            draws = _drawn(group, _matched(frame, other, ratio, group), generator)
            estimate = draws.estimate((draws["own"] - draws["other"]).mean(1))
            row = {"other": other, "retain_ratio": ratio, "settings": setting["settings"]}
            row |= _numbers(group, estimate)
            rows.append({name: value for name, value in row.items() if name != "retained"})
    return pd.DataFrame(rows)


def relative_score(
    frame: pd.DataFrame,
    method: str,
    retain_ratio: float,
    *,
    generator: np.random.Generator,
    reference: str = ALL_TOKENS,
) -> Estimate:
    """Estimate the mean over tasks of a setting's score over the reference's; see `relative_table`.

    Raises
    ------
    ParameterError
        If there is no such setting, or more than one.
    """
    group = frame[(frame["method"] == method) & np.isclose(frame["retain_ratio"], retain_ratio)]
    if len(group[SETTING].drop_duplicates()) != 1:
        given = (method, retain_ratio, *group["settings"].unique())
        raise ParameterError("setting", given, "a method and a budget that were evaluated, with one setting")
    baseline = _matched(frame, reference, None, group)
    return _ratio(group, baseline, generator)


def guessing_scores(questions: pd.DataFrame) -> dict[str, float]:
    """Score the best guess for each task: what can be had without looking.

    Parameters
    ----------
    questions : pandas.DataFrame
        One row a question, with ``task``, ``text`` and ``answer``.

    Returns
    -------
    dict
        Task to the mean of `blind_scores`. Captions are left out: what guessing gets there depends on the objects, see
        the column ``guess`` of `rcblib.evaluate.grid.evaluate`.
    """
    asked = questions[questions["task"] != "caption"]
    return blind_scores(asked).groupby(asked["task"], sort=False).mean().to_dict()


@dataclass(frozen=True)
class CorrectedScores:
    """Hold scores of some settings with what guessing gets on the same questions, drawn together.

    A task's *chance-corrected* score is (score - guessing) / (1 - guessing): 0 for the best guess without the image,
    1 for right throughout. A setting's *relative* score is its chance-corrected one over the reference's, a mean over
    tasks.

    Attributes
    ----------
    draws : Draws
        Mean scores of every setting by its name, and of ``"guessing"``.
    reference : str
        Name of the setting that others are divided by.
    """

    draws: Draws
    reference: str = ALL_TOKENS

    def score(self, name: str, task: str | None = None) -> Estimate:
        """Estimate the plain score of a setting, or of ``"guessing"``: of a task, or the mean over tasks."""
        return self._estimate(self.draws[name], task)

    def corrected(self, name: str, task: str | None = None) -> Estimate:
        """Estimate the chance-corrected score of a setting; undefined where guessing is right throughout."""
        return self._estimate(self._corrected(name), task)

    def relative(self, name: str, task: str | None = None) -> Estimate:
        """Estimate the relative score of a setting; undefined where the reference does no better than guessing."""
        return self._estimate(self.relative_draws(name), task)

    def difference(self, first: str, second: str, task: str | None = None) -> Estimate:
        """Estimate the relative score of a setting minus that of another, such as random tokens at its budget."""
        return self._estimate(self.relative_draws(first) - self.relative_draws(second), task)

    def _estimate(self, values: np.ndarray, task: str | None) -> Estimate:
        chosen = values.mean(1) if task is None else values[:, self.draws.tasks.index(task)]
        return self.draws.estimate(chosen, task)

    def _corrected(self, name: str) -> np.ndarray:
        guessing = self.draws["guessing"]
        room = np.where(guessing < 1, 1 - guessing, np.nan)
        return (self.draws[name] - guessing) / room

    def relative_draws(self, name: str) -> np.ndarray:
        """Return ``(1 + n_resamples, n_tasks)`` of which `relative` is the mean over tasks; NaN where undefined."""
        whole = self._corrected(self.reference)
        return self._corrected(name) / np.where(whole > 0, whole, np.nan)


def corrected_scores(
    frame: pd.DataFrame,
    settings: Mapping[str, tuple[str, float | None]],
    tasks: Collection[str] | None = None,
    *,
    generator: np.random.Generator,
    n_resamples: int = 4000,
) -> CorrectedScores:
    """Collect the scores of some settings for correction by chance.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`, seeds not averaged: they are drawn, as images are.
    settings : Mapping
        Name to method and ``retain_ratio`` (``None`` for any: the method has one setting). The first is the reference.
    tasks : collection of str, optional
        Those that count, such as the ones that a gate lets pass; by default all with a guess. Kinds of questions about
        sequences count as tasks (`kinds_of`).
    generator, n_resamples
        As in `draw_means`.

    Raises
    ------
    ParameterError
        If a setting was not evaluated, or not on the questions of the first; or no task is left.
    """
    frame = frame.assign(task=kinds_of(frame))
    known = frame[frame["guess"].notna() & (frame["task"].isin(tasks) if tasks is not None else True)]
    if known.empty:
        raise ParameterError("tasks", tasks, f"some of {sorted(frame['task'].unique())}")
    chosen: dict[str, pd.DataFrame] = {}
    for name, (method, ratio) in settings.items():
        rows = known[known["method"] == method]
        if ratio is not None:
            rows = rows[np.isclose(rows["retain_ratio"], ratio)]
        if len(rows[SETTING].drop_duplicates()) != 1:
            found = known[known["method"] == method][SETTING].drop_duplicates().to_dict("records")
            raise ParameterError("settings", f"{name}: {(method, ratio)}", f"one setting of {found}")
        chosen[name] = rows
    reference, first = next(iter(chosen.items()))
    asked = pd.MultiIndex.from_frame(first[_QUESTION])
    for name, rows in chosen.items():
        others = pd.MultiIndex.from_frame(rows[_QUESTION])
        if len(asked.symmetric_difference(others)) or len(rows) % len(first):
            raise ParameterError("frame", f"other questions for {name}", f"those of {reference}")
    guessing = first.drop_duplicates(_QUESTION).assign(score=lambda rows: rows["guess"])
    draws = draw_means(
        {**chosen, "guessing": guessing.drop(columns="seed", errors="ignore")},
        generator=generator,
        n_resamples=n_resamples,
    )
    return CorrectedScores(draws, reference)


def pruning_results(
    answers: pd.DataFrame,
    tasks: Collection[str],
    retain_ratios: Sequence[float],
    *,
    method: str = "codebook",
    others: Mapping[str, str] = MappingProxyType({"random": "random tokens", "oracle": "oracle by masks"}),
    generator: np.random.Generator,
) -> dict[str, Estimate]:
    """Estimate what the claims on pruning are judged by, with the controls of each budget.

    Parameters
    ----------
    answers : pandas.DataFrame
        From `rcblib.evaluate.grid.evaluate_grid`: all tokens, the method, and the others as far as they were asked.
    tasks : collection of str
        Those that a gate lets pass.
    retain_ratios : sequence of float
        Budgets; those that the method lacks are left out.
    method : str
        The one to judge.
    others : Mapping
        Short name to method of the controls.
    generator : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    dict of Estimate
        With R for the budget in percent: ``relative_retain_R`` and ``above_random_retain_R`` of the method (relative
        scores, and their difference from random tokens'); ``relative_<other>_retain_R``; plain scores, means over
        tasks: ``score_retain_R``, ``score_<other>_retain_R``, ``score_unpruned``, ``score_guessing``. Empty without
        tasks.
    """
    found: dict[str, Estimate] = {}
    available = answers[["method", "retain_ratio"]].drop_duplicates()
    for ratio in retain_ratios if tasks else ():
        here = set(available.loc[np.isclose(available["retain_ratio"].astype(float), ratio), "method"])
        if method not in here:
            continue
        controls = {short: name for short, name in others.items() if name in here}
        settings = {ALL_TOKENS: (ALL_TOKENS, None), method: (method, ratio)}
        settings |= {name: (name, ratio) for name in controls.values()}
        scores = corrected_scores(answers, settings, tasks, generator=generator)
        end = f"retain_{ratio * 100:g}"
        found[f"relative_{end}"] = scores.relative(method)
        if "random" in controls:
            found[f"above_random_{end}"] = scores.difference(method, controls["random"])
        found |= {f"relative_{short}_{end}": scores.relative(name) for short, name in controls.items()}
        found[f"score_{end}"] = scores.score(method)
        found |= {f"score_{short}_{end}": scores.score(name) for short, name in controls.items()}
        found["score_unpruned"], found["score_guessing"] = scores.score(ALL_TOKENS), scores.score("guessing")
    return found


def _drawn(answers: pd.DataFrame, others: np.ndarray, generator: np.random.Generator) -> Draws:
    """Draw the scores of some answers, and others to the same questions, together."""
    return draw_means({"own": answers, "other": answers.assign(score=others)}, generator=generator)


def _ratio(answers: pd.DataFrame, others: np.ndarray, generator: np.random.Generator) -> Estimate:
    """Estimate the mean over tasks of a score over another one; NaN where that one is 0 in a task."""
    draws = _drawn(answers, others, generator)
    return draws.estimate((draws["own"] / np.where(draws["other"] > 0, draws["other"], np.nan)).mean(1))


def _settings(frame: pd.DataFrame) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Yield each setting with its rows, in the order given."""
    for keys, group in frame.groupby(SETTING, dropna=False, sort=False):
        yield dict(zip(SETTING, keys, strict=True)), group


def _matched(frame: pd.DataFrame, method: str, ratio: float | None, like: pd.DataFrame) -> np.ndarray:
    """Return a method's scores of the very questions of `like`, in their order."""
    rows = frame[frame["method"] == method]
    if ratio is not None:
        rows = rows[rows["retain_ratio"] == ratio]
    scores = rows.set_index(_QUESTION)["score"]
    if scores.index.has_duplicates or scores.empty:
        settings = rows[SETTING].drop_duplicates().to_dict("records")
        raise ParameterError("method", f"{method} with settings {settings}", "a method with one setting here")
    matched = scores.reindex(pd.MultiIndex.from_frame(like[_QUESTION]))
    if matched.isna().any():
        raise ParameterError(
            "frame", f"{int(matched.isna().sum())} questions without {method}", "all of them"
        )
    return matched.to_numpy()


def _numbers(answers: pd.DataFrame, estimate: Estimate) -> dict[str, float]:
    return {
        "retained": answers["retained"].mean(),
        "mean": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "n_images": estimate.n_clusters,
    }
