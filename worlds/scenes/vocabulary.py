"""Words of the embedded world: categories, colours, how often they occur and with what."""

from __future__ import annotations

import numpy as np

from rcblib.data.questions import DIGITS

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond", "arrow", "moon")


CATEGORIES = SHAPES + DIGITS

COLORS = {
    "red": (215, 40, 45),
    "orange": (245, 140, 25),
    "yellow": (240, 225, 55),
    "green": (40, 165, 60),
    "cyan": (45, 200, 215),
    "blue": (45, 75, 220),
    "purple": (150, 55, 190),
    "white": (242, 242, 242),
}

COLOR_NAMES = tuple(COLORS)

BACKGROUNDS = ("plain", "gradient", "noise", "photo")

COUNT_WORDS = ("one", "two", "three", "four")

POSITION_WORDS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)


def category_weights() -> np.ndarray:
    """Return how often each category is drawn first, `(20,)`, summing to 1.

    Shapes fall off as a power law (circles are "popular", moons rare); digits share a little under half of the mass,
    low digits more often than high ones, as first digits in nature.
    """
    rank = np.arange(10)
    shapes = (rank + 1.0) ** -0.5
    digits = (rank + 2.0) ** -0.25
    return np.concatenate([0.55 * shapes / shapes.sum(), 0.45 * digits / digits.sum()])


def co_occurrence() -> np.ndarray:
    """Return the factor by which a category present raises another's odds, `(20, 20)`, symmetric, diagonal 0.15.

    Shape *i* and digit *i* attract each other (factor 5), and so do neighbours in the list of shapes (factor 2.5): an
    object that usually appears beside a present one is what POPE's adversarial questions ask about.
    """
    n = len(SHAPES)
    factor = np.ones((2 * n, 2 * n))
    for i in range(n):
        factor[i, n + i] = factor[n + i, i] = 5.0
        j = (i + 1) % n
        factor[i, j] = factor[j, i] = 2.5
    np.fill_diagonal(factor, 0.15)
    return factor
