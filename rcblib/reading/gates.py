"""Judge by gates whether a model and its images can decide a claim at all, before any verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from rcblib.data.pixels import PIXEL_SIGNALS
from rcblib.evaluate.gates import (
    ANSWERS,
    BACKGROUND,
    OBJECTS,
    ORACLE,
    SHUFFLED,
    TOKENS,
    UNPRUNED,
    part_of,
)
from rcblib.reading.comparison import CorrectedScores, corrected_scores
from rcblib.reading.gate_results import PASSED, GateResult, Limits
from rcblib.reading.labels import label_of
from rcblib.reading.resampling import draw_means
from rcblib.reading.statistics import Estimate, mean_interval, roc_auc


def _of(gate: str, what: str, estimate: Estimate | None, side: str, bound: float, **more: Any) -> GateResult:
    if estimate is None:
        return GateResult(gate, what, np.nan, np.nan, np.nan, side, bound, **more)
    return GateResult(
        gate, what, estimate.value, estimate.low, estimate.high, side, bound, estimate.n, **more
    )


def tasks_work(
    answers: pd.DataFrame, limits: Limits, *, generator: np.random.Generator
) -> tuple[list[GateResult], list[str]]:
    """Judge G1 task by task: it is answered with the whole image, and not with another one's.

    Both are chance-corrected scores.

    Returns
    -------
    results : list of GateResult
        Two a task.
    tasks : list of str
        Those that pass.
    """
    results, tasks = [], []
    settings = {UNPRUNED: (UNPRUNED, None), SHUFFLED: (SHUFFLED, None)}
    found = corrected_scores(answers, settings, generator=generator)
    for task in found.draws.tasks:
        name = label_of(task)
        own = [
            _of(
                "G1",
                name,
                found.corrected(UNPRUNED, task),
                "at least",
                limits.least_score,
                task=task,
            ),
            _of(
                "G1",
                f"shuffled {name}",
                found.corrected(SHUFFLED, task),
                "at most",
                limits.most_shuffled,
                task=task,
            ),
        ]
        results += own
        if all(each.verdict == PASSED for each in own):
            tasks.append(task)
    return results, tasks


def background_is_redundant(
    answers: pd.DataFrame, tasks: Collection[str], limits: Limits, *, generator: np.random.Generator
) -> list[GateResult]:
    """Judge G2 on the tasks that work: swapped background changes nothing, swapped objects everything.

    The first is the change of the score, up or down; the second the chance-corrected score that is left.
    """
    found = _scores(answers, [UNPRUNED, BACKGROUND, OBJECTS], tasks, generator)
    change = left = None
    if found is not None:
        moved = (found.draws[BACKGROUND] - found.draws[UNPRUNED]).mean(1)
        change = found.draws.estimate(moved if moved[0] >= 0 else -moved)
        left = found.corrected(OBJECTS)
    why = "" if found is not None else "no task passes G1"
    return [
        _of(
            "G2",
            "background swapped",
            change,
            "below",
            limits.most_change,
            why=why,
        ),
        _of(
            "G2",
            "objects swapped",
            left,
            "at most",
            limits.most_left,
            why=why,
        ),
    ]


def pruning_can_succeed(
    answers: pd.DataFrame,
    tasks: Collection[str],
    retain_ratio: float,
    bound: float,
    *,
    generator: np.random.Generator,
) -> GateResult:
    """Judge G3: the relative score of the oracle by masks, positions kept, reaches the claim's bound at its budget."""
    what = f"oracle at {retain_ratio:.0%}"
    measured = answers[
        (answers["method"] != ORACLE) | np.isclose(answers["retain_ratio"].astype(float), retain_ratio)
    ]
    has_budget = (measured["method"] == ORACLE).any()
    found = _scores(measured, [UNPRUNED, ORACLE], tasks, generator) if has_budget else None
    why = "" if found is not None else "no task passes G1" if has_budget else "not asked at this budget"
    estimate = None if found is None else found.relative(ORACLE)
    return _of("G3", what, estimate, "at least", bound, why=why, retain_ratio=retain_ratio)


