"""Compare probing with the released procedure on one model: ratios of times measured in one run, and agreement.

    python -m benchmarks.probing --model llava-photographs --positions 16 --output probing.json

``released``, as its scripts do for every input: the image encoded twice and eight tokens generated. ``plain``: one
forward pass an input, one input at a time, the image encoded once. ``probe``: the library's engine on all positions.
Inputs of a position: one token alone; its window without anything else, intact and with the token replaced (region);
the image with the window replaced (global). The floor is the time that the operations of the rows the engine has to
read would take at the speed of a large matrix product, measured in the same run. Without --model an untrained model of
the embedded model's size is compared.

With ``--dtype bfloat16 --sharing always`` the engine reads in half precision, and ``--released-dtype float32`` compares
it with the released procedure in float32: rounding then changes results, and how often by more than `TOLERANCE` is
counted, as for whole passes in the same format.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import torch
from torch.nn.functional import linear

from benchmarks.memory import full_size
from benchmarks.operations import probing_operations
from benchmarks.results import Target, write_measured
from benchmarks.weights import ModelShape
from rcblib.mllm import Adapter, adapter_for, load_model
from rcblib.mllm.language import VisualInput
from rcblib.mllm.prefix import SHARING
from rcblib.mllm.products import LastRows
from rcblib.probe.config import ProbeConfig
from rcblib.probe.context import ARTICLES, ProbedInput
from rcblib.probe.perturbation import global_inputs, region_inputs, single_token_inputs
from rcblib.records import ONE_WORD_QUESTION
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import results_file
from rcblib.tensors.divergence import divergence, top1_probability
from rcblib.tensors.geometry import evenly_spaced
from worlds.models import build_mllm, build_processor, build_tokenizer
from worlds.scenes.language import all_texts
from worlds.training.recipe import LLAVA_SCENES

LEVELS = {"single": "single-token input", "region": "region leave-one-out", "global": "global leave-one-out"}

TARGETS = {"cpu": (40, 40, 10), "cuda": (50, 50, 30)}
"""Least ratio of the released procedure's time to the engine's, for each of `LEVELS`."""

AGREEMENT = 1e-4
"""Most that divergences may differ from the released procedure's, over the largest of them, in float32."""

TOLERANCE, DIFFERING = 0.02, 0.05
"""In half precision: what differs by more from float32's is counted; of how many more values than in whole passes of
the same format, as shares, it may be."""

PRODUCTS = ("linear", "::mm", "::addmm", "gemm", "nvjet", "cutlass")
"""What names of operators, and of kernels on a GPU, contain where they multiply by weights."""

LEAST_SHARE = 50
"""Per cent of a matrix product's speed that the global level is to reach on a GPU."""

N_GENERATED = 8
"""Tokens that the release generates for every input."""


def untrained() -> tuple[Any, Any]:
    """Build the embedded model with random weights."""
    vision = LLAVA_SCENES.vision
    tokenizer = build_tokenizer(all_texts())
    model = build_mllm("llava", len(tokenizer), vision, LLAVA_SCENES.text).eval()
    return model, build_processor("llava", tokenizer, vision["image_size"], vision["patch_size"])


