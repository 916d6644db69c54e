"""Draw the start page's figure: what each visual token of one scene says alone, and what its absence changes.

    python scripts/striking_figure.py [--index 0] [--model llava-scenes]

Writes `book/figures/striking.png`, whose metadata name model, scene, versions and date.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

from rcblib import load_model, probe
from rcblib.reading.figures import heat_map, use_style, word_map
from rcblib.records import Sample
from rcblib.runs.provenance import project_root, provenance
from worlds.datasets import SceneDataset

DESTINATION = Path("book/figures/striking.png")


def draw(model_name: str, sample: Sample) -> plt.Figure:
    """Probe every position of a sample and draw image, word map and global divergence side by side."""
    model, processor = load_model(model_name)
    table = probe(model, processor, sample.image, sample=sample)
    grid = (int(table["row"].max()) + 1, int(table["column"].max()) + 1)
    use_style()
    # The word map has to be read, so it gets the room.
    figure, places = plt.subplot_mosaic(
        [["seen", "said"], ["matters", "said"]],
        figsize=(9, 5.4),
        layout="constrained",
        width_ratios=(0.62, 1.4),
    )
    seen, said, matters = places["seen"], places["said"], places["matters"]
    seen.imshow(sample.image)
    seen.set_axis_off()
    seen.set_title(
        f"One image, {len(table)} visual tokens.\nTogether they say: {table['global_top1_word'].iloc[0]}"
    )
    word_map(said, sample.image, table["top1_word"].tolist(), table["top1_probability"].to_numpy(), grid)
    said.set_title("What each token says alone")
    heat_map(matters, sample.image, table["global_divergence"].to_numpy(), grid, label="global_divergence")
    matters.set_title("What the answer loses\nwithout each neighbourhood")
    return figure


def main() -> None:
    """Draw the figure of the chosen scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llava-scenes")
    parser.add_argument("--index", type=int, default=0, help="which test scene")
    options = parser.parse_args()
    sample = SceneDataset("test", options.index + 1)[options.index]
    figure = draw(options.model, sample)
    about = {"model": options.model, "scene": sample.file_name, "provenance": provenance()}
    figure.savefig(project_root() / DESTINATION, dpi=180, metadata={"Description": json.dumps(about)})
    print(f"{DESTINATION}: {sample.file_name}")


if __name__ == "__main__":
    main()
