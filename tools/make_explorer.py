"""Write the explorer of the book from what the stages of the command ``explorer`` found.

The pages ``book/intro.md`` and ``book/explorer.md`` include what it writes to
``book/_build/extra/explorer``; Sphinx copies that folder into the site.

    python -m tools.make_explorer
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from rcblib.data.opening import images_for, open_dataset
from rcblib.mllm import adapter_for, load_model
from rcblib.reading.explorer.build import Source, with_more
from rcblib.reading.explorer.command import read_explored, read_probed
from rcblib.reading.explorer.writing import write_explorer
from tools.notebook_list import Stage, read_notebook_list

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "book/_build/extra/explorer"


loaded = functools.cache(lambda name, dtype: load_model(name, "auto", dtype))
"""Load a model once for all stages that it has."""


def source_of(stage: Stage, probing: Stage, *more: Stage, titles: dict[str, str], root: Path) -> Source:
    """Return what a stage found, and those of more methods, with its model."""
    asked = stage.options
    model, processor = loaded(asked["model"], asked.get("dtype", "auto"))
    images = images_for(asked["images"], model)
    samples = open_dataset(images, asked.get("split"), asked["n_images"])
    table, facts = read_explored(root / stage.table)
    for other in more:
        table, facts = with_more(table, facts, *read_explored(root / other.table))
    return Source(
        table,
        facts,
        read_probed(root / probing.table),
        {sample.image_id: sample for sample in samples},
        adapter_for(model, processor),
        titles.get(asked["model"], ""),
        asked.get("codebook", ""),
        images,
    )


def main(root: Path = ROOT) -> int:
    """Write the explorer."""
    path = root / "workflow" / "notebooks.yml"
    listed = read_notebook_list(path)
    sources = [source_of(*stages, titles=listed.titles, root=root) for stages in listed.explored]
    manifest = write_explorer(root / FOLDER, sources)
    n_bytes = sum(file.stat().st_size for file in (root / FOLDER).rglob("*.js"))
    print(f"explorer: {len(manifest.images)} pictures, {len(manifest.models)} models, {n_bytes / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
