"""Cut patches of visual tokens out of their images, and show rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from rcblib.reading.figures.finding import tell_whole
from rcblib.reading.figures.maps import pixels_of
from rcblib.reading.figures.style import INK
from rcblib.records import ParameterError

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.figure import Figure


def patches_gallery(
    patches: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    *,
    margin: int = 0,
    size: float = 0.72,
) -> Figure:
    """Show rows of image patches, such as the patches nearest to each prototype.

    Parameters
    ----------
    patches : sequence of sequence of numpy.ndarray
        Rows of ``(height, width, 3)`` arrays; rows may differ in length.
    row_labels : sequence of str, optional
        One a row, to its left.
    captions : sequence of sequence of str, optional
        One a patch, beneath it.
    margin : int
        Patches of surroundings on each side, as given to `crop_patch`; the patch itself is then framed.
    size : float
        Side of a patch in inches.
    """
    n_rows, n_columns = len(patches), max((len(row) for row in patches), default=0)
    if not n_columns:
        raise ParameterError("patches", "none", "at least one patch")
    for name, given in (("row_labels", row_labels), ("captions", captions)):
        if given is not None and len(given) != n_rows:
            raise ParameterError(name, f"{len(given)} rows", f"one a row of patches: {n_rows}")
    height = size + (0.16 if captions is not None else 0)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(size * n_columns + (1.1 if row_labels is not None else 0), height * n_rows),
        squeeze=False,
        gridspec_kw={"wspace": 0.06, "hspace": 0.06},
    )
    for row, line in zip(grid, range(n_rows), strict=True):
        for column, axes in enumerate(row):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column < len(patches[line]):
                drawn = axes.imshow(pixels_of(patches[line][column]))
                if margin:
                    _frame_patch(axes, drawn.get_extent(), margin)
                if captions is not None:
                    axes.set_xlabel(
                        captions[line][column], fontsize=6.5, labelpad=2, color=INK, parse_math=False
                    )
        if row_labels is not None:
            row[0].set_ylabel(
                row_labels[line],
                rotation=0,
                ha="right",
                va="center",
                fontsize=8,
                labelpad=8,
                parse_math=False,
            )
    told = [
        f"{label}: {len(row)} patches"
        for label, row in zip(row_labels or [""] * n_rows, patches, strict=True)
    ]
    tell_whole(figure, "; ".join(each.removeprefix(": ") for each in told))
    return figure


def _frame_patch(axes: Axes, extent: Sequence[float], margin: int) -> None:
    """Draw a frame around the middle patch of a crop, white on black so that it shows on any picture."""
    left, right, bottom, top = extent
    sides = ((right - left) / (1 + 2 * margin), (bottom - top) / (1 + 2 * margin))
    corner = (left + margin * sides[0], top + margin * sides[1])
    for color, width in (("black", 1.8), ("white", 0.9)):
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=color, linewidth=width))


def crop_patch(
    image: PIL.Image.Image | np.ndarray, position: int, grid: tuple[int, int], margin: int = 0
) -> np.ndarray:
    """Cut the patch of a visual token out of its image, with `margin` patches of surroundings on each side.

    Beyond the border the image's edge pixels are repeated, so that every crop has the same size.

    Returns
    -------
    numpy.ndarray
        ``(patch_height * (1 + 2 * margin), patch_width * (1 + 2 * margin), 3)``, values in [0, 1].
    """
    pixels = pixels_of(image)
    n_tokens = grid[0] * grid[1]
    if not 0 <= position < n_tokens:
        raise ParameterError("position", position, f"0 to {n_tokens - 1}")
    sides = (pixels.shape[0] // grid[0], pixels.shape[1] // grid[1])
    row, column = divmod(position, grid[1])
    pad = [(margin * sides[0],) * 2, (margin * sides[1],) * 2, (0, 0)]
    padded = np.pad(pixels, pad, mode="edge")
    top, left = row * sides[0], column * sides[1]
    span = 1 + 2 * margin
    return padded[top : top + span * sides[0], left : left + span * sides[1]]
