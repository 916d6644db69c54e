"""Write the tables of the page on scale: what probing many images takes, how that was checked, and what breaks first.

All numbers are computed here from checkpoints' settings, or are those of recorded results; the page ``book/scale.md``
includes the tables from ``book/_build/scale/``. Run it by ``python -m tools.make_scale``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
from transformers import AutoTokenizer

from benchmarks.checkpoints import CHECKPOINTS, QWEN, empty_model
from benchmarks.operations import encoding_operations, probing_operations
from benchmarks.results import recorded
from benchmarks.scale import growth
from benchmarks.weights import ModelShape
from rcblib.codebook.criterion import PRESETS
from rcblib.mllm.loading import model_names, model_source
from rcblib.runs.files import config_hash, read_json
from rcblib.signals import SIGNALS
from tools.make_memory import N_TEXT, Jobs, short
from tools.make_minutes import minutes_table
from tools.write_parts import table, write_parts

ROOT = Path(__file__).resolve().parents[1]

SIZES = {"500 images": 500, "COCO train, 118,000": 118_000, "ten million": 10_000_000}
CARDS = {"A100": 312e12, "H100": 989e12}
"""Operations a second in bfloat16 without sparsity, as NVIDIA's data sheets of the cards have them."""
USED = 0.4
"""Share of these that probing is taken to reach; an assumption, not a measurement."""
GB = 1e9
N_COLUMNS = len(SIGNALS)
"""Numbers of a row, at least: a signal each."""


