"""Count how often half precision changes a decision that is made about a visual token.

The whole model runs in float16 or bfloat16 and everything after it as always; what is decided is compared, token by
token, with the same model in float32.

    python -m benchmarks.precision --model llava-scenes --n-images 8 --output data/recorded/precision/llava-scenes.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.data.base import AnySample
from rcblib.data.opening import images_for, open_images
from rcblib.mllm import adapter_for, load_model
from rcblib.mllm.fingerprint import model_fingerprint
from rcblib.probe.run import probe
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.digest import code_digest
from rcblib.runs.files import write_json
from rcblib.runs.options import numbers, results_file
from rcblib.runs.provenance import provenance
from rcblib.tensors.clustering import dpc_knn
from rcblib.tensors.scoring import RULES, calibrate_max_similarity, keep_indices, redundancy_scores

FORMATS = ("float16", "bfloat16")
RETAIN_RATIO = 0.25

Facts = dict[str, Any]


def measured(model: Any, processor: Any, sample: AnySample, positions: str | Sequence[int]) -> Facts:
    """Measure what decisions about the tokens of an image hang on.

    Returns
    -------
    dict
        ``tokens``, ``(n_tokens, d)`` in the number format of the model, and of each probed position ``word``, ``top1``,
        ``region`` and ``global``.
    """
    (image,) = adapter_for(model, processor).encode([sample.image])
    frame = probe(model, processor, sample, positions=positions, views=[0], attention=False)
    return {
        "tokens": image.views[0].tokens.detach().cpu(),
        "word": frame["top1_word"].to_numpy(),
        "top1": frame["top1_probability"].to_numpy(),
        "region": frame["region_divergence"].to_numpy(),
        "global": frame["global_divergence"].to_numpy(),
    }


def n_moved(labels: np.ndarray, others: np.ndarray) -> int:
    """Count the points that are in another cluster, clusters of both partitions being paired as well as can be."""
    shared = np.zeros((labels.max() + 1, others.max() + 1))
    np.add.at(shared, (labels, others), 1)
    return int(len(labels) - shared[linear_sum_assignment(-shared)].sum())


def changed(
    exact: Sequence[Facts], rounded: Sequence[Facts], prototypes: torch.Tensor, criterion: CodebookCriterion
) -> list[dict[str, Any]]:
    """Count decisions that differ between measurements of the same images.

    Returns
    -------
    list of dict
        ``decision``, what is decided; ``n``, how many decisions; ``changed``, how many differ.
    """

    def scores(facts: Facts, rule: str) -> torch.Tensor:
        return redundancy_scores(facts["tokens"], prototypes, rule)

    cut_off = calibrate_max_similarity([scores(own, "max_cosine").float() for own in exact], RETAIN_RATIO)
    budgets = {"kept below a cut-off": ("max_cosine", {"max_similarity": cut_off})}
    budgets |= {
        f"kept by share, {rule.replace('_', ' ')}": (rule, {"retain_ratio": RETAIN_RATIO}) for rule in RULES
    }
    pairs, rows = list(zip(exact, rounded, strict=True)), []

    def add(decision: str, differing: Sequence[int], of: Sequence[int]) -> None:
        rows.append({"decision": decision, "n": int(sum(of)), "changed": int(sum(differing))})

    n_tokens = [len(own["tokens"]) for own in exact]
    for decision, (rule, budget) in budgets.items():
        kept = [
            [set(keep_indices(scores(own, rule), rule=rule, **budget).tolist()) for own in pair]
            for pair in pairs
        ]
        add(decision, [len(first ^ second) for first, second in kept], n_tokens)
    clusters = [
        [dpc_knn(own["tokens"], min(criterion.n_clusters, len(own["tokens"]))).numpy() for own in pair]
        for pair in pairs
    ]
    add("cluster", [n_moved(*labels) for labels in clusters], n_tokens)
    n_probed = [len(own["word"]) for own in exact]
    add("first word", [(first["word"] != second["word"]).sum() for first, second in pairs], n_probed)
    low = [
        [criterion.low_information(own["top1"], own["region"], own["global"]) for own in pair]
        for pair in pairs
    ]
    add("says little", [(first != second).sum() for first, second in low], n_probed)
    return rows


def compared(
    name: str, n_images: int, positions: str | Sequence[int], device: str = "auto"
) -> dict[str, Any]:
    """Measure a model in every number format, and count what changes.

    Returns
    -------
    dict
        ``made``, where and when; ``code``, its digest; ``fingerprints`` of the model, by its number format, and
        ``codebook``, the hash of its prototypes; ``model``, ``n_images``, ``positions``, ``retain_ratio``; ``rows`` as
        from `changed`, by ``format``.
    """
    # By its name: when it is run as a command, its `__name__` is another.
    code, facts, fingerprints = code_digest("benchmarks.precision"), {}, {}
    for dtype in ("float32", *FORMATS):
        model, processor = load_model(name, device=device, dtype=dtype)
        fingerprints[dtype] = model_fingerprint(model)
        samples = open_images(images_for("auto", model), split="test", n=n_images)
        facts[dtype] = [measured(model, processor, sample, positions) for sample in samples]
    codebook = Codebook.from_pretrained(name)
    criterion = CodebookCriterion(**codebook.metadata["criterion"])
    rows = [
        {"format": dtype, **row}
        for dtype in FORMATS
        for row in changed(facts["float32"], facts[dtype], codebook.prototypes, criterion)
    ]
    about = {"model": name, "n_images": n_images, "positions": positions, "retain_ratio": RETAIN_RATIO}
    hashes = {
        "fingerprints": fingerprints,
        "codebook": codebook.prototypes_hash(),
    }
    return {"made": provenance(), "code": code, **hashes, **about, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and print what changed."""
    parser = OneLineParser(prog="precision", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--n-images", type=int, default=8)
    parser.add_argument("--positions", type=numbers, default="all", help="as `rcblib probe` takes them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=results_file, required=True)
    options = parser.parse_args(arguments)
    return run_command("precision", lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    found = compared(options.model, options.n_images, options.positions, options.device)
    write_json(options.output, found)
    for row in found["rows"]:
        print(f"{row['format']}  {row['decision']}: {row['changed']} of {row['n']}")


if __name__ == "__main__":
    sys.exit(main())