def pixels_do_not_tell(
    tokens: pd.DataFrame, limits: Limits, *, least: float = 0.5, generator: np.random.Generator
) -> GateResult:
    """Judge G4 by the pixel baseline with the largest area against coverage of at least `least`, within images."""
    images, beneath = tokens["image_id"].to_numpy(), tokens["object_coverage"].to_numpy(float) >= least
    if beneath.all() or not beneath.any():
        return _of("G4", "best pixel baseline", None, "below", limits.most_area, why="one class")
    areas = {
        name: roc_auc(
            tokens[name].to_numpy(float), beneath, images, strata=images, generator=generator, n_resamples=400
        )
        for name in PIXEL_SIGNALS
    }
    best = max(areas, key=lambda name: np.nan_to_num(areas[name].value, nan=-1.0))
    return _of(
        "G4", "best pixel baseline", areas[best], "below", limits.most_area, about=f"({label_of(best)})"
    )


def signal_is_stable(
    tokens: pd.DataFrame,
    limits: Limits,
    *,
    other: pd.DataFrame | None = None,
    criterion: Mapping[str, float] | None = None,
    generator: np.random.Generator,
) -> list[GateResult]:
    """Judge G5: two training seeds agree on what says little, and background does not all say one word.

    The overlap is the Jaccard index of two sets of tokens, those of low information; of the background it is the share
    that says the word said most.

    Parameters
    ----------
    tokens : pandas.DataFrame
        From `measure_tokens`, with ``influence`` for the overlap.
    limits : Limits
        Bounds.
    other : pandas.DataFrame, optional
        The same of a model of another training seed on the same images.
    criterion : Mapping, optional
        ``tau_p`` and ``tau_jsd`` of the codebook: a token says little where probability and influence lie below.
    generator : numpy.random.Generator
        Source of the bootstrap over images.
    """
    background = tokens[tokens["object_coverage"] == 0]
    spread, word = None, "none"
    if len(background):
        word = background["top1_word"].value_counts().index[0]
        said = (background["top1_word"] == word).to_numpy(float)
        spread = mean_interval(said, background["image_id"].to_numpy(), generator=generator)
    what, about = "commonest background word", f"“{word}”"
    why = "" if spread else "no background"
    results = [_of("G5", what, spread, "below", limits.most_word_share, why=why, about=about)]
    overlap, more = None, {"why": "one training seed only"}
    if other is not None:
        overlap, more = _overlap(tokens, other, criterion, generator)
    return [*results, _of("G5", "overlap of two seeds", overlap, "at least", limits.least_overlap, **more)]


def prototypes_recur(metadata: Mapping[str, Any], limits: Limits) -> GateResult:
    """Judge G6 by what a codebook's metadata says: from which share of the images its narrowest cluster draws."""
    selection = metadata.get("selection") or {}
    what = "narrowest cluster"
    counts = selection.get("images_per_cluster")
    if not counts or not selection.get("n_images"):
        why = "the codebook does not say how many images its clusters draw from"
        return _of("G6", what, None, "above", limits.least_image_share, why=why)
    value = min(counts) / selection["n_images"]
    n = len(counts)
    return GateResult("G6", what, value, np.nan, np.nan, "above", limits.least_image_share, n)


def tokens_speak(
    tokens: pd.DataFrame, limits: Limits, *, whole: float = 1 - 1e-6, generator: np.random.Generator
) -> list[GateResult]:
    """Judge G7: tokens wholly on an object name it alone, and are surer of their word than background is (in nats)."""
    on_object = tokens[tokens["object_coverage"] >= whole]
    background = tokens[tokens["object_coverage"] == 0]
    named = gap = None
    if len(on_object):
        frame = on_object[["image_id"]].assign(task="", score=on_object["named"].astype(float))
        draws = draw_means({"named": frame}, generator=generator)
        named = draws.estimate(draws["named"][:, 0])
    if len(on_object) and len(background):
        means = [rows.groupby("image_id")["entropy"].mean() for rows in (on_object, background)]
        difference = (means[0] - means[1]).dropna()
        gap = (
            mean_interval(difference, difference.index.to_numpy(), generator=generator)
            if len(difference)
            else None
        )
    why = "" if len(on_object) else "no token lies wholly on an object"
    return [
        _of(
            "G7",
            "objects named alone",
            named,
            "at least",
            limits.least_named,
            why=why,
        ),
        _of("G7", "entropy above background's", gap, "below", 0.0, why=why),
    ]


