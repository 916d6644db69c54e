"""Run the command `explorer`: measure images in full, or read what was measured, and write the page."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rcblib.codebook.codebook import load_codebook
from rcblib.data.base import AnySample
from rcblib.data.opening import fitting_noted
from rcblib.evaluate.explored import BUDGETS, REMOVED, exhibit_pruners, explore
from rcblib.mllm import adapter_for
from rcblib.probe.config import ProbeConfig, codebook_positions
from rcblib.probe.results import ProbeResults
from rcblib.probe.store import read_probe
from rcblib.pruners.asked import in_turn
from rcblib.pruners.registry import PRUNERS, find_method
from rcblib.reading.explorer.build import Source, with_more
from rcblib.reading.explorer.hows import in_ways, told_ways
from rcblib.reading.explorer.writing import write_explorer
from rcblib.records import ImageId, ParameterError
from rcblib.runs.files import write_table
from rcblib.runs.records import FACTS, is_record, read_written
from rcblib.runs.shards import Shard, turn_of

MOST_BUDGETS = 6


def run_explorer(
    options: argparse.Namespace,
    open_samples: Callable[[], tuple[Sequence[AnySample], Mapping[ImageId, str]]],
    load: Callable[[Sequence[AnySample]], tuple[Any, Any]],
) -> None:
    """Do what the command's options say.

    Parameters
    ----------
    options : argparse.Namespace
        Those of `rcblib.runs.options.add_exhibits`, with model, images and table.
    open_samples, load : callable
        Return the samples, with the reasons of those left out; and model and processor, given the samples.

    Raises
    ------
    ParameterError
        Before a model is loaded, if an option is out of range, or a page is asked for without a probe run.
    """
    budgets = tuple(options.retain_ratio or BUDGETS)
    if len({*budgets, 1.0}) > MOST_BUDGETS or sorted(set(budgets)) != list(budgets):
        accepted = f"up to {MOST_BUDGETS} different shares with that of all tokens, 1, ascending"
        raise ParameterError("retain-ratio", list(budgets), accepted)
    if options.page and not options.probed:
        raise ParameterError("page", str(options.page), "a page together with a folder that was --probed")
    names = [find_method(name).name for name in options.pruner] if options.pruner else list(PRUNERS)
    shard, turn = Shard.parse(options.shard, options.first), turn_of(options.settings)
    codebook = None if options.codebook is None else load_codebook(options.codebook)
    probed = None if options.probed is None else read_probed(options.probed)
    samples, skipped = open_samples()
    shown = _ids(options.shown, samples)
    model, processor = load(samples)
    adapter = adapter_for(model, processor)
    samples, skipped = fitting_noted(options.folder, samples, skipped, adapter.size_limit, options.on_error)
    if options.recorded:
        table, facts = read_explored(options.recorded[0])
        for path in options.recorded[1:]:
            table, facts = with_more(table, facts, *read_explored(path))
    else:
        positions = options.positions
        config = ProbeConfig(
            options.question, "all" if positions == "codebook" else positions, options.views, attention=False
        )
        if positions == "codebook":
            config = replace(config, positions=codebook_positions(adapter))
        every, unfit = exhibit_pruners(names, budgets, adapter.family, codebook, options.rule)
        by_share = (
            in_turn({name: own.items() for name, own in every.items()}, turn) if options.settings else every
        )
        pruners = {name: dict(own) for name, own in by_share.items()}
        if options.more is not None:
            pruners, unreplaced = in_ways(pruners, options.more or (REMOVED,), adapter)
            unfit |= unreplaced
        table, facts = explore(
            model,
            processor,
            samples,
            pruners,
            codebook=codebook,
            config=config,
            shown=shown,
            n_shown=options.n_shown,
            more=options.more is not None,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            folder=options.folder,
            shard=shard,
            skipped=skipped,
        )
        if options.more is not None:
            table = told_ways(table, pruners)
        facts["unfit"] = unfit | facts["unfit"]
        if options.settings:
            facts["only"] = {"setting": sorted(table["setting"].dropna().unique())}
    if options.table:
        write_table(options.table, table, facts)
    if options.page:
        by_id = {sample.image_id: sample for sample in samples}
        write_explorer(
            options.page, [Source(table, facts, probed, by_id, adapter, codebook=options.codebook or "")]
        )
        print(f"{options.page / 'index.html'}")
    n_answers = int((table["part"] == "answers").sum())
    print(f"{n_answers} answers about {len(facts['samples'])} images in {options.folder}")


def read_probed(path: Path) -> ProbeResults:
    """Read a probe run: its folder, a folder of shared runs that holds one, or a table of it, recorded or not."""
    if is_record(path):
        table, facts = read_explored(path)
        return ProbeResults(table, {}, facts["description"], facts)
    found = sorted(path.glob("probe/*/probe.json"))
    if len(found) > 1:
        raise ParameterError(
            "probed", f"{path.name}, {len(found)} runs", "the folder of one of them, in probe/"
        )
    return read_probe(found[0].parent if found else path)


def read_explored(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table that a command wrote with ``--table``, recorded or not, with its facts."""
    table, facts = read_written(path)
    if set(FACTS) - set(facts):
        raise ParameterError("table", path.name, "a table that a command of the library wrote with --table")
    return table, facts


def _ids(text: str | None, samples: Sequence[AnySample]) -> list[ImageId] | None:
    """Read the ids of images with commas between them."""
    if text is None:
        return None
    known = {str(sample.image_id): sample.image_id for sample in samples}
    given = [part.strip() for part in str(text).split(",")]
    if strangers := [part for part in given if part not in known]:
        raise ParameterError(
            "shown", strangers, "ids of the images that are opened, with commas between them"
        )
    return [known[part] for part in given]
