"""Write the tables of the page on memory: what each checkpoint takes, what fits on which card, and a check.

All numbers come from `benchmarks.footprint` at every build; the page ``book/memory.md`` includes the tables from
``book/_build/memory/``.

    python -m tools.make_memory
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from benchmarks.checkpoints import CHECKPOINTS, QWEN, empty_model, n_patches, narrow_config, picture_rows
from benchmarks.footprint import (
    CARDS,
    GIB,
    RESERVE,
    Footprint,
    cache_bytes,
    generation,
    largest_batch,
    measured_peak,
    prefill_bytes,
    probing,
)
from benchmarks.weights import STORAGES, ModelShape, weight_bytes
from rcblib.mllm import adapter_for
from rcblib.mllm.encoder import HAS_CLS
from rcblib.mllm.prompt import Prompt, VisualRows
from tools.write_parts import table, write_parts

ROOT = Path(__file__).resolve().parents[1]

EVERY = (*CHECKPOINTS, QWEN)
"""Checkpoints of all tables."""

HEIGHT, WIDTH = 480, 640
"""The picture of all tables, in pixels: a common size of COCO's photos."""

N_TEXT, N_NEW, LIMIT = 64, 64, 256
STORAGE_NAMES = {"float32": "float32", "half": "16 bit", "4bit": "4 bit"}
MEMORIES = (16, 32, 64)
"""Main memories of computers without a card, in GiB."""


def gib(n_bytes: float) -> str:
    """Write bytes as GiB with one digit."""
    return f"{n_bytes / GIB:.1f}"


def short(name: str) -> str:
    """Return a checkpoint's name without its owner, as code."""
    return f"`{name.partition('/')[2]}`"


class Jobs:
    """Hold a checkpoint's shape, and compute its jobs on the tables' picture."""

    def __init__(self, name: str):
        model = empty_model(name)
        self.has_cls = HAS_CLS.get(model.config.vision_config.model_type, False)
        if name == QWEN:
            n_rows = n_patches(HEIGHT, WIDTH)
            self.shape = ModelShape.from_model(model, n_rows)
            self.n_grids, self.n_visual = 1, n_rows // self.shape.n_merged
        else:
            self.shape = ModelShape.from_model(model)
            self.n_grids, self.n_visual = picture_rows(model, HEIGHT, WIDTH)

    def probing(self, storage: str, batch_size: int, attention: bool = False) -> Footprint:
        """Return the memory of probing the picture."""
        return probing(
            self.shape, storage, self.n_visual, n_grids=self.n_grids, n_text=N_TEXT, batch_size=batch_size,
            attention=attention,
        )  # fmt: skip

    def generation(self, storage: str, batch_size: int, retain_ratio: float = 1.0) -> Footprint:
        """Return the memory of answering questions about the picture."""
        return generation(
            self.shape, storage, self.n_visual, n_grids=self.n_grids, n_text=N_TEXT, n_new=N_NEW,
            batch_size=batch_size, retain_ratio=retain_ratio,
        )  # fmt: skip


def parts_table(jobs: dict[str, Jobs]) -> str:
    """Write parameters by part and weights by storage."""
    rows = []
    for name, job in jobs.items():
        parts = job.shape.parameters
        words = parts["embeddings"] + parts["head"]
        counts = [
            parts["vision"],
            parts["connector"],
            words,
            parts["layers"] + parts["rest"],
            job.shape.n_parameters,
        ]
        weights = [gib(sum(weight_bytes(job.shape, storage).values())) for storage in STORAGES]
        rows.append([short(name), *(f"{n / 1e9:.2f}" for n in counts), *weights])
    header = ["model", "vision", "connector", "words", "layers", "all", *STORAGE_NAMES.values()]
    return table(header, rows)


