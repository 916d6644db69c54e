"""Compute the memory that a model needs from its config alone: weights, key-value cache, activations.

Nothing is allocated: shapes come from PyTorch's meta device. All sizes are bytes; 1 GiB = 2**30 bytes. What is counted
is tensors. Left out: the CUDA context, libraries' workspaces, and what the allocator holds back or cannot use
(`RESERVE` stands in for them), the processor's copy of a picture, and the few numbers of a row such as positions.
"""

from __future__ import annotations

import argparse
import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.weights import STORAGES, ModelShape, number_bytes, weight_bytes
from rcblib.mllm.encoder import HAS_CLS
from rcblib.records import ParameterError, UnsupportedModelError
from rcblib.runs.command import OneLineParser, run_command
from rcblib.tensors.checks import check_integer

GIB = 2**30

RESERVE = GIB
"""Memory of a card set aside for what is not counted; an allowance, not a measurement."""

CARDS = {
    "T4 16 GB": round(14.56 * GIB),
    "L4 24 GB": round(22.03 * GIB),
    "A100 40 GB": round(39.39 * GIB),
    "A100 80 GB": round(79.15 * GIB),
}
"""Memory of some cards as PyTorch reports it, which is less than the name says."""


def cache_bytes(shape: ModelShape, storage: str, n_tokens: int = 1, batch_size: int = 1) -> int:
    """Return the bytes of the key-value cache: ``2 * n_layers * n_key_value_heads * d_head`` numbers a token.

    Parameters
    ----------
    shape : ModelShape
    storage : str
        As in `weight_bytes`.
    n_tokens, batch_size : int
        Length of each sequence, visual tokens, text and answer; how many sequences.
    """
    check_integer("n_tokens", n_tokens, 0)
    check_integer("batch_size", batch_size, 1)
    per_token = 2 * shape.n_layers * shape.n_key_value_heads * shape.d_head * number_bytes(storage)
    return per_token * n_tokens * batch_size


def prefill_bytes(shape: ModelShape, storage: str, n_tokens: int, batch_size: int = 1) -> int:
    """Return the largest size of activations while prompts are read, cache not included.

    Parameters
    ----------
    shape : ModelShape
    storage : str
        As in `weight_bytes`.
    n_tokens, batch_size : int
        Rows of each prompt, visual tokens and text; how many prompts.

    Notes
    -----
    Layers run one after the other and keep nothing, so the peak is that of one layer, and what its callers hold. With
    ``r = batch_size * n_tokens`` rows of ``d = d_model`` numbers:

    - held by callers: three copies of the input (tokens of each view, an image's rows, the batch): ``3 d r``;
    - cosines and sines of the positions: ``2 d_head r``;
    - attention: the layer's input and its normalised form, queries, keys and values, rotated queries, and three
      temporaries of the keys' rotation: ``(2 d + 2 q + 5 k) r``, or three of the queries':
      ``(2 d + 4 q + 2 k) r``, with widths ``q`` of all queries and ``k`` of all keys; scores are not counted, as
      fused attention keeps none;
    - gated MLP: the layer's input, its sum with attention and the normalised form, gate, up and their product:
      ``(3 d + 3 d_mlp) r``.

    The larger of the last two counts, with 4-bit weights and one matrix restored to half. At the end logits of the
    last row alone, in the model's numbers and in float32, take the place of a layer.
    """
    check_integer("n_tokens", n_tokens, 1)
    check_integer("batch_size", batch_size, 1)
    n_bytes, n_rows = number_bytes(storage), batch_size * n_tokens
    d, q, k = shape.d_model, shape.n_heads * shape.d_head, shape.n_key_value_heads * shape.d_head
    layer = max(2 * d + 2 * q + 5 * k, 2 * d + 4 * q + 2 * k, 3 * d + 3 * shape.d_mlp)
    restored = max(shape.matrices) * n_bytes if storage == "4bit" else 0
    logits = batch_size * shape.n_vocab * (n_bytes + 4)
    held = (3 * d + 2 * shape.d_head) * n_rows * n_bytes
    return held + max(layer * n_rows * n_bytes + restored, logits)


