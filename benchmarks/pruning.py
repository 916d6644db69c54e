"""Time pruned generation of every registered pruner, with the unpruned model and a plain one beside it in the same run.

    python -m benchmarks.pruning --model llava-scenes --codebook llava-scenes --output pruning.json

``select share``: choosing tokens and cutting the prompt to them, over the unpruned prefill. ``prefill speed``: the
time in which the plain model reads as many rows as are left, handed to it as embeddings, over that of the pruned
prefill. All are the fastest of rounds in which methods, budgets, batch sizes and the plain model take turns, each after
the encoder has run. Peak memory is that of tensors up to the second token, weights aside. Without a file of
prototypes, as for a model with random weights, the codebook is of as many random ones as the release has for LLaVA-1.5.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch

from benchmarks.footprint import measured_peak
from benchmarks.probing import random_model, seconds
from benchmarks.results import Target, write_measured
from benchmarks.untrained import small_qwen
from rcblib.codebook.codebook import Codebook
from rcblib.data.opening import open_dataset
from rcblib.evaluate.session import Session
from rcblib.evaluate.timing import measure, pictures_of
from rcblib.mllm import Adapter, load_model
from rcblib.pruners.base import Pruner
from rcblib.pruners.registry import PRUNERS, Method
from rcblib.records import ONE_WORD_QUESTION, CodebookError, ParameterError, Question, UnsupportedModelError
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import results_file

MOST_SELECTION = {"cpu": 0.05, "cuda": 0.01}
"""Most of an unpruned prefill that choosing tokens and cutting the prompt may take."""

LEAST_SPEED = 0.9
"""Least speed of a pruned prefill beside that of a plain model fed as many rows."""

N_PROTOTYPES = 454
"""Prototypes of the release for LLaVA-1.5-7B."""

UNTRAINED = {"qwen2_5_vl": small_qwen}
"""Families whose small model has random weights, by the name that stands for it."""


class Run:
    """Hold what is timed: a model, the first questions of a session, and who prunes.

    Attributes
    ----------
    rows : list of (str, float or None, Pruner)
        Label, share and pruner of every method that the model can be pruned by, the unpruned model first.
    left_out : dict
        Label of every other registered method, and why.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        samples: Sequence[Any],
        codebook: Any,
        ratios: Sequence[float],
        n_new: int,
        only: Sequence[str] = (),
    ):
        questions = [Question(s.image_id, "one_word", ONE_WORD_QUESTION, "none") for s in samples]
        self.session = Session(model, processor, questions, samples, 1, n_new, None)
        adapter = self.session.adapter
        self.codebook = random_prototypes(adapter) if codebook is None else codebook
        self.rows: list[tuple[str, float | None, Pruner]] = []
        self.left_out: dict[str, str] = {}
        for name, method in PRUNERS.items():
            if not only or name in {"all", *only}:
                try:
                    made = list(self._made(method, ratios))
                    self.session.prepare([pruner for _, _, pruner in made])
                except (CodebookError, ParameterError, UnsupportedModelError) as error:
                    self.left_out[method.label] = str(error)
                else:
                    self.rows += made

    def _made(self, method: Method, ratios: Sequence[float]) -> Iterator[tuple[str, float | None, Pruner]]:
        """Make a method at every share, or as it is where it has no use for one."""
        given = {"codebook": self.codebook} if "codebook" in method.parameters else {}
        for ratio in ratios if method.waits_for_ratio(given) else [None]:
            pruner = method.make(given | {"retain_ratio": ratio}, family=self.session.adapter.family)
            yield method.label, ratio, pruner

    @torch.no_grad()
    def plain_seconds(self, n_rows: int, n_prompts: int) -> float:
        """Return the time in which the plain model reads prompts of so many rows, once it has encoded the images."""
        session, model = self.session, self.session.model
        for group in pictures_of(session, range(n_prompts)):
            session.adapter.encode_pixels(session.adapter.preprocess(*group))
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(n_prompts, n_rows, session.adapter.d_model, generator=generator)
        rows = rows.to(session.device, model.dtype)
        mask = torch.ones(n_prompts, n_rows, dtype=torch.long, device=session.device)
        return seconds(
            lambda: model(inputs_embeds=rows, attention_mask=mask, use_cache=True, logits_to_keep=1)
        )[0]

    def peak_bytes(self, pruner: Pruner, n_prompts: int) -> int:
        """Return the largest size of tensors, weights aside, while prompts are pruned and two tokens written."""
        brief = copy.copy(self.session)
        brief.max_new_tokens = 2
        return measured_peak(lambda: measure(brief, range(n_prompts), pruner), self.session.device)


