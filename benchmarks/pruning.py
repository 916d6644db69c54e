"""Time pruned generation of every registered pruner, with the unpruned model and a plain one beside it in the same run.

    python -m benchmarks.pruning --model llava-scenes --output pruning.json

``select share``: scoring and selection over the unpruned prefill. ``prefill speed``: the time the plain model takes
to read as many rows as are left, over the time of the pruned prefill. Both are of one question at a time, medians over
the repeats; pruners take turns inside each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import pandas as pd
import torch

from benchmarks.probing import seconds
from benchmarks.results import write_measured
from rcblib.data.opening import open_dataset
from rcblib.evaluate.timing import latency_and_memory
from rcblib.mllm import adapter_for, load_model
from rcblib.pruners.asked import asked_pruners
from rcblib.pruners.context import QUESTION
from rcblib.pruners.registry import PRUNERS
from rcblib.records import ONE_WORD_QUESTION, Question
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import results_file

TARGETS = {"cpu": 0.05, "cuda": 0.01}
"""Most of an unpruned prefill that scoring and selection may take."""

LEAST_SPEED = 0.9
"""Least speed of a pruned prefill beside that of a plain model fed as many rows."""


def plain_seconds(model: Any, n_rows: int, repeats: int) -> float:
    """Return the median time in which the plain model reads a prompt of so many rows."""
    width = model.config.get_text_config().hidden_size
    rows = torch.randn(1, n_rows, width, generator=torch.Generator().manual_seed(0)).to(
        model.device, model.dtype
    )
    mask = torch.ones(1, n_rows, dtype=torch.long, device=model.device)

    @torch.no_grad()
    def read() -> Any:
        return model(inputs_embeds=rows, attention_mask=mask, use_cache=True, logits_to_keep=1)

    read()
    return median(seconds(read)[0] for _ in range(repeats))


def compare(
    model: Any,
    processor: Any,
    samples: Sequence[Any],
    codebook: str | None,
    ratios: Sequence[float],
    repeats: int,
) -> pd.DataFrame:
    """Time all registered pruners that the model can be pruned by.

    Returns
    -------
    pandas.DataFrame
        One row a method and share: ``method``, ``retain_ratio``; ``n_prompt`` rows read; milliseconds ``encode_ms``,
        ``select_ms``, ``prefill_ms``; ``first_token_ms``, the three together; ``tokens_per_second`` of the answer;
        ``kv_cache_mib``; ``select_share`` of the unpruned prefill, ``prefill_speed`` beside the plain model,
        ``speed_up`` of the time to the first token over the unpruned one.
    """
    known = adapter_for(model, processor).offers | {QUESTION}
    named = [
        name
        for name, method in PRUNERS.items()
        if name != "codebook" and "retain_ratio" in method.parameters and method.needs <= known
    ]
    pruners = asked_pruners(named, codebook, "max_cosine", ratios, [], 1)
    questions = [Question(s.image_id, "one_word", ONE_WORD_QUESTION, "none") for s in samples]
    times = latency_and_memory(model, processor, questions, samples, pruners, n_repeats=repeats)
    table = times.groupby(["method", "retain_ratio"], sort=False).median(numeric_only=True).reset_index()
    unpruned = table[table["method"] == PRUNERS["all"].label].iloc[0]
    first = table[["encode_seconds", "select_seconds", "prefill_seconds"]].sum(axis=1)
    plain = [plain_seconds(model, round(n), repeats) for n in table["n_prompt"]]
    return pd.DataFrame({
        "method": table["method"],
        "retain_ratio": table["retain_ratio"],
        "n_prompt": table["n_prompt"],
        **{f"{step}_ms": 1000 * table[f"{step}_seconds"] for step in ("encode", "select", "prefill")},
        "first_token_ms": 1000 * first,
        "tokens_per_second": table["tokens_per_second"],
        "kv_cache_mib": table["kv_cache_bytes"] / 2**20,
        "select_share": table["select_seconds"] / unpruned["prefill_seconds"],
        "prefill_speed": plain / table["prefill_seconds"],
        "speed_up": first[unpruned.name] / first,
    })  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the times of every method and share, and what falls short; write them where asked to."""
    parser = OneLineParser(
        prog="pruning", description="Time pruned generation beside the unpruned and a plain model."
    )
    parser.add_argument(
        "--model", default="llava-scenes", help="a model's name, a folder, or a Hugging Face id"
    )
    parser.add_argument("--images", default="scenes", help="a world's name or a folder")
    parser.add_argument("--codebook", help="a name or folder (default: the model's name, where there is one)")
    parser.add_argument("--n-images", type=int, default=3)
    parser.add_argument("--retain-ratio", type=float, nargs="+", default=[0.1, 0.2, 0.5])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=results_file, help="JSON file of the results")
    options = parser.parse_args(arguments)
    return run_command("pruning", lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    model, processor = load_model(options.model)
    samples = list(open_dataset(options.images, n=options.n_images))
    table = compare(model, processor, samples, options.codebook, options.retain_ratio, options.repeats)
    limit = TARGETS[model.device.type]
    print(table.round(3).to_string(index=False))
    slow = table[table["select_share"] > limit]
    slower = table[table["prefill_speed"] < LEAST_SPEED]
    for rows, what in (
        (slow, f"selection above {limit:.0%} of the unpruned prefill"),
        (slower, f"prefill below {LEAST_SPEED}"),
    ):
        cells = [f"{row.method} at {row.retain_ratio:g}" for row in rows.itertuples()]
        print(f"{what}: {', '.join(cells) or 'none'}")
    write_measured("pruning", table, options)


if __name__ == "__main__":
    sys.exit(main())
