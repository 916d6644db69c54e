"""Compose photographs: cut-outs of real objects on stretches of real backgrounds, with exact masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from rcblib.records import ParameterError
from worlds.photographs.sources import Background, catalogue, cutout_split, sources_folder
from worlds.scenes.generator import SPLITS, PlacedObject

SIDE = 224
"""Pixels along a side of a composed photograph."""

N_OBJECTS = (0.35, 0.35, 0.3)
"""Probabilities of one, two and three objects."""

AREAS = {1: (0.08, 0.6), 2: (0.05, 0.35), 3: (0.05, 0.22)}
"""Least and greatest share of the image that an object is drawn at, by how many there are."""

RECURRING, SCENERY, LARGEST_OVERLAP, LARGEST_ENLARGEMENT = 0.6, 0.25, 0.1, 3.0
"""Share of images on a recurring background, with scenery; overlap allowed; times that a cut-out may grow."""


@dataclass(frozen=True)
class PastedObject(PlacedObject):
    """Describe one pasted object as a drawn one is, its mask as large as the picture, and say which cut-out it is."""

    cutout: int


@dataclass(frozen=True)
class Photograph:
    """Hold one composed photograph.

    Attributes
    ----------
    pixels : numpy.ndarray
        uint8 ``(SIDE, SIDE, 3)``.
    objects : tuple of PastedObject
        By decreasing visible area.
    background : Background
        What they stand on.
    scenery : numpy.ndarray
        Boolean ``(SIDE, SIDE)``: pixels of things that nobody asks about.
    split, seed, index
        How to compose it again.
    """

    pixels: np.ndarray
    objects: tuple[PastedObject, ...]
    background: Background
    scenery: np.ndarray
    split: str
    seed: int
    index: int


@lru_cache(maxsize=600)
def _picture(path: Path, mode: str) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert(mode)


@lru_cache
def _available(split: str) -> dict[str, tuple[int, ...]]:
    """Return the numbers of the cut-outs of each noun that a split may use; nouns without any are left out."""
    found = {
        noun: tuple(k for k in range(len(files)) if split in cutout_split(len(files), k))
        for noun, files in sorted(catalogue()["cutouts"].items())
    }
    return {noun: numbers for noun, numbers in found.items() if numbers}


def compose(seed: int, index: int, split: str, bare: bool = False, without: str | None = None) -> Photograph:
    """Compose one photograph; the same arguments give the same pixels.

    Parameters
    ----------
    seed : int
        Stream of photographs; splits are different streams with the same seed.
    index : int
        Which one of the stream.
    split : {"train", "validation", "test"}
        Decides which backgrounds and, of nouns with several, which cut-outs there are.
    bare : bool
        Whether no object stands there: what is left of the photograph with the same number.
    without : str, optional
        Category of an object that is not pasted, all others standing where they stand with it.

    Raises
    ------
    ParameterError
        On another split, or an object that is not there.
    ImageError
        Where the pictures were not fetched.
    """
    if split not in SPLITS:
        raise ParameterError("split", split, ", ".join(SPLITS))
    folder = sources_folder()
    rng = np.random.default_rng([2503, SPLITS.index(split), seed, index])
    background, canvas = _background(folder, split, rng)
    scenery = np.zeros((SIDE, SIDE), bool)
    if rng.random() < SCENERY:
        cutout = _picture(folder / "scenery" / f"{rng.integers(len(catalogue()['scenery']))}.png", "RGBA")
        canvas, scenery = _paste(canvas, cutout, rng.uniform(0.01, 0.04), None, rng) or (canvas, scenery)
    if bare:
        return Photograph(np.asarray(canvas), (), background, scenery, split, seed, index)

    available = _available(split)
    n = 1 + int(rng.choice(len(N_OBJECTS), p=N_OBJECTS))
    chosen = rng.choice(sorted(available), size=n, replace=False)
    if without is not None and without not in chosen:
        raise ParameterError("without", without, f"one of {', '.join(sorted(chosen))}")
    masks: list[tuple[str, int, np.ndarray]] = []
    taken, is_first = scenery, True
    for category in chosen:
        number = int(rng.choice(available[str(category)]))
        cutout = _picture(folder / "cutouts" / str(category) / f"{number}.png", "RGBA")
        low, high = AREAS[n]
        for _ in range(8):  # smaller each time that no free place is found
            share = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            pasted = _paste(canvas, cutout, share, None if is_first else taken, rng)
            if pasted:
                with_it, mask = pasted
                taken, is_first = taken | mask, False
                if category != without:
                    canvas, scenery = with_it, scenery & ~mask
                    masks = [(name, k, other & ~mask) for name, k, other in masks]
                    masks.append((str(category), number, mask))
                break
            high = max(low, high * 0.8)
    objects = [PastedObject(name, None, (0, 0), mask, number) for name, number, mask in masks]
    ordered = tuple(sorted(objects, key=lambda item: -item.area))
    return Photograph(np.asarray(canvas), ordered, background, scenery, split, seed, index)


def _background(folder: Path, split: str, rng: np.random.Generator) -> tuple[Background, Image.Image]:
    """Draw a background and the stretch of it that is seen."""
    pool = "recurring" if rng.random() < RECURRING else "unique"
    known = [item for item in catalogue()["backgrounds"] if (item.pool, item.split) == (pool, split)]
    background = known[rng.integers(len(known))]
    file = folder / "backgrounds" / f"{background.name}-{rng.integers(len(background.files))}.png"
    picture = _picture(file, "RGB")
    share = rng.uniform(0.6, 1.0) if pool == "recurring" else rng.uniform(0.35, 1.0)
    side = max(1, int(min(picture.size) * share))
    x, y = (int(rng.integers(full - side + 1)) for full in picture.size)
    seen = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    if rng.random() < 0.5:
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return background, ImageEnhance.Brightness(seen).enhance(rng.uniform(0.8, 1.2))


def _paste(
    canvas: Image.Image, cutout: Image.Image, share: float, taken: np.ndarray | None, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray] | None:
    """Paste a cut-out at a share of the area where it hides little of `taken`; `None` where there is no such place."""
    if rng.random() < 0.5:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cutout = cutout.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    opaque = max(1.0, np.count_nonzero(np.asarray(cutout)[..., 3] > 127))
    scale = min((share * SIDE * SIDE / opaque) ** 0.5, 0.98 * SIDE / max(cutout.size), LARGEST_ENLARGEMENT)
    size = [max(8, round(side * scale)) for side in cutout.size]
    cutout = cutout.resize(size, Image.Resampling.LANCZOS)
    alpha = cutout.getchannel("A").filter(ImageFilter.GaussianBlur(0.6))  # edges blend
    cutout = ImageEnhance.Brightness(cutout.convert("RGB")).enhance(rng.uniform(0.75, 1.25))
    cutout = ImageEnhance.Color(cutout).enhance(rng.uniform(0.8, 1.2))
    shape = np.asarray(alpha) > 127
    if not shape.any():
        return None
    for _ in range(12):
        x, y = (int(rng.integers(SIDE - side + 1)) for side in size)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y : y + size[1], x : x + size[0]] = shape
        if taken is None or _hidden(mask, taken) <= LARGEST_OVERLAP:
            pasted = canvas.copy()
            pasted.paste(cutout, (x, y), alpha)
            return pasted, mask
    return None


def _hidden(mask: np.ndarray, taken: np.ndarray) -> float:
    """Return the share of the smaller of two masks that both cover."""
    return np.count_nonzero(mask & taken) / max(1, min(np.count_nonzero(mask), np.count_nonzero(taken)))
