"""Make every method that serves a model at the same budgets, and variants of two of them at one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from rcblib.codebook.codebook import Codebook
from rcblib.codebook.scorer import Scorer, load_scorer
from rcblib.mllm import Adapter
from rcblib.mllm.tiles import TiledAdapter
from rcblib.pruners.base import Pruner
from rcblib.pruners.codebook import FAMILY_RULES, CodebookPruner
from rcblib.pruners.context import OF_SAMPLES, QUESTION
from rcblib.pruners.distilled import DistilledPruner
from rcblib.pruners.random import RandomPruner
from rcblib.pruners.registry import PRUNERS, Method, find_method
from rcblib.pruners.replaced import ReplacedCodebookPruner, ReplacedRandomPruner
from rcblib.records import ParameterError
from rcblib.tensors.checks import check_integer
from rcblib.tensors.scoring import RULES

OURS, BY_CHANCE, FITTED = "codebook", "random tokens", "distilled from probing"
POSITIONS_KEPT, POSITIONS_RENUMBERED = "positions kept", "positions renumbered"
REPLACED = "replaced by a prototype"
BY_IMAGE, BY_VIDEO = "budget of the whole image", "budget of the whole video"

KINDS = (
    "controls",
    "made from probing",
    "spread and merging",
    "states of the encoder",
    "inside the LLM",
    "bounds",
)
"""What methods are grouped by; the two kinds before the bounds are built on intermediate states."""
INTERMEDIATE = KINDS[3:5]


def kind_of(label: str) -> str:
    """Return which of `KINDS` a method is, given its label; variants are as what they vary."""
    method = next((own for own in PRUNERS.values() if own.label == label.partition(";")[0]), None)
    if method is None:
        raise ParameterError("method", label, "the label of a registered one")
    signals = method.needs - OF_SAMPLES - {QUESTION}
    if method.needs & OF_SAMPLES:
        return "bounds"
    if method.kind._overrides("inside"):
        return "inside the LLM"
    if signals:
        return "states of the encoder"
    if issubclass(method.kind, CodebookPruner | DistilledPruner):
        return "made from probing"
    is_control = method.name in ("all", "random") or method.paper.startswith("a control")
    return "controls" if is_control else "spread and merging"


def variant(label: str, what: str) -> str:
    """Name a variant of a method."""
    return f"{label}; {what}"


def every_pruner(
    adapter: Adapter,
    codebook: Codebook,
    retain_ratios: Sequence[float],
    n_seeds: int = 5,
    *,
    has_masks: bool = True,
    kind: str = "image",
    methods: Sequence[str] = (),
    scorer: str | Scorer = "",
) -> tuple[dict[str, list[Pruner]], dict[str, str]]:
    """Make every registered method that serves a model, at the same budgets.

    Parameters
    ----------
    adapter : Adapter
        The model.
    codebook : Codebook
        Of the model, for the methods that take one, by the family's rule.
    retain_ratios : sequence of float
        Shares of the tokens to keep. A method that takes no share is made once.
    n_seeds : int
        Draws of random tokens at each share; bounds, which draw among equals only, are drawn once.
    has_masks : bool
        Whether samples say where objects are: else there are no bounds.
    kind : str
        Of the samples, as in `variant_pruners`.
    methods : sequence of str
        Names of methods, by default all.
    scorer : str or Scorer
        Of the model, for the method that takes one; without it that method is left out.

    Returns
    -------
    pruners : dict
        Label to pruners by share and seed, the unpruned model first.
    left_out : dict
        Label to the reason of each method that does not serve the model.

    Raises
    ------
    ParameterError
        Where there is no budget, a number is out of range or a name unknown.
    """
    check_integer("n_seeds", n_seeds, 1)
    if not retain_ratios:
        raise ParameterError("retain_ratios", list(retain_ratios), "at least one share")
    chosen = {name: find_method(name) for name in ("all", *(methods or PRUNERS))}
    parts = {"codebook": codebook} | ({"scorer": load_scorer(scorer)} if scorer else {})
    made: dict[str, list[Pruner]] = {}
    left_out: dict[str, str] = {}
    for method in chosen.values():
        if method.needs & OF_SAMPLES and not has_masks:
            left_out[method.label] = "no masks are known"
            continue
        if kind == "video" and method.needs - OF_SAMPLES - {QUESTION}:
            left_out[method.label] = "frames of a video are pooled, and have no states of the encoder"
            continue
        try:
            made[method.label] = _at_budgets(method, adapter, parts, retain_ratios, n_seeds)
        except ParameterError as error:
            left_out[method.label] = str(error)
    return made, left_out


def variant_pruners(
    adapter: Adapter, codebook: Codebook, retain_ratio: float, n_seeds: int = 5, *, kind: str = "image"
) -> dict[str, list[Pruner]]:
    """Make variants of codebook and random tokens at one budget, each of which changes one thing.

    Parameters
    ----------
    adapter, codebook, n_seeds
        As in `every_pruner`.
    retain_ratio : float
        The budget.
    kind : str
        Of the samples: the budget of a whole video is for ``"video"``, that of a whole image for families with tiles.

    Returns
    -------
    dict
        Label, as `variant` writes it, to pruners: the other policy for position ids; dropped tokens replaced; one
        budget for all tiles or frames; and of the codebook the other rules.
    """
    rule = FAMILY_RULES.get(adapter.family, CodebookPruner.rule)
    is_kept = RandomPruner(retain_ratio).keeps_positions(adapter)
    own: dict[str, dict[str, Any]] = {
        POSITIONS_RENUMBERED if is_kept else POSITIONS_KEPT: {
            "position_ids": "renumbered" if is_kept else "kept"
        }
    }
    if kind == "video":
        own[BY_VIDEO] = {"scope": "video"}
    elif kind == "image" and isinstance(adapter, TiledAdapter):
        own[BY_IMAGE] = {"scope": "image"}
    common = {"codebook": codebook, "rule": rule, "retain_ratio": retain_ratio}
    seeds = range(n_seeds)
    found: dict[str, list[Pruner]] = {}
    for what, settings in own.items():
        found[variant(OURS, what)] = [CodebookPruner(**common, **settings)]
        found[variant(BY_CHANCE, what)] = [RandomPruner(retain_ratio, seed=s, **settings) for s in seeds]
    found[variant(OURS, REPLACED)] = [ReplacedCodebookPruner(**common)]
    found[variant(BY_CHANCE, REPLACED)] = [
        ReplacedRandomPruner(retain_ratio, seed=s, codebook=codebook) for s in seeds
    ]
    for other in RULES:
        if other != rule:
            found[variant(OURS, f"rule {other}")] = [CodebookPruner(**common | {"rule": other})]
    return found


def _at_budgets(
    method: Method, adapter: Adapter, parts: dict[str, Any], ratios: Sequence[float], n_seeds: int
) -> list[Pruner]:
    """Make a method at every budget and seed; raise where it does not serve the model."""
    settings = {name: part for name, part in parts.items() if name in method.parameters}
    takes_shares = "retain_ratio" in method.parameters
    budgets = [{"retain_ratio": ratio} for ratio in ratios] if takes_shares else [{}]
    n_draws = n_seeds if "seed" in method.parameters and not method.needs & OF_SAMPLES else 1
    seeds = [{"seed": seed} for seed in range(n_draws)] if "seed" in method.parameters else [{}]
    made = [
        method.make(settings | budget | seed, family=adapter.family) for budget in budgets for seed in seeds
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rules that the release does not use with a family
        for pruner in made:
            pruner.check(adapter)
    return made
