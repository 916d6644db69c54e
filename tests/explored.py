"""Probe and explore a few drawn scenes once, and write their explorer, for the tests that look at it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcblib.codebook.codebook import load_codebook
from rcblib.data.opening import open_dataset
from rcblib.evaluate.exhibits import exhibit_questions
from rcblib.evaluate.explored import exhibit_pruners, explore
from rcblib.mllm import adapter_for, load_model
from rcblib.probe.config import ProbeConfig
from rcblib.probe.store import probe_dataset
from rcblib.reading.explorer.build import Source
from rcblib.reading.explorer.writing import write_explorer

BUDGETS = (0.1, 0.5, 1.0)
METHODS = ("random", "codebook", "oracle")
N_CANDIDATES = 6


@dataclass
class Explored:
    """Hold what was made: models, samples, pruners, the source, and the folder with the page."""

    model: Any
    processor: Any
    samples: list
    questions: list
    pruners: dict
    source: Source
    folder: Path


def make_explored(folder: Path) -> Explored:
    """Explore two of six drawn scenes; of the second every other token only is probed."""
    model, processor = load_model("llava-scenes")
    adapter, samples = adapter_for(model, processor), list(open_dataset("scenes", "test", N_CANDIDATES))
    codebook = load_codebook("llava-scenes")
    pruners, unfit = exhibit_pruners(METHODS, BUDGETS, adapter.family, codebook, None)
    assert not unfit
    table, facts = explore(
        model,
        processor,
        samples,
        pruners,
        codebook=codebook,
        n_shown=2,
        folder=folder / "explored",
        progress=False,
    )
    config = ProbeConfig(positions="grid", n_side=6, batch_size=64)
    shown = [samples[i] for i in facts["description"]["shown"]]
    probed = probe_dataset(model, processor, shown, config, folder / "probed", progress=False)
    by_id = {sample.image_id: sample for sample in samples}
    source = Source(table, facts, probed, by_id, adapter, "a model", "llava-scenes")
    write_explorer(folder / "page", [source])
    return Explored(model, processor, samples, exhibit_questions(samples), pruners, source, folder / "page")
