"""Draw scenes of the embedded world: a few objects on a varied background, with their masks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from rcblib.records import ParameterError
from rcblib.tensors.checks import check_integer
from worlds.scenes.shapes import shape_mask
from worlds.scenes.vocabulary import (
    BACKGROUNDS,
    CATEGORIES,
    COLOR_NAMES,
    COLORS,
    SHAPES,
    category_weights,
    co_occurrence,
)

SPLITS = ("train", "validation", "test")

# Handwritten digits are dealt to the splits at random, photographs are cut into vertical strips: no overlap.
DIGIT_SHARES = (0.70, 0.15, 0.15)

PHOTO_STRIPS = ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0))

COLOR_JITTER = 14


@dataclass(frozen=True)
class SceneConfig:
    """Choose the sizes and density of scenes.

    Attributes
    ----------
    sizes : tuple of (int, int)
        Heights and widths in pixels, each at least 96; scene *i* has size *i* modulo their number, so that a batch of
        one size is a matter of choosing indices.
    n_objects : tuple of float
        Probabilities of 1, 2, 3, ... objects.
    dominant_share : float
        Share of scenes laid out with one large and otherwise small objects; whether an object's area is at least
        1.5 times the next largest is then measured, and true of nearly all of them.
    object_scale : tuple of float or None
        Least and greatest factor, drawn for each scene, by which its objects are larger than in an image of 96 pixels;
        `None` lets them grow with the shorter side.
    """

    sizes: tuple[tuple[int, int], ...] = ((96, 96),)
    n_objects: tuple[float, ...] = (0.2, 0.3, 0.3, 0.2)
    dominant_share: float = 0.7
    object_scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.sizes or any(len(size) != 2 or min(size) < 96 for size in self.sizes):
            raise ParameterError("sizes", self.sizes, "pairs of height and width, each at least 96 pixels")
        if self.object_scale is not None:
            low, high = self.object_scale
            limit = min(min(size) for size in self.sizes) / 96
            if not 0.5 <= low <= high <= limit:
                raise ParameterError(
                    "object_scale", self.object_scale, f"(least, greatest) in [0.5, {limit:g}], or None"
                )
        if not self.n_objects or abs(sum(self.n_objects) - 1) > 1e-6 or min(self.n_objects) < 0:
            raise ParameterError("n_objects", self.n_objects, "probabilities that sum to 1")
        if not 0 <= self.dominant_share <= 1:
            raise ParameterError("dominant_share", self.dominant_share, "a share in [0, 1]")


# The kinds of images that embedded models are trained and asked on, by the name that a model's config carries.
WORLDS = {
    "scenes": SceneConfig(),
    "large-scenes": SceneConfig(
        sizes=((192, 192), (96, 192), (192, 96), (128, 192), (192, 144)), object_scale=(0.8, 1.0)
    ),
}


@dataclass(frozen=True)
class PlacedObject:
    """Describe one drawn object: `mask` is boolean, `(size, size)` of its box, `corner` the box's top left `(x, y)`."""

    category: str
    color: str | None
    corner: tuple[int, int]
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Count the covered pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def center(self) -> tuple[float, float]:
        """Return the middle `(x, y)` of the tight box in pixels, as COCO's box of the mask gives it."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        x, y = self.corner
        return x + (columns[0] + columns[-1] + 1) / 2, y + (rows[0] + rows[-1] + 1) / 2

    def full_mask(self, height: int, width: int) -> np.ndarray:
        """Return the mask in the whole image, boolean `(height, width)`."""
        full = np.zeros((height, width), bool)
        x, y = self.corner
        full[y : y + self.mask.shape[0], x : x + self.mask.shape[1]] = self.mask
        return full


@dataclass(frozen=True)
class Scene:
    """Hold one scene: `pixels` uint8 `(height, width, 3)`, its objects by decreasing area, and how it was drawn."""

    pixels: np.ndarray
    objects: tuple[PlacedObject, ...]
    background: str
    split: str
    seed: int
    index: int

    @property
    def height(self) -> int:
        """Return the height of the image in pixels."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Return the width of the image in pixels."""
        return self.pixels.shape[1]


