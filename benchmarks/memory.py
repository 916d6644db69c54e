"""Measure the memory and time of one probing batch and one pruned answer on a GPU, beside what is computed.

    python -m benchmarks.memory --model llava-hf/llava-1.5-7b-hf --random --output memory.json

With --random the checkpoint's full size is filled with random weights and nothing is downloaded; the prompt is then a
row of word ids, and tokens are kept at random. On a CPU it runs too, in float32: take a small model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from benchmarks.checkpoints import empty_model, picture_rows
from benchmarks.footprint import (
    cache_bytes,
    encoding_bytes,
    measured_peak,
    prefill_bytes,
)
from benchmarks.results import write_measured
from benchmarks.weights import ModelShape, weight_bytes
from rcblib.mllm import adapter_for, load_model
from rcblib.mllm.prompt import Prompt
from rcblib.probe.perturbation import global_inputs
from rcblib.pruners import RandomPruner
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.options import results_file

MIB = 2**20


def full_size(name: str, device: str, dtype: torch.dtype) -> Any:
    """Build a model of full size with random weights, part by part on the device."""
    config = empty_model(name).config
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = type(empty_model(config))(config)
    finally:
        torch.set_default_dtype(before)
    return model.to(dtype).eval()  # a part may follow what its config says instead


def pictures(model: Any, height: int, width: int, n_grids: int) -> dict[str, torch.Tensor]:
    """Return pixels of noise as the processor would hand them on."""
    side = model.config.vision_config.image_size
    tiled = hasattr(model.config, "image_grid_pinpoints")
    shape = (1, n_grids, 3, side, side) if tiled else (1, 3, side, side)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    inputs = {"pixel_values": pixels.to(model.device, model.dtype)}
    return inputs | ({"image_sizes": torch.tensor([[height, width]])} if tiled else {})


def measured(run: Callable[[], Any], device: torch.device) -> tuple[int, float]:
    """Return the peak in bytes and the seconds of a call, after one that warms up."""
    run()
    peak = measured_peak(run, device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return peak, time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Print computed and measured sizes; write them with versions and hardware where asked to."""
    parser = OneLineParser(prog="memory", description="Measure memory beside what is computed.")
    parser.add_argument("--model", required=True, help="a model's name, a folder, or a Hugging Face id")
    parser.add_argument("--random", action="store_true", help="random weights of full size, no download")
    parser.add_argument("--quantization", choices=["4bit"], help="not with --random")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--text", type=int, default=64, help="rows of text")
    parser.add_argument("--new", type=int, default=16, help="tokens of the answer")
    parser.add_argument("--retain-ratio", type=float, default=0.25)
    parser.add_argument("--output", type=results_file, help="JSON file of the results")
    options = parser.parse_args(arguments)
    if options.random and options.quantization:
        parser.error("--quantization: 4-bit numbers are made from a checkpoint's weights, not with --random")
    return run_command("memory", lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    shape = ModelShape.from_model(empty_model(options.model))
    n_grids, n_visual = picture_rows(empty_model(options.model), options.height, options.width)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.random:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = full_size(options.model, device, dtype)
    else:
        model, _ = load_model(options.model, device, quantization=options.quantization)
    storage = options.quantization or ("half" if model.dtype.itemsize == 2 else "float32")
    adapter = adapter_for(model)
    inputs = pictures(model, options.height, options.width, n_grids)
    image = adapter.encode_pixels(inputs)[0]
    place = max(range(len(image.views)), key=lambda i: image.views[i].n_tokens)
    view = image.views[place]
    asked = Prompt.of([adapter.image_token_id] + [5] * options.text, [adapter.image_token_id])

    @torch.no_grad()
    def probe() -> torch.Tensor:
        positions = list(range(options.batch_size))
        batch = global_inputs(view.tokens, view.grid, positions, adapter.replacement_embedding())
        replaced = [[tokens if i == place else None for i in range(len(image.views))] for tokens in batch]
        return adapter.next_token_logits([asked.filled([adapter.assemble(image, own)]) for own in replaced])

    ids = torch.tensor([[5] * (options.text // 2) + [adapter.image_token_id] * n_visual])
    ids = torch.cat([ids, torch.full((1, options.text - options.text // 2), 5)], 1).to(model.device)
    prompt = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answer = {"max_new_tokens": options.new, "min_new_tokens": options.new, "do_sample": False}
    pruner = RandomPruner(options.retain_ratio, 0)

    def generate() -> torch.Tensor:
        with pruner(model):
            return model.generate(**prompt, **answer)

    n_kept = round(n_visual * options.retain_ratio) + options.text
    encode = encoding_bytes(shape, storage, n_grids)
    computed = {
        "weights": sum(weight_bytes(shape, storage).values()),
        "encode": encode,
        "probe": prefill_bytes(shape, storage, n_visual + options.text, options.batch_size),
        "generate": max(
            encode, prefill_bytes(shape, storage, n_kept) + cache_bytes(shape, storage, n_kept + options.new)
        ),
    }
    runs = {"encode": lambda: adapter.encode_pixels(inputs), "probe": probe, "generate": generate}
    held = [*model.parameters(), *model.buffers()]
    results: dict[str, dict[str, float]] = {
        "weights": {
            "measured": torch.cuda.memory_allocated()
            if device == "cuda"
            else sum(tensor.nbytes for tensor in held)
        }
    }
    for name, run in runs.items():
        peak, seconds = measured(run, model.device)
        results[name] = {"measured": peak, "seconds": seconds}
    for name, result in results.items():
        result["computed"] = computed[name]
        took = f", {result['seconds']:.3f} s" if "seconds" in result else ""
        print(
            f"{name:9} computed {result['computed'] / MIB:10.2f} MiB, "
            f"measured {result['measured'] / MIB:10.2f} MiB{took}"
        )
    options = argparse.Namespace(**vars(options), storage=storage, n_grids=n_grids, n_visual=n_visual)
    write_measured(
        "memory", pd.DataFrame([{"what": name, **result} for name, result in results.items()]), options
    )


if __name__ == "__main__":
    sys.exit(main())
