"""Compare plain probing with the library's, as ratios of times measured in one run.

    python -m benchmarks.probing --positions 24

``as released``: for every position and every run the image is encoded anew and the LLM takes one input at a time.
``one by one``: the image is encoded once, the rest as before. ``batched``: `rcblib.probe`. All three read the same
five distributions a position; without --model they run on an untrained model of the embedded model's size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import torch

from rcblib.mllm import adapter_for, load_model
from rcblib.mllm.base import Adapter
from rcblib.probe.perturbation import global_inputs, region_inputs, single_token_inputs
from rcblib.probe.run import probe
from rcblib.records import ONE_WORD_QUESTION
from rcblib.tensors.geometry import evenly_spaced
from worlds.models import build_mllm, build_processor, build_tokenizer
from worlds.scenes.language import all_texts
from worlds.training.recipe import LLAVA_SCENES


def untrained() -> tuple:
    """Build the embedded model with random weights."""
    vision = LLAVA_SCENES.vision
    tokenizer = build_tokenizer(all_texts())
    model = build_mllm("llava", len(tokenizer), vision, LLAVA_SCENES.text).eval()
    return model, build_processor("llava", tokenizer, vision["image_size"], vision["patch_size"])


def plain(adapter: Adapter, image: PIL.Image.Image, positions: list[int], encode_anew: bool) -> None:
    """Read the five distributions of every position, one input at a time."""
    prompt = adapter.prompt(ONE_WORD_QUESTION)
    replacement = adapter.replacement_embedding()
    view = adapter.encode([image])[0].views[0]
    for position in positions:
        intact, ablated = region_inputs(view.tokens, view.grid, [position], replacement)
        inputs = [
            single_token_inputs(view.tokens, [position]),
            intact,
            ablated,
            view.tokens[None],
            global_inputs(view.tokens, view.grid, [position], replacement),
        ]
        for rows in inputs:
            if encode_anew:
                adapter.encode([image])
            adapter.first_token_logits(prompt, rows, batch_size=1)


def seconds(run: Callable[[], object]) -> float:
    """Time a call, waiting for a GPU."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Print milliseconds a position and ratios."""
    parser = argparse.ArgumentParser(description="Compare plain probing with the library's.")
    parser.add_argument("--model", help="a model's name, a folder, or a Hugging Face id (default: untrained)")
    parser.add_argument(
        "--positions", type=int, default=16, help="positions of the plain runs, a square number"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the fastest of each counts")
    options = parser.parse_args(arguments)

    model, processor = load_model(options.model) if options.model else untrained()
    adapter = adapter_for(model, processor)
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(noise)
    view = adapter.encode([image])[0].views[0]
    few = evenly_spaced(*view.grid, round(options.positions**0.5))
    runs = {
        "as released": (len(few), lambda: plain(adapter, image, few, encode_anew=True)),
        "one by one": (len(few), lambda: plain(adapter, image, few, encode_anew=False)),
        "batched": (
            view.n_tokens,
            lambda: probe(model, processor, image, attention=False, batch_size=options.batch_size),
        ),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(options.repeats):
        for name, (n_positions, run) in runs.items():
            best[name] = min(best[name], seconds(run) / n_positions)
    print(f"{view.n_tokens} visual tokens, {torch.get_num_threads()} threads, {model.device}, {model.dtype}")
    for name, duration in best.items():
        print(
            f"{name:12} {1000 * duration:8.2f} ms a position, {best['as released'] / duration:6.1f} times as fast"
        )


if __name__ == "__main__":
    main()
