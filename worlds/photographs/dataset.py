"""Offer composed photographs as a dataset, and write the sample of them that comes with the project."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from PIL import Image

from rcblib.data.base import Dataset
from rcblib.data.coco import CocoDataset
from rcblib.records import ParameterError, Sample
from rcblib.runs.paths import user_path
from rcblib.runs.provenance import project_path
from rcblib.tensors.checks import check_integer
from worlds.coco import write_coco
from worlds.photographs.compose import SIDE, SPLITS, Photograph, compose
from worlds.photographs.sources import catalogue, is_fetched, nouns, sources_folder
from worlds.scenes.captions import captions
from worlds.scenes.coco import scene_object

SAMPLE_SIZES = {"validation": 300, "test": 640}
"""Photographs that come with the project: the first ones of stream 0."""

QUALITY = 86
"""Of JPEG, in which every composed photograph is kept."""


def file_name(photograph: Photograph) -> str:
    """Name the file of a photograph, unique over splits, seeds and indices."""
    return f"{photograph.split}_{photograph.seed}_{photograph.index:06d}.jpg"


def photograph_sample(photograph: Photograph) -> Sample:
    """Describe a composed photograph as a sample."""
    where = photograph.seed, photograph.index, photograph.split
    return Sample(
        image_id=photograph.index,
        load=partial(_picture, *where),
        width=SIDE,
        height=SIDE,
        captions=captions(photograph.objects, photograph.background.kind),
        objects=tuple(scene_object(item, SIDE, SIDE) for item in photograph.objects),
        source=f"photographs/{photograph.split}",
        file_name=file_name(photograph),
        backdrop=photograph.background.kind,
        background=photograph.background.kind,
        without=partial(_without, *where, tuple(item.category for item in photograph.objects)),
    )


def _picture(seed: int, index: int, split: str, without: str | None = None) -> Image.Image:
    """Compose the picture again, as JPEG gives it back, so that it does not matter whether it came from a file."""
    buffer = io.BytesIO()
    pixels = compose(seed, index, split, without=without).pixels
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return Image.open(buffer).convert("RGB")


def _without(seed: int, index: int, split: str, categories: Sequence[str], number: int | None) -> Image.Image:
    """Compose the picture without one of its objects, which are of different categories, or with all of them."""
    if number is None:
        return _picture(seed, index, split)
    return _picture(seed, index, split, categories[check_integer("without", number, 0, len(categories) - 1)])


class PhotographDataset(Dataset[Sample]):
    """Compose photographs, each when it is asked for; needs the pictures that they are made of.

    Parameters
    ----------
    split : {"train", "validation", "test"}
        No background is in two of them, and no cut-out of a noun that has several.
    n : int
        Photographs, at least 1.
    seed : int
        Stream of photographs.

    Raises
    ------
    ParameterError
        For an unknown split or a number out of range.
    ImageError
        Where the pictures were not fetched.
    """

    def __init__(self, split: str, n: int, *, seed: int = 0):
        if split not in SPLITS:
            raise ParameterError("split", split, ", ".join(SPLITS))
        self.split, self.n, self.seed = split, check_integer("n", n, 1), check_integer("seed", seed, 0)

    def __len__(self) -> int:
        return self.n

    def _sample(self, index: int) -> Sample:
        return photograph_sample(compose(self.seed, index, self.split))


class _Sample(CocoDataset):
    """Read the photographs that come with the project; with the pictures they are made of, compose them anew."""

    def _sample(self, index: int) -> Sample:
        sample = super()._sample(index)
        return replace(
            sample,
            background=sample.backdrop or "",
            without=partial(_without, 0, sample.image_id, self.split, [o.category for o in sample.objects])
            if is_fetched()
            else None,
        )


def open_photographs(split: str, n: int | None, *, seed: int, n_frames: int) -> Dataset[Sample]:
    """Open photographs for `rcblib.data.opening.open_dataset`: those that come along where they suffice, else composed.

    With seed 0, the first ones of validation and testing lie in ``data/photographs``; all others are composed.
    """
    if seed == 0 and split in SAMPLE_SIZES and (n is None or n <= SAMPLE_SIZES[split]):
        return _Sample(project_path("data/photographs"), split, n)
    return PhotographDataset(split, n, seed=seed)


def write_sample(folder: str | os.PathLike) -> None:
    """Write the photographs that come with the project, in COCO's format, as `data/README.md` describes them.

    Parameters
    ----------
    folder : path
        Made where it is missing; files of the same names are replaced.
    """
    folder = user_path(folder, "folder")
    made_of: list[tuple[str, str, str, str]] = []
    for split, n in SAMPLE_SIZES.items():
        photographs = [compose(0, i, split) for i in range(n)]
        write_coco(
            [photograph_sample(photograph) for photograph in photographs],
            folder,
            split,
            info={"description": "Composed photographs", "source": "photographs", "split": split},
            categories=dict.fromkeys(nouns(), "object"),
            records=[
                {
                    "backdrop": photograph.background.kind,
                    "background": photograph.background.name,
                    "pool": photograph.background.pool,
                    "cutouts": [item.cutout for item in photograph.objects],
                }
                for photograph in photographs
            ],
            quality=QUALITY,
        )
        made_of += [made for photograph in photographs for made in _made_of(photograph)]
    plain = folder / "plain"
    plain.mkdir(exist_ok=True)
    for entry in catalogue()["plain"]:
        with Image.open(sources_folder() / "plain" / f"{entry['name']}.png") as picture:
            picture.save(plain / f"{entry['name']}.jpg", quality=QUALITY)
        made_of.append((f"plain/{entry['name']}.jpg", entry["package"], entry["files"][0], entry["licence"]))
    columns = ["file", "package", "source", "licence"]
    pd.DataFrame(made_of, columns=columns).to_csv(folder / "licences.csv", index=False)


def _made_of(photograph: Photograph) -> list[tuple[str, str, str, str]]:
    """List what a photograph is made of: its file, and package, file and licence of each picture in it."""
    file = f"images/{photograph.split}/{file_name(photograph)}"
    stamps, content = "tuxpaint-stamps-default", catalogue()
    background = photograph.background
    rows = [(file, background.package, " ".join(background.files), background.licence)]
    sources = [content["cutouts"][item.category][item.cutout] for item in photograph.objects]
    if photograph.scenery.any():
        sources.append("one of " + " ".join(content["scenery"]))
    return rows + [(file, stamps, source, "GPL-2") for source in sources]