def written(number: float) -> str:
    """Write a number with three digits, large ones with commas."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.001 else "< 0.001"


def work_of(job: Jobs) -> dict[str, float]:
    """Count the operations of encoding the tables' picture and of probing all its positions, level by level."""
    text = (N_TEXT // 2, N_TEXT // 2)
    return {"encoding": encoding_operations(job.shape, job.n_grids)} | probing_operations(
        job.shape, job.n_visual, text
    )


def operations_table(jobs: dict[str, Jobs]) -> str:
    """Write positions of the picture, and operations by level, in units of 10**12."""
    rows = []
    for name, job in jobs.items():
        parts = work_of(job)
        rows.append(
            [
                short(name),
                job.n_visual,
                *(written(value / 1e12) for value in (*parts.values(), sum(parts.values()))),
            ]
        )
    return table(["model", "positions", "encoding", "single token", "region", "global", "all"], rows)


def hours_table(jobs: dict[str, Jobs]) -> str:
    """Write the GPU hours of each number of images on each card."""
    rows = []
    for name, job in jobs.items():
        total = sum(work_of(job).values())
        hours = [n * total / (peak * USED) / 3600 for n in SIZES.values() for peak in CARDS.values()]
        rows.append([short(name), *map(written, hours)])
    return table(["model", *(f"{size}, {card}" for size in SIZES for card in CARDS)], rows)


def storage_table(jobs: dict[str, Jobs], row_bytes: float, file_bytes: float) -> str:
    """Write what is kept of each number of images: visual tokens in half precision / tables, one an image."""
    rows = []
    for name, job in jobs.items():
        tokens, lines = 2 * job.n_visual * job.shape.d_model, file_bytes + row_bytes * job.n_visual
        cells = [f"{written(n * tokens / GB)} / {written(n * lines / GB)}" for n in SIZES.values()]
        rows.append([short(name), f"{tokens / 1e6:.2f} / {lines / 1e6:.3f}", *cells])
    return table(["model", "an image (MB)", *(f"{size} (GB)" for size in SIZES)], rows)


def measured_table(root: Path) -> str:
    """Write recorded probing of all positions, a column each: seconds of an image, and the operations a second."""
    columns = {}
    for path in sorted((root / "data/recorded").glob("*/probing.json")):
        facts = read_json(path)
        name = path.parent.name
        if facts["description"]["config"]["positions"] != "all" or name not in model_names():
            continue
        n_images = len(facts["samples"])
        n_visual = facts["n_rows"] // n_images
        tokenizer = AutoTokenizer.from_pretrained(model_source(name))
        n_text = len(tokenizer(facts["description"]["prompt"]).input_ids) - 1
        shape = ModelShape.from_model(empty_model(name))
        dtype = facts["stage"]["options"].get("dtype", "float32")
        levels = probing_operations(shape, n_visual, (n_text // 2, n_text // 2), is_shared=dtype == "float32")
        total = encoding_operations(shape) + sum(levels.values())
        seconds = facts["seconds"] / n_images
        made = facts["provenance"][0]
        columns[f"`{name}`"] = [
            dtype, made["cpu"] if made["gpu"] == "none" else made["gpu"], n_images, n_visual, f"{seconds:.2f}",
            written(total / 1e9), f"{total / seconds / 1e9:.1f}",
        ]  # fmt: skip
    names = [
        "numbers",
        "hardware",
        "images",
        "positions",
        "seconds an image",
        "10⁹ operations an image",
        "10⁹ a second",
    ]
    return table(["recorded", *columns], zip(names, *columns.values(), strict=True))


def growth_table(found: pd.DataFrame) -> str:
    """Write how time, files and bytes grew with the number of images."""
    forms = {"seconds": "{:.2f}", "merge_seconds": "{:.2f}", "n_files": "{:,}", "n_rows": "{:,}"}
    columns = {
        "n_images": "images",
        "n_rows": "rows",
        "seconds": "probing (s)",
        "merge_seconds": "merging (s)",
        "n_files": "files",
    }
    sizes = {"token_bytes": "tokens (MB)", "table_bytes": "tables (MB)", "merged_bytes": "merged (MB)"}
    rows = [
        [forms.get(name, "{}").format(line[name]) for name in columns]
        + [f"{line[name] / 1e6:.2f}" for name in sizes]
        for line in found.to_dict("records")
    ]
    slopes = [
        "slope in logarithms",
        "",
        *(f"{growth(found, name).slope:.3f}" for name in ("seconds", "merge_seconds", "n_files", *sizes)),
    ]
    return table([*columns.values(), *sizes.values()], [*rows, slopes])


def limits_table(job: Jobs) -> str:
    """Write what each number of images asks of files, memory and the codebook, for the first checkpoint."""
    criterion = next(iter(PRESETS.values()))
    n_pooled = criterion.n_clusters * criterion.cluster_size_max
    n_fact = len(json.dumps({"000000391895.jpg": config_hash({})}))
    rows = []
    for size, n in SIZES.items():
        points = n * n_pooled
        rows.append([
            size, written(2 * n), written(n * job.n_visual * N_COLUMNS * 8 / GB), written(n * n_fact / 1e6),
            written(points), written(points * job.shape.d_model * 2 / GB),
            written(2 * points**2 * job.shape.d_model / (CARDS["H100"] * USED) / 3600),
        ])  # fmt: skip
    header = [
        "images", "files kept", "rows at merging (GB)", "facts at checking (MB)", "tokens pooled, at most",
        "these (GB)", "their distances (H100 hours)",
    ]  # fmt: skip
    return table(header, rows)


def main(root: Path = ROOT) -> int:
    """Write the tables; files whose text stays the same are left alone, so that Sphinx skips them."""
    jobs = {name: Jobs(name) for name in (*CHECKPOINTS, QWEN)}
    found = recorded("scale")
    grown = pd.DataFrame(found["scale"])
    last = grown.iloc[-1]
    row_bytes = last["merged_bytes"] / last["n_rows"]
    file_bytes = (last["table_bytes"] - row_bytes * last["n_rows"]) / last["n_images"]
    parts = {
        "operations": operations_table(jobs),
        "hours": hours_table(jobs),
        "storage": storage_table(jobs, row_bytes, file_bytes),
        "measured": measured_table(root),
        "growth": growth_table(grown),
        "limits": limits_table(jobs[CHECKPOINTS[0]]),
        "minutes": minutes_table(jobs, root),
    }
    write_parts(root / "book" / "_build" / "scale", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
