"""Find, count and share the files that hold the weights of an embedded model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rcblib.runs.files import read_json, write_json

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
"""Names by which `transformers` finds weights in a folder."""

SHARD = "what_differs.safetensors"
"""What a second arm does not have in common with its first one."""


def weight_files(folder: Path) -> list[Path]:
    """List the files that a model's weights are read from, in order; none where the folder holds no model.

    They are the only one, or those of an index. A second arm's names a file of the first arm's folder too.
    """
    index = folder / INDEX_FILE
    names = set(read_json(index)["weight_map"].values()) if index.is_file() else {WEIGHTS_FILE}
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


def weights_digest(folder: Path) -> str:
    """Return the sha256 of a model's weights, which says what scores belong to."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def count_parameters(files: Sequence[Path]) -> dict[str, int]:
    """Count the parameters of a LLaVA by part: ``vision encoder``, ``connector``, ``LLM``; tied ones once."""
    parts = {"vision encoder": "vision", "connector": "projector"}
    counts: dict[str, dict[str, int]] = {name: {} for name in (*parts, "LLM")}
    for path in files:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                part = next((part for part, word in parts.items() if word in name), "LLM")
                counts[part][name] = math.prod(file.get_slice(name).get_shape())
    return {part: sum(sizes.values()) for part, sizes in counts.items()}


def share_weights(folder: Path, other: Path) -> None:
    """Put an index in place of the weights in `folder`: those equal to `other`'s are read there, the rest from a shard.

    `transformers` reads both files whole, in the order of their paths, ``..`` first, so that the shard has the last
    word on what both hold.

    Parameters
    ----------
    folder : Path
        A model with a single file of weights.
    other : Path
        Such a file of a model in a folder beside it.
    """
    own, others = load_file(folder / WEIGHTS_FILE), load_file(other)
    there = f"../{other.parent.name}/{other.name}"
    differing = {
        name: weight
        for name, weight in own.items()
        if name not in others or not torch.equal(weight, others[name])
    }
    save_file(differing, folder / SHARD, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(weight.nbytes for weight in own.values())},
        "weight_map": {name: SHARD if name in differing else there for name in own},
    }
    write_json(folder / INDEX_FILE, index)
    (folder / WEIGHTS_FILE).unlink()