def prompts_table(jobs: dict[str, Jobs]) -> str:
    """Write what a picture takes: grids, rows, key-value cache, activations, attention maps."""
    rows = []
    for name, job in jobs.items():
        n_tokens = job.n_visual + N_TEXT
        maps = job.probing("half", 1, attention=True).activations
        rows.append([
            short(name), job.n_grids, job.n_visual, f"{cache_bytes(job.shape, 'half') / 2**10:.0f}",
            f"{cache_bytes(job.shape, 'half', n_tokens + N_NEW) / 2**20:.0f}",
            f"{prefill_bytes(job.shape, 'half', n_tokens) / 2**20:.0f}", f"{maps / 2**20:.0f}",
        ])  # fmt: skip
    header = [
        "model", "grids", "rows", "cache of a token (KiB)", "cache (MiB)", "activations (MiB)", "with attention (MiB)"
    ]  # fmt: skip
    return table(header, rows)


def cards_table(jobs: dict[str, Jobs]) -> str:
    """Write the largest batch of each job on each card, a table a job: with 16-bit and with 4-bit weights."""
    kinds = {
        "Probing, without attention": lambda job, storage, n: job.probing(storage, n),
        "Answering": lambda job, storage, n: job.generation(storage, n),
        "Answering, a quarter of the tokens kept": lambda job, storage, n: job.generation(storage, n, 0.25),
    }
    return "\n".join(
        f"**{title}**\n\n{table(['model', *CARDS], [_fitting(name, job, run) for name, job in jobs.items()])}"
        for title, run in kinds.items()
    )


def _fitting(name: str, job: Jobs, run: Callable[[Jobs, str, int], Footprint]) -> list[str]:
    """Return a row: of each card the largest batch at 16 bit and at 4 bit."""
    cells = []
    for memory in CARDS.values():
        fits = [
            largest_batch(lambda n, storage=storage: run(job, storage, n), memory - RESERVE, LIMIT)
            for storage in ("half", "4bit")
        ]
        cells.append(" / ".join("–" if n == 0 else f"≥ {n}" if n == LIMIT else str(n) for n in fits))
    return [short(name), *cells]


def processors_table(jobs: dict[str, Jobs]) -> str:
    """Write what jobs take on a CPU, in float32 and one at a time, and which main memory that fits."""
    rows = []
    for name, job in jobs.items():
        needs = [job.probing("float32", 1).total, job.generation("float32", 1).total]
        enough = [next((f"{m} GiB" for m in MEMORIES if n + RESERVE <= m * GIB), "more") for n in needs]
        rows.append([short(name), gib(needs[0]), enough[0], gib(needs[1]), enough[1]])
    return table(["model", "probe (GiB)", "fits in", "generate (GiB)", "fits in"], rows)


def check_table() -> str:
    """Measure weights, cache and activations of narrow models on the CPU, beside what is computed."""
    rows = []
    for name in EVERY:
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(narrow_config(name)).eval()
        shape, adapter = ModelShape.from_model(model), adapter_for(model)
        visual = torch.randn(4, 400, shape.d_model)

        @torch.no_grad()
        def read(adapter=adapter, visual=visual):
            asked = Prompt.of([adapter.image_token_id], [adapter.image_token_id])
            given = visual.clone()
            return adapter.next_token_logits(
                [asked.filled([VisualRows.in_order(row.clone())]) for row in given]
            )

        with torch.no_grad():
            cache = model(inputs_embeds=visual, use_cache=True, logits_to_keep=1).past_key_values
        pairs = [
            (sum(weight_bytes(shape, "float32").values()), sum(p.nbytes for p in model.parameters())),
            (
                cache_bytes(shape, "float32", 400, 4),
                sum(x.keys.nbytes + x.values.nbytes for x in cache.layers),
            ),
            (prefill_bytes(shape, "float32", 400, 4), measured_peak(read)),
        ]
        cells = [f"{computed / 2**20:.2f} / {measured / 2**20:.2f}" for computed, measured in pairs]
        rows.append([short(name), *cells, f"{100 * (pairs[2][0] / pairs[2][1] - 1):+.1f} %"])
    return table(["narrow model of", "weights", "cache", "activations", "activations, difference"], rows)


def main() -> int:
    """Write the tables; files whose text stays the same are left alone, so that Sphinx skips them."""
    jobs = {name: Jobs(name) for name in EVERY}
    tables = {
        "parts": parts_table(jobs),
        "prompts": prompts_table(jobs),
        "cards": cards_table(jobs),
        "processors": processors_table(jobs),
        "check": check_table(),
    }
    write_parts(ROOT / "book" / "_build" / "memory", tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