def random_prototypes(adapter: Adapter) -> Codebook:
    """Return random prototypes, as many as the release has for LLaVA-1.5, for times alone."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N_PROTOTYPES, adapter.d_model, generator=generator)
    return Codebook(rows.to(adapter.model.dtype), family=adapter.family)


@torch.no_grad()
def product_seconds(codebook: Codebook, n_tokens: int, model: Any) -> float:
    """Return the least time of the product of some tokens and all prototypes, which every way of choosing takes."""
    tokens = torch.randn(n_tokens, codebook.d_model, device=model.device)
    directions = codebook.unit_prototypes.like(tokens)
    return min(seconds(lambda: tokens @ directions.T)[0] for _ in range(50))


def compare(run: Run, batch_sizes: Sequence[int], repeats: int) -> pd.DataFrame:
    """Time all methods of a run.

    Returns
    -------
    pandas.DataFrame
        One row a method, share and batch size: ``method``, ``retain_ratio``, ``batch_size``; ``n_prompt`` rows read;
        milliseconds ``process_ms``, ``encode_ms``, ``select_ms``, ``prefill_ms``, ``decode_ms`` (of the answer after
        its first token); ``first_token_ms`` and ``end_to_end_ms``, the sums; ``tokens_per_second`` of all answers;
        ``kv_cache_mib``, ``peak_mib``; ``plain_ms`` of the plain model; ``select_share``, ``prefill_speed``;
        ``speed_up``, ``first_token_speed_up`` and ``end_to_end_speed_up`` beside the unpruned model.
    """
    asked = [(row, size) for size in batch_sizes for row in run.rows]
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in range(len(asked))}
    plain: dict[tuple[int, int], list[float]] = {}
    for _ in range(1 + repeats):  # the first to warm up
        for number, ((_, _, pruner), size) in enumerate(asked):
            found[number].append(measure(run.session, range(size), pruner))
        for n_prompts, n_rows in {
            (size, round(found[n][-1]["n_prompt"])) for n, (_, size) in enumerate(asked)
        }:
            plain.setdefault((n_prompts, n_rows), []).append(run.plain_seconds(n_rows, n_prompts))
    rows = []
    for number, ((label, ratio, pruner), size) in enumerate(asked):
        last, timed = found[number][-1], found[number][1:]
        steps = ("process", "encode", "select", "prefill")
        ms = {f"{step}_ms": 1000 * min(own[f"{step}_seconds"] for own in timed) for step in steps}
        speed = max(own["tokens_per_second"] for own in timed)
        decode_ms = 1000 * size * (run.session.max_new_tokens - 1) / speed
        plain_ms = 1000 * min(plain[size, round(last["n_prompt"])][1:])
        rows.append({
            "method": label, "retain_ratio": ratio, "batch_size": size, "n_prompt": last["n_prompt"], **ms,
            "decode_ms": decode_ms, "first_token_ms": sum(ms.values()),
            "end_to_end_ms": sum(ms.values()) + decode_ms, "tokens_per_second": speed,
            "kv_cache_mib": last["kv_cache_bytes"] / 2**20, "peak_mib": run.peak_bytes(pruner, size) / 2**20,
            "plain_ms": plain_ms, "prefill_speed": plain_ms / ms["prefill_ms"],
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table["inside"] = [pruner.acts_inside for (_, _, pruner), _ in asked]
    whole = table[table["method"] == PRUNERS["all"].label].set_index("batch_size").loc[table["batch_size"]]
    table["select_share"] = table["select_ms"] / whole["prefill_ms"].to_numpy()
    for name, step in (("", "prefill"), ("first_token_", "first_token"), ("end_to_end_", "end_to_end")):
        table[f"{name}speed_up"] = whole[f"{step}_ms"].to_numpy() / table[f"{step}_ms"]
    return table


def targets_of(run: Run, table: pd.DataFrame, model: str) -> list[Target]:
    """Say how the codebook did, one question at a time, at the worst of its budgets."""
    label, llm = PRUNERS["codebook"].label, run.session.model
    own = table[(table["method"] == label) & (table["batch_size"] == 1)]
    share, speed = own["select_share"].max(), own["prefill_speed"].min()
    n_prompt, first = table["n_prompt"].max(), own.iloc[0]
    n_visual = round((n_prompt - first["n_prompt"]) / (1 - first["retain_ratio"]))
    codebook = next(pruner.codebook for method, _, pruner in run.rows if method == label)
    product = product_seconds(codebook, n_visual, llm)
    least = table.loc[table["batch_size"] == 1, "select_ms"].min()
    why = (
        f"{own['select_ms'].max():.2f} ms, {least:.2f} of them whatever is chosen and {1000 * product:.2f} the product "
        f"with {len(codebook):,} prototypes, which alone is {100000 * product * share / own['select_ms'].max():.1f}%"
    )
    device = llm.device.type
    return [
        Target(f"selection over prefill, {model}", 100 * share, 100 * MOST_SELECTION[device], "at most", "%", why),
        Target(f"pruned prefill over a plain one, {model}", speed, LEAST_SPEED, unit="x"),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the times of every method and share, and what falls short; write them where asked to."""
    parser = OneLineParser(
        prog="pruning", description="Time pruned generation beside the unpruned and a plain model."
    )
    parser.add_argument(
        "--model", default="llava-scenes",
        help=f"a model's name, a folder, or a Hugging Face id; {', '.join(UNTRAINED)}: small, with random weights",
    )  # fmt: skip
    parser.add_argument(
        "--random", action="store_true", help="its architecture with random weights, no download"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="numbers of the model")
    parser.add_argument("--images", default="scenes", help="a world's name or a folder")
    parser.add_argument("--codebook", help="a name or folder (default: random prototypes)")
    parser.add_argument("--pruner", nargs="+", default=[], help="some of the registered ones (default: all)")
    parser.add_argument("--retain-ratio", type=float, nargs="+", default=[0.1, 0.2, 0.5])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1])
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-targets", action="store_true", help="another run says how the codebook did")
    parser.add_argument("--output", type=results_file, help="JSON file of the results")
    options = parser.parse_args(arguments)
    return run_command("pruning", lambda: _report(options))


def opened(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the model that is pruned, and its processor."""
    if options.model in UNTRAINED:
        return UNTRAINED[options.model]()
    if options.random:
        return random_model(options.model, getattr(torch, options.dtype or "float32"))
    return load_model(options.model, **{"dtype": options.dtype} if options.dtype else {})


def _report(options: argparse.Namespace) -> None:
    model, processor = opened(options)
    samples = [
        replace(sample, load=partial(copy.copy, sample.image))  # not drawn anew for every call
        for sample in open_dataset(options.images, n=max(options.batch_size))
    ]
    run = Run(model, processor, samples, options.codebook, options.retain_ratio, options.new, options.pruner)
    table = compare(run, options.batch_size, options.repeats)
    print(table.drop(columns=["process_ms", "decode_ms", "inside"]).round(3).to_string(index=False))
    for label, why in run.left_out.items():
        print(f"left out: {label}: {why}")
    options.left_out, options.family = run.left_out, run.session.adapter.family
    targets = [] if options.no_targets else targets_of(run, table, options.model)
    write_measured("pruning", table, options, targets)


if __name__ == "__main__":
    sys.exit(main())
