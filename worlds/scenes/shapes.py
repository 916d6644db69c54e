"""Draw the shapes of the embedded world."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from rcblib.records import ParameterError
from worlds.scenes.vocabulary import SHAPES


@lru_cache(maxsize=1024)
def shape_mask(name: str, side: int) -> np.ndarray:
    """Draw a shape as coverage in [0, 1], `(side, side)`, antialiased by 3 x 3 supersampling."""
    n = 3 * side
    axis = (np.arange(n) + 0.5) / n * 2 - 1
    x, y = np.meshgrid(axis, axis)
    radius = np.hypot(x, y)
    if name == "circle":
        inside = radius < 0.95
    elif name == "square":
        inside = np.maximum(abs(x), abs(y)) < 0.88
    elif name == "triangle":
        inside = (y < 0.85) & (y > -0.9) & (abs(x) < (y + 0.9) / 1.75 * 0.95)
    elif name == "star":
        turn = (np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5
        inner, tip = 0.40, 0.98
        edge_x, edge_y = inner * np.sin(np.pi / 5), inner * np.cos(np.pi / 5)
        px, py = abs(radius * np.sin(turn)), radius * np.cos(turn)
        inside = px * (tip - edge_y) < edge_x * (tip - py)
    elif name == "heart":
        hx, hy = x * 1.22, -y * 1.2 + 0.12
        inside = (hx**2 + hy**2 - 1) ** 3 - hx**2 * hy**3 < 0
    elif name == "cross":
        inside = (np.minimum(abs(x), abs(y)) < 0.30) & (np.maximum(abs(x), abs(y)) < 0.92)
    elif name == "ring":
        inside = (radius < 0.95) & (radius > 0.52)
    elif name == "diamond":
        inside = abs(x) / 0.72 + abs(y) / 0.97 < 1
    elif name == "arrow":
        inside = ((abs(y) < 0.26) & (x > -0.95) & (x < 0.1)) | ((x >= 0.05) & (abs(y) < (0.97 - x) * 0.92))
    elif name == "moon":
        inside = (radius < 0.95) & (np.hypot(x - 0.52, y) > 0.80)
    else:
        raise ParameterError("shape", name, ", ".join(SHAPES))
    return inside.reshape(side, 3, side, 3).mean((1, 3)).astype(np.float32)