def attention_map_bytes(shape: ModelShape, n_tokens: int) -> int:
    """Return the bytes of one layer's attention maps where they are read: scores and their softmax, every head.

    Parameters
    ----------
    shape : ModelShape
    n_tokens : int
        Rows of the one prompt.

    Notes
    -----
    Eight bytes for each pair of rows and each head: in half, scores, softmax in float32 and its rounded form; in
    float32, scores and softmax. It grows with the square of the prompt.
    """
    return 8 * shape.n_heads * check_integer("n_tokens", n_tokens, 1) ** 2


def encoding_bytes(shape: ModelShape, storage: str, n_grids: int = 1) -> int:
    """Return the largest size of activations while pictures are encoded.

    Parameters
    ----------
    shape : ModelShape
    storage : str
        As in `weight_bytes`.
    n_grids : int
        Pictures and tiles that go through the encoder together.

    Raises
    ------
    UnsupportedModelError
        If the vision encoder is none of a LLaVA's (`rcblib.mllm.encoder.HAS_CLS`).

    Notes
    -----
    For each of ``n_grids * n_vision_rows`` rows the state that is selected, the embedded patches, and the larger of a
    layer's MLP (sum with attention, normalised form, and three times ``d_vision_mlp``; an activation in one step takes
    two) and the connector (three times ``d_model``, the last for packing tiles). Each pixel counts twice in float32,
    as given and with tiles gathered, and once in the model's numbers. An upper bound, therefore.
    """
    if shape.n_vision_rows == 0:
        raise UnsupportedModelError(
            f"vision encoder: got one of another kind; supported: {', '.join(HAS_CLS)}"
        )
    n_rows = check_integer("n_grids", n_grids, 1) * shape.n_vision_rows
    widths = 4 * shape.d_vision + 3 * max(shape.d_vision_mlp, shape.d_model)
    n_bytes = number_bytes(storage)
    return n_rows * widths * n_bytes + n_grids * shape.n_pixels * (8 + n_bytes)


@dataclass(frozen=True)
class Footprint:
    """Hold the memory of one job, in bytes.

    Attributes
    ----------
    weights : int
        Weights of all parts.
    cache : int
        Key-value cache at its longest.
    activations : int
        Activations at their largest, while pictures are encoded or prompts are read.
    """

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """Add up all parts."""
        return self.weights + self.cache + self.activations


def probing(
    shape: ModelShape,
    storage: str,
    n_visual: int,
    *,
    n_grids: int = 1,
    n_text: int = 64,
    batch_size: int = 32,
    attention: bool = False,
) -> Footprint:
    """Return the memory of probing one picture: batches of leave-one-out inputs behind what they share.

    Parameters
    ----------
    shape : ModelShape
    storage : str
        As in `weight_bytes`.
    n_visual, n_text : int
        Rows of the picture and of the text around it.
    n_grids : int
        As in `encoding_bytes`.
    batch_size : int
        Inputs read together; each is the whole picture with one window replaced.
    attention : bool
        Whether text-to-image attention is read too, for one input.

    Notes
    -----
    Held are the keys and values of the intact picture, from which every input's beginning is read. The largest batch is
    that of windows at the picture's beginning, whose inputs share no more than the text before it; its mask has a byte
    for each pair of rows. Logits of all inputs are gathered in the CPU's memory and not counted.
    """
    n_tokens = n_visual + n_text
    activations = [
        encoding_bytes(shape, storage, n_grids),
        prefill_bytes(shape, storage, n_tokens, batch_size) + batch_size * n_tokens**2,
    ]
    if attention:
        maps = attention_map_bytes(shape, n_tokens)
        activations.append(prefill_bytes(shape, storage, n_tokens) + maps)
    cache = cache_bytes(shape, storage, n_tokens)
    return Footprint(sum(weight_bytes(shape, storage).values()), cache, max(activations))


