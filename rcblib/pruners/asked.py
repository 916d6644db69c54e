"""Make the pruners that somebody asks for in words and numbers: methods, a codebook, budgets, cut-offs, draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from rcblib.codebook.codebook import Codebook, load_codebook
from rcblib.data.base import AnySample
from rcblib.data.samples import load_pictures
from rcblib.mllm import Adapter
from rcblib.pruners.base import Pruner
from rcblib.pruners.codebook import CodebookPruner
from rcblib.pruners.registry import PRUNERS, baseline_pruners, read_pruner
from rcblib.records import ParameterError
from rcblib.tensors.checks import check_integer
from rcblib.tensors.scoring import calibrate_max_similarity, redundancy_scores

T = TypeVar("T")

CUT_OFF = "codebook, cut-off"
"""What a codebook with a calibrated cut-off is called among the methods."""


def asked_pruners(
    methods: Sequence[str],
    codebook: str | None,
    rule: str,
    ratios: Sequence[float],
    cut_offs: Sequence[float],
    n_seeds: int,
) -> dict[str, list[Pruner]]:
    """Return methods by their label, at every budget asked for and all of them checked, beside the unpruned model.

    Parameters
    ----------
    methods : sequence of str
        As `read_pruner` takes them; by default the baselines.
    codebook : str, optional
        As `load_codebook` takes it.
    rule : str
        How it scores.
    ratios : sequence of float
        Shares of the tokens to keep.
    cut_offs : sequence of float
        Cosines, for the codebook.
    n_seeds : int
        Draws of what is random, from 0.

    Raises
    ------
    ParameterError
        If a method or a number is unknown or out of range, or a codebook and its budget do not come together.
    """
    n_seeds = check_integer("random-seeds", n_seeds, 0)
    if cut_offs and not codebook:
        raise ParameterError("max-similarity", cut_offs, "cut-offs together with a codebook")
    if codebook and not (ratios or cut_offs):
        raise ParameterError("codebook", codebook, "a codebook together with retain-ratio or max-similarity")
    asked = [read_pruner(text) for text in methods]
    if codebook:
        given = {"codebook": load_codebook(codebook), "rule": rule}
        asked += [(PRUNERS["codebook"], given)] if ratios else []
        asked += [(PRUNERS["codebook"], given | {"max_similarity": cut_off}) for cut_off in cut_offs]
    pruners = {PRUNERS["all"].label: [PRUNERS["all"].make()]}
    if not methods:
        pruners |= {name: made for name, made in baseline_pruners(ratios, n_seeds).items() if made}
    for method, settings in asked:
        takes_ratios = bool(ratios) and method.waits_for_ratio(settings)
        budgets = [{"retain_ratio": ratio} for ratio in ratios] if takes_ratios else [{}]
        draws = "seed" in method.parameters and "seed" not in settings
        seeds = [{"seed": seed} for seed in range(n_seeds)] if draws else [{}]
        made = [method.make(settings | budget | seed) for budget in budgets for seed in seeds]
        pruners.setdefault(method.label, []).extend(made)
    return pruners


def in_turn(pruners: Mapping[str, Iterable[T]], turn: slice) -> dict[str, list[T]]:
    """Return those settings of methods, by their label, that a slice takes of all of them in order.

    Raises
    ------
    ParameterError
        If there is none.
    """
    settings = [(method, own) for method, given in pruners.items() for own in given]
    chosen: dict[str, list[T]] = {}
    for method, own in settings[turn]:
        chosen.setdefault(method, []).append(own)
    if not chosen:
        raise ParameterError("settings", f"the {turn.start + 1}-th", f"one of the {len(settings)} there are")
    return chosen


def calibrated_cut_offs(
    adapter: Adapter,
    codebook: Codebook,
    samples: Iterable[AnySample],
    ratios: Iterable[float],
    batch_size: int = 32,
) -> dict[float, float]:
    """Find, for each share, the cut-off that retains it on average over some images.

    Parameters
    ----------
    samples : iterable of Sample
        Single images, none of them one that is asked about. Each view of an image counts as an image.
    ratios : iterable of float
        Mean shares of the tokens to retain, in (0, 1).
    adapter, codebook, batch_size
        Of the model, what its tokens are compared with by ``max_cosine``, and images that are encoded together.

    Returns
    -------
    dict
        Share to ``max_similarity``, see `calibrate_max_similarity`.
    """
    pictures = [picture for sample in samples for picture in load_pictures(sample)]
    prototypes = codebook.prototypes.float()
    scores = [
        redundancy_scores(view.tokens.float().cpu(), prototypes)
        for start in range(0, len(pictures), batch_size)
        for image in adapter.encode(pictures[start : start + batch_size])
        for view in image.views
    ]
    return {ratio: calibrate_max_similarity(scores, ratio) for ratio in ratios}


def cut_off_pruners(codebook: Codebook, cut_offs: Mapping[float, float]) -> dict[str, list[Pruner]]:
    """Return the codebook at cut-offs that `calibrated_cut_offs` found, under `CUT_OFF`."""
    return {CUT_OFF: [CodebookPruner(codebook, max_similarity=cut_off) for cut_off in cut_offs.values()]}