def judge_gates(
    table: pd.DataFrame,
    limits: Limits,
    bounds: Mapping[float, float],
    *,
    codebook: Mapping[str, Any] | None = None,
    other: pd.DataFrame | None = None,
    data: str = "images",
    seed: int = 0,
) -> tuple[list[GateResult], list[str]]:
    """Judge all gates of a model that a table of `measure_gates` tells of.

    Parameters
    ----------
    table : pandas.DataFrame
        From `rcblib.evaluate.gates.measure_gates`.
    limits : Limits
        Bounds.
    bounds : Mapping
        Budget (share of tokens) to the relative score that the claims ask for there, for G3.
    codebook : Mapping, optional
        The metadata of the model's codebook.
    other : pandas.DataFrame, optional
        The same table of a model of another training seed.
    data : str
        As in `GateResult`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    results : list of GateResult
        Gate by gate.
    tasks : list of str
        Tasks that pass G1; verdicts are about these.
    """
    generator = np.random.default_rng(seed)
    answers, tokens = part_of(table, ANSWERS), part_of(table, TOKENS)
    results, tasks = tasks_work(answers, limits, generator=generator)
    results += background_is_redundant(answers, tasks, limits, generator=generator)
    results += [
        pruning_can_succeed(answers, tasks, ratio, bound, generator=generator)
        for ratio, bound in bounds.items()
    ]
    if len(tokens):
        results.append(pixels_do_not_tell(tokens, limits, generator=generator))
        results += signal_is_stable(
            tokens,
            limits,
            other=None if other is None else part_of(other, TOKENS),
            criterion=(codebook or {}).get("criterion"),
            generator=generator,
        )
    if codebook is not None and data == "images":  # G6 is the same for all samples
        results.append(prototypes_recur(codebook, limits))
    if len(tokens):
        results += tokens_speak(tokens, limits, generator=generator)
    return [GateResult(**asdict(each) | {"data": data}) for each in results], tasks


def _scores(
    answers: pd.DataFrame, names: Sequence[str], tasks: Collection[str], generator: np.random.Generator
) -> CorrectedScores | None:
    """Return the scores of some conditions on the tasks that work; ``None`` where none does."""
    if not tasks:
        return None
    return corrected_scores(answers, {name: (name, None) for name in names}, tasks, generator=generator)


def _overlap(
    first: pd.DataFrame,
    second: pd.DataFrame,
    criterion: Mapping[str, float] | None,
    generator: np.random.Generator,
) -> tuple[Estimate | None, dict[str, Any]]:
    """Estimate the Jaccard overlap of two sets of tokens that say little, over the images of both; or say why not.

    With it comes what tells a shift of all values from disagreement: the overlap with the other's thresholds at its own
    quantiles, below each of which as large a share of its tokens lies, and that of as many tokens of each at random.
    """
    if criterion is None:
        return None, {"why": "no codebook says what is low"}
    if "influence" not in set(first) & set(second):
        return None, {"why": "influence was not measured"}
    place = ["image_id", "view", "position"]
    known = (rows.dropna(subset="influence") for rows in (first, second))
    both = pd.merge(*known, on=place, suffixes=("", "_other"), validate="one_to_one")
    limits = {"top1_probability": criterion["tau_p"], "influence": criterion["tau_jsd"]}
    values = both[[f"{name}{suffix}" for name in limits for suffix in ("", "_other")]].astype(float)

    def says_little(suffix: str) -> np.ndarray:
        return np.all([values[f"{name}{suffix}"] < limit for name, limit in limits.items()], axis=0)

    little, other = says_little(""), says_little("_other")
    either = little | other
    if not either.any():
        return None, {"why": "no token of the images of both says little" if len(both) else "other images"}
    n_below = {name: int((values[name] < limit).sum()) for name, limit in limits.items()}
    ranks = values.rank(method="first")
    own = np.all([ranks[f"{name}_other"] <= n for name, n in n_below.items()], axis=0)
    matched = (little & own).sum() / max(1, (little | own).sum())
    by_chance = little.mean() * own.mean()
    by_chance /= max(little.mean() + own.mean() - by_chance, np.finfo(float).tiny)
    about = f"({matched:.2f} at the other’s own levels, {by_chance:.2f} by chance)"
    images = both["image_id"][either].to_numpy()
    overlap = mean_interval((little & other)[either], images, generator=generator)
    return overlap, {"about": about, "by_chance": float(by_chance), "matched": float(matched)}
