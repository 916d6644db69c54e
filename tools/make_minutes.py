"""Write the table of the page on Colab: minutes and memory of notebooks with a 7B checkpoint, as calculated.

Parameters are those of the copies that Colab opens. The tool of the page on scale calls `minutes_table`, as it has the
checkpoints' shapes.
"""

from __future__ import annotations

import ast
import contextlib
import json
from pathlib import Path
from typing import Any

from benchmarks.footprint import CARDS as MEMORIES
from benchmarks.footprint import RESERVE
from benchmarks.minutes import CARDS, Card, Expected, answering_on, probing_on
from rcblib.data.opening import open_images
from rcblib.data.questions import default_tasks, questions_for
from rcblib.records import ParameterError
from tools.make_memory import N_TEXT, Jobs, gib, short
from tools.stamp_notebooks import ON_COLAB
from tools.write_parts import table

PROBING = ("token_centric", "context_centric", "intermediate_states", "build_codebook")
ANSWERING = "pruned_inference"
SIXTH = 1 / 6
"""Share of the positions that codebooks are made from, 96 of 576."""
SETTINGS_WITH_CLS, SETTINGS_WITHOUT = 4, 2
"""Codebook and random tokens; with a [CLS] also the tokens most and least similar to it."""


def declared(name: str, root: Path) -> dict[str, Any]:
    """Read the parameters that a notebook declares, as Colab's copies have them."""
    cells = json.loads((root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    nodes = (node for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.AnnAssign))
    return {node.target.id: ast.literal_eval(node.value) for node in nodes} | ON_COLAB


def n_questions_of(asked: dict[str, Any]) -> int:
    """Count the questions that the notebook draws of composed photographs."""
    samples = open_images("photographs", asked["split"], asked["n_images"])
    n_asked = 0
    for task in default_tasks(samples):
        with contextlib.suppress(ParameterError):  # these images have none of this task
            limit = asked["n_yes_no"] if task == "yes_no" else asked["n_questions"]
            n_asked += min(len(questions_for(samples, [task])), limit)
    return n_asked


def expected(name: str, job: Jobs, card: Card, asked: dict[str, Any], n_questions: int) -> Expected:
    """Compute what a notebook takes on a card."""
    common = {"n_images": asked["n_images"], "n_text": N_TEXT, "batch_size": asked["batch_size"]}
    if name != ANSWERING:
        share = SIXTH if name == "build_codebook" else 1.0
        return probing_on(card, job.shape, job.n_visual, job.n_grids, **common, share=share)
    n_settings = SETTINGS_WITH_CLS if job.has_cls else SETTINGS_WITHOUT
    ratios = [1.0, *(budget for budget in asked["budgets"] for _ in range(n_settings))]
    return answering_on(
        card, job.shape, job.n_visual, job.n_grids, **common, n_questions=n_questions, ratios=ratios,
        n_new=asked["max_new_tokens"],
    )  # fmt: skip


def minutes_table(jobs: dict[str, Jobs], root: Path) -> str:
    """Write a line for notebooks that take the same, and checkpoint: minutes, and GiB where they fit, on each card."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for name in (*PROBING, ANSWERING):
        asked = declared(name, root)
        n_questions = n_questions_of(asked) if name == ANSWERING else 0
        for model, job in jobs.items():
            cells = []
            for title, card in CARDS.items():
                found = expected(name, job, card, asked, n_questions)
                is_held = found.footprint.total <= MEMORIES[title] - RESERVE
                cells.append(f"{max(found.seconds / 60, 0.1):,.1f}" if is_held else "–")
                cells.append(gib(found.footprint.total) if is_held else "too little")
            lines.setdefault((short(model), *cells), []).append(name)
    rows, above = [], []
    for key, names in lines.items():
        links = ", ".join(f"[](notebooks/{name}.ipynb)" for name in names)
        rows.append(["as above" if names == above else links, *key])
        above = names
    header = [f"{title}, {what}" for title in CARDS for what in ("minutes", "GiB")]
    return table(["notebook", "model", *header], rows)