class Setting:
    """Hold one image, a prompt, and the inputs of some positions, for a model whose LLM counts on one axis."""

    def __init__(self, adapter: Adapter, image: PIL.Image.Image, n_side: int):
        self.adapter = adapter
        self.pixels = adapter.preprocess([image], "image")
        (encoded,) = adapter.encode_pixels(self.pixels)
        self.view = encoded.views[0]
        self.image = image
        self.positions = evenly_spaced(*self.view.grid, n_side)
        self.asked = adapter.read_prompt(adapter.prompt(ONE_WORD_QUESTION))

    def inputs(self, position: int) -> dict[str, list[torch.Tensor]]:
        """Return the inputs of a position at each level, region's as intact and ablated."""
        tokens, grid, row = self.view.tokens, self.view.grid, self.adapter.replacement_embedding()
        intact, ablated = region_inputs(tokens, grid, [position], row)
        return {
            "single": list(single_token_inputs(tokens, [position])),
            "region": [intact[0], ablated[0]],
            "global": list(global_inputs(tokens, grid, [position], row)),
        }

    def embeds(self, visual: VisualInput) -> torch.Tensor:
        """Return ``(1, n_rows, d_model)`` of a prompt."""
        return self.asked.filled(self.adapter._as_images(visual)).embeds(self.adapter.embed)[None]

    @torch.no_grad()
    def released(self, visual: torch.Tensor) -> torch.Tensor:
        """Encode the image twice, generate, and return the first token's logits ``(n_vocab,)``, past an article."""
        for _ in range(2):
            self.adapter.encode_pixels(self.pixels)
        embeds = self.embeds(visual)
        output = self.adapter.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            max_new_tokens=N_GENERATED,
            min_new_tokens=N_GENERATED,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        first = self.adapter.processor.tokenizer.decode(output.logits[0].argmax(-1))
        return output.logits[int(first.strip().lower() in ARTICLES)][0].float().cpu()

    def plain(self, visual: torch.Tensor) -> torch.Tensor:
        """Return the first token's logits ``(n_vocab,)`` by one forward pass."""
        with torch.no_grad():
            return (
                self.adapter.next_token_logits([self.asked.filled(self.adapter._as_images(visual))])[0]
                .float()
                .cpu()
            )

    def engine(self, level: str, **settings: Any) -> torch.Tensor:
        """Encode the image, read a level of all positions by the engine, and return its `values`."""
        config = ProbeConfig(**{"attention": False, **settings})
        probed = ProbedInput(self.adapter, [self.image], "image", None, config)
        parts = []
        for view in probed.parts():
            intact = view.answers(level).logits
            ablated = None if level == "single" else view.answers(level, ablated=True).logits
            parts.append((torch.tensor(view.positions), values(intact, ablated)))
        positions, found = (torch.cat(each) for each in zip(*parts, strict=True))
        return found[positions.argsort()]

    def one_by_one(self, level: str, read: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the `values` of `positions` at a level by a way that reads one input after the other."""
        logits = torch.stack(
            [read(visual) for position in self.positions for visual in self.inputs(position)[level]]
        )
        if level == "single":
            return values(logits)
        if level == "region":
            return values(logits[::2], logits[1::2])
        return values(read(self.view.tokens).expand_as(logits), logits)


def values(intact: torch.Tensor, ablated: torch.Tensor | None = None) -> torch.Tensor:
    """Return what a level says of positions, ``(n,)``: the top-1 probability, or the divergence of a leave-one-out."""
    return top1_probability(intact)[0] if ablated is None else divergence(intact, ablated)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Time a call, waiting for a GPU, and return what it returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_operations(adapter: Adapter) -> float:
    """Return operations a second of a large matrix product as the engine makes them, the best of eight."""
    device, dtype = adapter.model.device, adapter.model.dtype
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    with LastRows(adapter.language_model.layers):
        return 2 * size**3 / min(seconds(lambda: linear(a, a))[0] for _ in range(8))


def product_share(run: Callable[[], Any], device: torch.device) -> float:
    """Return the share of a call's time in operators that is in products with weights, by PyTorch's profiler."""
    on_gpu = device.type == "cuda"
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if on_gpu else kinds.CPU]) as profile:
        run()
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profile.key_averages()
    }
    products = sum(time for name, time in times.items() if any(part in name for part in PRODUCTS))
    return products / max(sum(times.values()), 1)


def operations(setting: Setting) -> dict[str, int]:
    """Count the operations of the rows that the inputs of all positions do not share, level by level."""
    height, width = setting.view.grid
    firsts = [r * width + c for r in range(height - 2) for c in range(width - 2)]
    (start, stop), n_ids = setting.asked.spans[0], len(setting.asked.ids)
    shape = ModelShape.from_model(setting.adapter.model)
    return probing_operations(shape, setting.view.n_tokens, (start, n_ids - stop), firsts)


def compare(
    setting: Setting, reference: Setting, repeats: int, exact: Setting | None = None, **settings: Any
) -> pd.DataFrame:
    """Measure a level after the other; see the columns.

    Parameters
    ----------
    setting, reference : Setting
        What the engine reads, and what the slow ways do: the same, or the same model in another number format.
    repeats : int
        Rounds; the fastest of each way counts.
    exact : Setting, optional
        The model in float32, where the engine's is in half precision.
    **settings
        Of `ProbeConfig`, for the engine.

    Returns
    -------
    pandas.DataFrame
        One row a level. Milliseconds a position by each way, ``ratio`` to the released procedure, ``plain_ratio`` to
        one pass an input, ``floor_ms``, ``floor_share`` (the floor over the time taken), ``best_ratio`` (at the floor),
        ``difference``, the largest of divergences (``single``: of probabilities) over the largest value, of
        ``n_compared`` positions; ``product_share``, see there. With `exact`, at 36 positions: ``differing``, the share
        of values further than `TOLERANCE` from float32's; ``whole_differing``, the same of whole passes.
    """
    rows, n_all = [], setting.view.n_tokens
    n_side = min(6, *setting.view.grid)
    some = {"positions": "grid", "n_side": n_side}
    peak, counted = peak_operations(setting.adapter), operations(setting)
    for level in LEVELS:
        best = dict.fromkeys(("released", "plain", "probe"), float("inf"))
        found: dict[str, torch.Tensor] = {}
        for _ in range(repeats):
            runs = {
                "released": lambda level=level: reference.one_by_one(level, reference.released),
                "plain": lambda level=level: reference.one_by_one(level, reference.plain),
                "probe": lambda level=level: setting.engine(level, **settings),
            }
            for name, run in runs.items():
                took, found[name] = seconds(run)
                n_read = n_all if name == "probe" else len(setting.positions) + (level == "global")
                best[name] = min(best[name], took / n_read)
        floor = counted[level] / peak / n_all
        expected = found["released"]
        row = {
            "level": LEVELS[level],
            **{f"{name}_ms": 1000 * value for name, value in best.items()},
            "ratio": best["released"] / best["probe"],
            "plain_ratio": best["plain"] / best["probe"],
            "floor_ms": 1000 * floor,
            "floor_share": floor / best["probe"],
            "best_ratio": best["released"] / floor,
            "difference": float(
                (expected - found["probe"][setting.positions]).abs().max() / expected.abs().max()
            ),
            "n_compared": len(setting.positions),
        }
        row["product_share"] = product_share(
            lambda level=level: setting.engine(level, **settings, **some), setting.adapter.model.device
        )
        if exact is not None:
            true = exact.engine(level, **some)
            whole = setting.engine(level, **{**settings, **some, "sharing": "never", "batch_size": 32})
            shared = found["probe"][evenly_spaced(*setting.view.grid, n_side)]
            for name, given in (("differing", shared), ("whole_differing", whole)):
                row[name] = float(((given - true).abs() > TOLERANCE).float().mean())
        rows.append(row)
    return pd.DataFrame(rows)


def random_model(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Build a model of full size with random weights, and a processor that feeds it; nothing is downloaded."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = full_size(name, device, dtype)
    tokenizer, vision = build_tokenizer(all_texts()), model.config.vision_config
    processor = build_processor("llava", tokenizer, vision.image_size, vision.patch_size)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids(processor.image_token)
    return model, processor


def opened(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the model that is compared, and its processor."""
    if options.model is None:
        return untrained()
    if options.random:
        return random_model(options.model, getattr(torch, options.dtype or "float32"))
    return load_model(options.model, **{"dtype": options.dtype} if options.dtype else {})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print milliseconds a position, ratios with their targets, floors and agreement; write them where asked to."""
    parser = OneLineParser(prog="probing", description="Compare probing with the released procedure.")
    parser.add_argument("--model", help="a model's name, a folder, or a Hugging Face id (default: untrained)")
    parser.add_argument(
        "--random", action="store_true", help="its architecture with random weights, no download"
    )
    formats = ["float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", choices=formats, help="numbers of the model")
    parser.add_argument(
        "--released-dtype", choices=formats, help="numbers of the slow ways (default: the same)"
    )
    parser.add_argument("--sharing", choices=SHARING, default="auto", help="see ProbeConfig")
    parser.add_argument("--compiled", action="store_true", help="compile the engine's passes")
    parser.add_argument("--positions", type=int, default=16, help="of the slow ways, a square number")
    parser.add_argument("--batch-size", type=int, help="inputs a pass (default: as many as memory holds)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the fastest of each counts")
    parser.add_argument("--seed", type=int, default=0, help="of the picture and of random weights")
    parser.add_argument("--output", type=results_file, help="JSON file of the results")
    options = parser.parse_args(arguments)
    return run_command("probing", lambda: _compare(options))


def _compare(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    model, processor = opened(options)
    noise = np.random.default_rng(options.seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)

    def setting_in(dtype: torch.dtype) -> Setting:
        own = model if dtype == model.dtype else copy.deepcopy(model).to(dtype)
        return Setting(adapter_for(own, processor), PIL.Image.fromarray(noise), round(options.positions**0.5))

    setting, half = setting_in(model.dtype), model.dtype.itemsize < 4
    reference = setting_in(getattr(torch, options.released_dtype)) if options.released_dtype else setting
    exact = setting_in(torch.float32) if half else None
    settings = {name: getattr(options, name) for name in ("sharing", "compiled", "batch_size")}
    if options.compiled:  # compiling is not part of what is timed
        for level in LEVELS:
            setting.engine(level, **settings)
    table = compare(setting, reference, options.repeats, exact, **settings)
    table["target"] = TARGETS[model.device.type]
    print(
        f"{setting.view.n_tokens} visual tokens, {torch.get_num_threads()} threads, {model.device}, {model.dtype}"
    )
    name = options.model or "embedded model, random weights"
    formats = dict.fromkeys(str(s.adapter.model.dtype).removeprefix("torch.") for s in (setting, reference))
    name += f", {' against '.join(formats)}"
    targets = []
    for row in table.to_dict("records"):
        print(
            f"{row['level']:20} released {row['released_ms']:8.2f} ms, plain {row['plain_ms']:7.2f}, probe "
            f"{row['probe_ms']:7.2f} a position: {row['ratio']:5.1f} times, {row['plain_ratio']:4.1f} times one pass "
            f"an input; floor {row['floor_ms']:6.2f} ms ({row['floor_share']:.0%}); differs by "
            f"{row['difference']:.1e}"
        )
        why = (
            f"{row['best_ratio']:.0f}x at the speed of a matrix product, of which {row['floor_share']:.0%} is reached: "
            f"{1 - row['product_share']:.0%} of the time goes to norms, rotations and attention"
        )
        what = f"{row['level']}, {name}"
        targets.append(Target(what, row["ratio"], row["target"], "at least", "x", why))
        if half:
            off, whole = (100 * row[key] for key in ("differing", "whole_differing"))
            why = f"{off:.0f}% instead of {whole:.0f}%"
            more = f"{what}: more values off by {TOLERANCE} than in whole passes"
            targets.append(Target(more, off - whole, 100 * DIFFERING, "at most", "%", why))
        else:
            targets.append(Target(f"{what}: difference", row["difference"], AGREEMENT, "at most"))
        if model.device.type == "cuda" and row["level"] == LEVELS["global"]:
            reached = 100 * row["floor_share"]
            targets.append(Target(f"{what}: of a matrix product's speed", reached, LEAST_SHARE, unit="%"))
    write_measured("probing", table, options, targets)


if __name__ == "__main__":
    sys.exit(main())