def generation(
    shape: ModelShape,
    storage: str,
    n_visual: int,
    *,
    n_grids: int = 1,
    n_text: int = 64,
    n_new: int = 64,
    batch_size: int = 1,
    retain_ratio: float = 1.0,
) -> Footprint:
    """Return the memory of answering questions about one picture each, pruned or not.

    Parameters
    ----------
    shape : ModelShape
    storage : str
        As in `weight_bytes`.
    n_visual, n_text, n_new : int
        Rows of the picture before pruning, of the text around it, and of the answer.
    n_grids : int
        As in `encoding_bytes`, for one picture.
    batch_size : int
        Questions answered together.
    retain_ratio : float
        Fraction of visual tokens kept, in (0, 1]; the encoder's work stays the same.
    """
    if not 0 < retain_ratio <= 1:
        raise ParameterError("retain_ratio", retain_ratio, "a number above 0, at most 1")
    n_prompt = math.ceil(n_visual * retain_ratio) + n_text
    return Footprint(
        sum(weight_bytes(shape, storage).values()),
        cache_bytes(shape, storage, n_prompt + n_new, batch_size),
        max(
            encoding_bytes(shape, storage, n_grids * batch_size),
            prefill_bytes(shape, storage, n_prompt, batch_size),
        ),
    )


def largest_batch(job: Callable[[int], Footprint], n_bytes: int, limit: int = 256) -> int:
    """Return the largest batch with which a job fits; 0 where it does not fit at all.

    Parameters
    ----------
    job : Callable
        Batch size to `Footprint`; its total must not fall where the batch grows.
    n_bytes : int
        Memory that the job may take, reserve already taken off.
    limit : int
        Largest batch that is tried.
    """
    return bisect_right(range(1, limit + 1), n_bytes, key=lambda n: job(n).total)


def measured_peak(run: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Measure the largest size of what a call allocates beyond what is there when it begins.

    Parameters
    ----------
    run : Callable
        What is run, once; its result counts.
    device : str or torch.device
        A CUDA device, whose allocator keeps count, or the CPU, whose allocations are read from PyTorch's profiler.

    Returns
    -------
    int
        Bytes of tensors and of operators' own buffers, not of libraries that PyTorch calls.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        largest = max(largest, total)
    return largest


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what a model needs for probing and for generating; a wrong input ends in one line."""
    parser = OneLineParser(
        prog="footprint", description="Compute the memory that a model needs, without loading it."
    )
    parser.add_argument("--model", required=True, help="a model's name, a folder, or a Hugging Face id")
    parser.add_argument("--height", type=int, default=480, help="of a picture, in pixels (default: 480)")
    parser.add_argument("--width", type=int, default=640, help="of a picture, in pixels (default: 640)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument(
        "--retain-ratio", type=float, default=1.0, help="share of visual tokens kept (default: 1)"
    )
    options = parser.parse_args(arguments)
    return run_command("footprint", lambda: _print_needs(options))


def _print_needs(options: argparse.Namespace) -> None:
    from benchmarks.checkpoints import empty_model, picture_rows

    for name in ("height", "width", "batch_size"):
        check_integer(name, getattr(options, name), 1)
    model = empty_model(options.model)
    shape = ModelShape.from_model(model)
    n_grids, n_rows = picture_rows(model, options.height, options.width)
    common = {"n_grids": n_grids, "batch_size": options.batch_size}
    needs = {}
    for storage in STORAGES:
        needs[f"{storage}, probe"] = probing(shape, storage, n_rows, **common)
        needs[f"{storage}, generate"] = generation(
            shape, storage, n_rows, retain_ratio=options.retain_ratio, **common
        )
    print(f"{shape.n_parameters / 1e9:.3f} billion parameters; grids of a picture: {n_grids}, rows: {n_rows}")
    print(f"{'GiB':24}{'weights':>10}{'cache':>10}{'activations':>14}{'all':>10}")
    for job, need in needs.items():
        sizes = [size / GIB for size in (need.weights, need.cache, need.activations, need.total)]
        print(f"{job:24}" + "{:10.2f}{:10.2f}{:14.2f}{:10.2f}".format(*sizes))


if __name__ == "__main__":
    sys.exit(main())