@lru_cache(maxsize=1)
def _handwriting() -> dict[str, list[Image.Image]]:
    """Deal scikit-learn's 1,797 handwritten digits to the splits; `split/digit` -> list of 8 x 8 grey images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.clip(digits.images * (255 / 16), 0, 255).astype(np.uint8)
    pools: dict[str, list[Image.Image]] = {}
    for digit in range(10):
        members = np.flatnonzero(digits.target == digit)
        members = np.random.default_rng(digit).permutation(members)
        bounds = np.round(np.cumsum((0.0, *DIGIT_SHARES)) * len(members)).astype(int)
        for split, start, end in zip(SPLITS, bounds, bounds[1:], strict=False):
            pools[f"{split}/{digit}"] = [Image.fromarray(images[i]) for i in members[start:end]]
    return pools


@lru_cache(maxsize=1)
def _photographs() -> dict[str, list[np.ndarray]]:
    """Cut scikit-learn's two sample photographs into one vertical strip a split, `(3, height, width)` float32.

    They are muted so that objects stand out.
    """
    from sklearn.datasets import load_sample_images

    strips: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for photograph in load_sample_images().images:
        muted = photograph.astype(np.float32)
        muted = 0.55 * muted + 0.45 * muted.mean(2, keepdims=True)
        muted = 20 + 0.62 * muted
        width = photograph.shape[1]
        for split, (start, end) in zip(SPLITS, PHOTO_STRIPS, strict=True):
            strip = muted[:, round(start * width) : round(end * width)]
            strips[split].append(np.ascontiguousarray(strip.transpose(2, 0, 1)))
    return strips


@lru_cache(maxsize=1)
def _stroke_levels() -> np.ndarray:
    """Map the 256 grey levels of a resized digit to coverage in [0, 1], float32 `(256,)`."""
    return np.clip(np.arange(256, dtype=np.float32) / 255 * 1.6 - 0.2, 0, 1)


def draw_coverage(name: str, side: int, split: str, rng: np.random.Generator) -> np.ndarray:
    """Draw an object of a category as coverage in [0, 1], float32 `(side, side)`; digits in the split's handwriting."""
    if name in SHAPES:
        return shape_mask(name, side)
    pool = _handwriting()[f"{split}/{name}"]
    drawn = pool[rng.integers(len(pool))].resize((side, side), Image.Resampling.BICUBIC)
    levels = np.frombuffer(drawn.tobytes(), np.uint8).reshape(side, side)
    return _stroke_levels().take(levels)


