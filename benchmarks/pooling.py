"""Build codebooks of more and more images: all tokens in memory, image by image, and with the pool in files.

    python -m benchmarks.pooling --sizes 800 1600 2400 --output pooling.json

Folders of probed images are written as probing writes them, with random tokens. All forms must give the same codebook.
Memory is that of the process above imports. What allocators keep of what was freed differs by some 10 MB from process
to process that does the same, so the form whose growth has a target is measured in several, and the least counts.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from benchmarks.processes import Measured, measured
from benchmarks.results import Target, write_measured
from rcblib.codebook.build import build_codebook, build_codebook_by_image
from rcblib.codebook.codebook import Codebook
from rcblib.codebook.criterion import CodebookCriterion
from rcblib.codebook.pooling import ProbedImage
from rcblib.probe.results import DESCRIPTION_FILE, table_file, tokens_file
from rcblib.probe.store import read_probe, read_probe_by_image
from rcblib.runs.command import OneLineParser, run_command
from rcblib.runs.files import write_json, write_table
from rcblib.runs.options import results_file

N_TOKENS, N_PROBED = 96, 48
"""Visual tokens of an image, and how many of them are probed."""

MOST_ADDED = 20
"""Megabytes that all images after the fewest may add: some hundred bytes a pooled token."""

CRITERION = CodebookCriterion(n_prototype_clusters=16, min_images=16)
COLUMNS = ("top1_probability", "region_divergence", "global_divergence")


def write_probed(folder: Path, first: int, end: int, width: int) -> None:
    """Write some images as if they had been probed: tokens around centres that images share, low-information ones."""
    centres = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    write_json(
        folder / DESCRIPTION_FILE, {"code": "random", "family": "llava", "model": "random", "config": {}}
    )
    for image in range(first, end):
        generator = torch.Generator().manual_seed(image)
        tokens = torch.randn(N_TOKENS, width, generator=generator)
        tokens += centres[torch.randint(64, (N_TOKENS,), generator=generator)]
        save_file({"tokens": tokens.half()}, tokens_file(folder, image))
        own = torch.randperm(N_TOKENS, generator=generator)[:N_PROBED].sort().values.numpy()
        scales = np.array([[0.3], [2e-3], [1e-4]])
        signals = scales * torch.rand(3, N_PROBED, generator=generator).double().numpy()
        table = pd.DataFrame({"image_id": image, "view": 0, "token": own, "position": own})
        made = {"code": "random", "sample": {"image_id": image}, "seconds": 0.0, "provenance": {"date": ""}}
        write_table(table_file(folder, image), table.assign(**dict(zip(COLUMNS, signals, strict=True))), made)


def together(folder: Path) -> Codebook:
    """Build with everything in memory."""
    results = read_probe(folder)
    table = results.table
    signals = (table[name] for name in COLUMNS)
    where = {"positions": table["position"], "views": table["view"]}
    return build_codebook(results.row_tokens(), table["image_id"], *signals, CRITERION, noise(), **where)


def by_image(folder: Path, pool: str = "") -> Codebook:
    """Build image by image."""
    images = (ProbedImage.from_table(table, tokens) for table, tokens in read_probe_by_image(folder)[1])
    return build_codebook_by_image(images, CRITERION, noise(), pool=pool)


def with_files(folder: Path) -> Codebook:
    """Build image by image, with the pool in files."""
    with tempfile.TemporaryDirectory() as pool:
        return by_image(folder, pool)


def noise() -> torch.Generator:
    """Return the generator of the noise that breaks ties, the same for every form."""
    return torch.Generator().manual_seed(0)


FORMS: dict[str, Callable[[Path], Codebook]] = {
    "all in memory": together,
    "by image": by_image,
    "by image, pool in files": with_files,
}
"""Ways to build."""


TARGET_FORM = "by image, pool in files"
"""The form whose memory is not to grow with the number of images."""


def _named(name: str, folder: Path) -> tuple[str, Path]:
    return name, folder


def _built(given: tuple[str, Path]) -> tuple[str, int, int]:
    """Return the digest of a codebook, its prototypes and the tokens that were pooled."""
    codebook = FORMS[given[0]](given[1])
    data = codebook.prototypes.numpy().tobytes() + repr(codebook.metadata["selection"]).encode()
    n_pooled = codebook.metadata["selection"]["n_after_stage_1"]
    return hashlib.sha256(data).hexdigest(), len(codebook), n_pooled


def least(name: str, folder: Path, repeats: int) -> Measured:
    """Build in several processes; the least time and memory count, and all codebooks must be the same."""
    found = [measured(_named, _built, name, folder) for _ in range(repeats)]
    results = {own.result for own in found}
    if len(results) > 1:
        raise RuntimeError(f"{name}: {len(results)} codebooks of the same images")
    return Measured(
        found[0].result, *(min(values) for values in zip(*(own[1:] for own in found), strict=True))
    )


def compare(sizes: Sequence[int], width: int, repeats: int) -> pd.DataFrame:
    """Build from more and more images in all forms.

    Returns
    -------
    pandas.DataFrame
        One row a form and size: ``n_images``, ``width``, ``form``, ``seconds``, ``grown_bytes``, ``peak_bytes``,
        ``n_pooled``, ``n_prototypes`` and ``same``, whether the codebook is that of the first form, to the last bit.
    """
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, n_written = Path(temporary), 0
        for n in sizes:
            write_probed(folder, n_written, n, width)
            n_written, reference = n, None
            for name in FORMS:
                found = least(name, folder, repeats if name == TARGET_FORM else 1)
                digest, n_prototypes, n_pooled = found.result
                reference = digest if reference is None else reference
                rows.append({
                    "n_images": n, "width": width, "form": name, "seconds": found.seconds,
                    "grown_bytes": found.grown_bytes, "peak_bytes": found.peak_bytes, "n_pooled": n_pooled,
                    "n_prototypes": n_prototypes, "same": digest == reference,
                })  # fmt: skip
                print(
                    f"{n:6} images, {n_pooled:6} tokens pooled  {name:24} {found.seconds:7.2f} s "
                    f"{found.grown_bytes / 2**20:7.0f} MiB  {'same' if rows[-1]['same'] else 'another'} codebook",
                    flush=True,
                )
    return pd.DataFrame(rows)


def targets_of(table: pd.DataFrame) -> list[Target]:
    """Say how memory grows from the fewest images to the most, and whether codebooks are the same."""
    fewest, most = int(table["n_images"].min()), int(table["n_images"].max())
    in_files = table[table["form"] == TARGET_FORM].set_index("n_images")["peak_bytes"]
    added, n_same = (in_files[most] - in_files[fewest]) / 1e6, int(table["same"].sum())
    made = table[table["form"] == TARGET_FORM].set_index("n_images")
    n_more = int(made["n_prototypes"][most] - made["n_prototypes"][fewest])
    returned = n_more * int(made["width"][most]) * 4 / 1e6  # float32
    why = f"{returned:.3g} MB of it are {n_more:,} more prototypes, which are returned"
    return [
        Target(
            f"codebook of {most - fewest:,} more images: memory", added, MOST_ADDED, "at most", " MB", why
        ),
        Target(f"codebook of up to {most:,} images by files: same", 100 * n_same / len(table), 100, unit="%"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print seconds and memory of every form and size; write them where asked to."""
    parser = OneLineParser(
        prog="pooling", description="Compare ways to build a codebook as images become more."
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[800, 1600, 2400], help="images, ascending")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help=f"processes that measure '{TARGET_FORM}'")
    parser.add_argument("--output", type=results_file, help="JSON file of the results")
    options = parser.parse_args(arguments)
    return run_command("pooling", lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    table = compare(sorted(options.sizes), options.width, options.repeats)
    write_measured("pooling", table, options, targets_of(table))


if __name__ == "__main__":
    sys.exit(main())
