"""Describe the released codebooks and pad embeddings in numbers, and write them with the files' sha256.

Run once where the files are at hand (or can be downloaded); the committed result is what the book reads.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from rcblib.codebook.codebook import Codebook
from rcblib.codebook.released import load_released_tensor, released_registry
from rcblib.codebook.statistics import codebook_statistics
from rcblib.records import CodebookError
from rcblib.runs.files import file_sha256, write_json
from rcblib.runs.provenance import project_root, provenance


def describe_codebook(codebook: Codebook) -> dict:
    """Return the statistics of a released codebook together with what identifies its file."""
    identity = {key: codebook.metadata[key] for key in ("model", "file", "sha256", "sha256_verified")}
    return {**identity, "family": codebook.family, **codebook_statistics(codebook)}


def describe_pad_embedding(path: Path) -> dict:
    """Return shape, norm and range of a pad embedding together with what identifies its file."""
    embedding = load_released_tensor(path)
    values = embedding.double()
    return {
        "sha256": file_sha256(path),
        "shape": list(embedding.shape),
        "dtype": str(embedding.dtype).removeprefix("torch."),
        "norm": float(f"{values.norm().item():.6g}"),
        "largest_element": float(f"{values.abs().max().item():.6g}"),
    }


def main() -> None:
    """Read the files named on the command line, or download what the registry lists, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="folder with released .pt files and pad_embeddings/")
    parser.add_argument("--out", type=Path, default=project_root() / "codebooks" / "released_statistics.json")
    arguments = parser.parse_args()

    codebooks = {}
    if arguments.folder is None:
        for name in released_registry():
            try:
                codebooks[name] = Codebook.from_released(name)
            except CodebookError as error:
                warnings.warn(f"left out: {error}", stacklevel=1)
    else:
        found = [Codebook.from_released(path) for path in sorted(arguments.folder.glob("*.pt"))]
        codebooks = {codebook.metadata["name"]: codebook for codebook in found if codebook.metadata["name"]}
    pads = sorted(arguments.folder.glob("pad_embeddings/*.pt")) if arguments.folder else []
    content = {
        "codebooks": {name: describe_codebook(codebook) for name, codebook in codebooks.items()},
        "not_at_hand": [name for name in released_registry() if name not in codebooks],
        "pad_embeddings": {path.name: describe_pad_embedding(path) for path in pads},
        "versions": {
            key: value for key, value in provenance().items() if key in ("python", "torch", "numpy")
        },
    }
    write_json(arguments.out, content)
    print(f"wrote {arguments.out.name}: {len(codebooks)} codebooks, {len(pads)} pad embeddings")


if __name__ == "__main__":
    main()