def draw_background(kind: str, height: int, width: int, split: str, rng: np.random.Generator) -> np.ndarray:
    """Return float32 pixels `(3, height, width)`, darker than most objects.

    Channels come first because numpy is several times faster where the longest axis is the last.
    """
    base = rng.uniform(35, 125) + rng.uniform(-18, 18, 3)
    if kind == "plain":
        return base.astype(np.float32).repeat(height * width).reshape(3, height, width)
    if kind == "gradient":
        other = rng.uniform(35, 125) + rng.uniform(-18, 18, 3)
        angle = rng.uniform(0, 2 * np.pi)
        across, down = np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height)
        ramp = np.clip(np.cos(angle) * across[None] + np.sin(angle) * down[:, None] + 0.5, 0, 1)
        canvas = np.empty((3, height, width), np.float32)
        for plane, start, step in zip(canvas, base, other - base, strict=True):
            plane[:] = start + step * ramp
        return canvas
    if kind == "noise":
        coarse = rng.standard_normal((height // 8 + 1, width // 8 + 1, 3)).astype(np.float32)
        fine = rng.standard_normal((height, width)).astype(np.float32)
        canvas = (base.astype(np.float32) + 10 * coarse).transpose(2, 0, 1)
        canvas = canvas.take(np.arange(width) // 8, 2).repeat(8, 1)[:, :height]
        canvas += 8 * fine
        return canvas
    strips = _photographs()[split]
    strip = strips[rng.integers(len(strips))]
    _, strip_height, strip_width = strip.shape
    # The crop has the image's proportions: its side is that of the image's longer one.
    longer = max(height, width)
    crop = int(rng.integers(min(longer, strip_width) * 3 // 4, min(strip_height, strip_width) + 1))
    y = rng.integers(strip_height - crop + 1)
    x = rng.integers(strip_width - crop + 1)
    rows, columns = (np.arange(side) * crop // longer for side in (height, width))
    return strip.take(y + rows, 1).take(x + columns, 2)


@lru_cache(maxsize=16384)
def _odds(chosen: tuple[int, ...]) -> tuple[np.ndarray, float, list[float]]:
    """Return the odds of the next category after those chosen, `(20,)`, their sum and their running sums."""
    odds = _odds(chosen[:-1])[0] * co_occurrence()[chosen[-1]] if chosen else category_weights()
    return odds, float(odds.sum()), odds.cumsum().tolist()


def _draw_categories(n: int, rng: np.random.Generator) -> list[int]:
    chosen: tuple[int, ...] = ()
    for _ in range(n):
        _, total, running = _odds(chosen)
        chosen += (min(bisect_left(running, rng.uniform(0, total)), len(CATEGORIES) - 1),)
    return list(chosen)


def draw_side(is_digit: bool, role: str, scale: float, rng: np.random.Generator) -> int:
    """Draw the side of an object's box in pixels: digits need room for their strokes."""
    low, high = {
        ("dominant", False): (36, 54),
        ("dominant", True): (46, 60),
        ("minor", False): (16, 26),
        ("minor", True): (28, 34),
        ("equal", False): (20, 36),
        ("equal", True): (28, 42),
    }[role, is_digit]
    return int(rng.integers(round(low * scale), round(high * scale) + 1))


def place_boxes(
    boxes: Sequence[tuple[int, int]], height: int, width: int, rng: np.random.Generator
) -> list[tuple[int, int]] | None:
    """Find where boxes of `(height, width)` go, apart by two pixels, or `None` after 60 attempts at one of them.

    Returns
    -------
    list of (int, int) or None
        The top left corner `(x, y)` of each box.
    """
    corners: list[tuple[int, int]] = []
    for i, (tall, wide) in enumerate(boxes):
        taken = [
            (u - wide - 2, v - tall - 2, u + other_wide + 2, v + other_tall + 2)
            for (u, v), (other_tall, other_wide) in zip(corners, boxes[:i], strict=True)
        ]
        for x, y in rng.integers(0, max(height, width) - min(tall, wide) + 1, (60, 2)).tolist():
            if x > width - wide or y > height - tall:
                continue
            for left, top, right, bottom in taken:
                if left < x < right and top < y < bottom:
                    break
            else:
                corners.append((x, y))
                break
        else:
            return None
    return corners


def draw_paint(color: str, rng: np.random.Generator) -> np.ndarray:
    """Vary a named colour a little: float32 `(3,)`, red, green and blue from 0 to 255."""
    return (COLORS[color] + rng.uniform(-COLOR_JITTER, COLOR_JITTER, 3)).clip(0, 255).astype(np.float32)


def paint_object(
    canvas: np.ndarray, coverage: np.ndarray, paint: np.ndarray, corner: tuple[int, int]
) -> None:
    """Paint coverage `(side, side)` in a colour `(3,)` onto a canvas `(3, height, width)`, changing it."""
    (x, y), side = corner, len(coverage)
    region = canvas[:, y : y + side, x : x + side]
    region += coverage * (paint[:, None, None] - region)


def to_pixels(canvas: np.ndarray) -> np.ndarray:
    """Turn a canvas, float32 `(3, height, width)`, which is clipped in place, into uint8 `(height, width, 3)`."""
    np.clip(canvas, 0, 255, out=canvas)
    pixels = np.empty((*canvas.shape[1:], 3), np.uint8)
    for channel in range(3):
        pixels[..., channel] = canvas[channel]
    return pixels


def check_stream(seed: int, index: int, split: str) -> None:
    """Raise a `ParameterError` for a negative seed or index, or an unknown split."""
    if split not in SPLITS:
        raise ParameterError("split", split, ", ".join(SPLITS))
    if seed < 0 or index < 0:
        raise ParameterError("seed, index", (seed, index), "integers of at least 0")


def generate_scene(
    seed: int,
    index: int,
    split: str = "train",
    config: SceneConfig | None = None,
    without: int | None = None,
) -> Scene:
    """Generate a scene; the same arguments give the same pixels.

    Parameters
    ----------
    seed, index : int
        Which stream and which scene of it; both at least 0.
    split : str
        ``"train"``, ``"validation"`` or ``"test"``: handwriting and photograph regions do not overlap between them.
    config : SceneConfig, optional
        Size and density.
    without : int, optional
        Number of an object, among those of the scene, that is not drawn: all else is as it is with it, pixel by pixel.

    Raises
    ------
    ParameterError
        For a negative seed or index, an unknown split, or an object that the scene does not have.
    """
    config = config or SceneConfig()
    check_stream(seed, index, split)
    rng = np.random.default_rng([seed, index, SPLITS.index(split)])
    height, width = config.sizes[index % len(config.sizes)]
    scale = min(height, width) / 96

    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    canvas = draw_background(kind, height, width, split, rng)
    if config.object_scale is not None:
        scale = rng.uniform(*config.object_scale)
    n = int(np.searchsorted(np.cumsum(config.n_objects), rng.uniform())) + 1
    n = min(n, len(config.n_objects))
    categories = _draw_categories(n, rng)
    has_dominant = rng.uniform() < config.dominant_share

    corners = None
    while corners is None:
        roles = ["dominant"] + ["minor"] * (n - 1) if has_dominant else ["equal"] * n
        sides = [
            draw_side(c >= len(SHAPES), role, scale, rng) for c, role in zip(categories, roles, strict=True)
        ]
        corners = place_boxes([(side, side) for side in sides], height, width, rng)

    drawn = []
    for category, side, corner in zip(categories, sides, corners, strict=True):
        name = CATEGORIES[category]
        coverage = draw_coverage(name, side, split, rng)
        color = COLOR_NAMES[rng.integers(len(COLOR_NAMES))]
        item = PlacedObject(name, color, corner, coverage > 0.5)
        drawn.append((item, coverage, draw_paint(color, rng)))
    ordered = sorted(range(n), key=lambda i: -drawn[i][0].area)
    if without is not None:
        del ordered[check_integer("without", without, 0, n - 1)]
    for i in sorted(ordered):
        item, coverage, paint = drawn[i]
        paint_object(canvas, coverage, paint, item.corner)
    objects = tuple(drawn[i][0] for i in ordered)
    return Scene(to_pixels(canvas), objects, kind, split, seed, index)
