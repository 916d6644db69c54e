"""Lay signals, words and kept tokens over pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from rcblib.reading.figures.finding import tell
from rcblib.reading.figures.style import SEQUENTIAL, TINT
from rcblib.reading.figures.words import words_of_map, words_of_words
from rcblib.reading.labels import label_of, method_label
from rcblib.records import ParameterError

if TYPE_CHECKING:
    import PIL.Image


def heat_map(
    axes: Axes,
    image: PIL.Image.Image | np.ndarray,
    values: Sequence[float],
    grid: tuple[int, int],
    *,
    label: str = "",
    limits: tuple[float, float] | None = None,
    colorbar: bool | Axes = True,
) -> Axes:
    """Lay a signal of every visual token over the image, which is shown in grey beneath.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image; an array is ``(height, width, 3)``.
    values : array_like
        ``(n_tokens,)`` in raster order; NaN leaves its patch uncovered (a position that was not probed).
    grid : tuple of int
        ``(height, width)`` in tokens.
    label : str
        The signal, or words with the unit, beside the colour bar; without a colour bar above the image.
    limits : tuple of float, optional
        Values at the ends of the colour scale; the data's where absent. Give them to compare images.
    colorbar : bool or matplotlib.axes.Axes
        Whether to draw the scale beside the map, or the axes to draw it in, for one scale of several maps.

    Raises
    ------
    ParameterError
        If there are not as many values as grid cells.
    """
    pixels = pixels_of(image)
    cells = _cells("values", values, grid).astype(float).reshape(grid)
    _show_grey(axes, pixels)
    low, high = limits if limits else (None, None)
    drawn = axes.imshow(
        np.ma.masked_invalid(cells),
        cmap=SEQUENTIAL,
        vmin=low,
        vmax=high,
        alpha=0.72,
        extent=_extent(pixels),
        zorder=2,
    )
    if colorbar:
        shared = isinstance(colorbar, Axes)
        _scale(axes, drawn, label, **({"cax": colorbar} if shared else {"ax": axes})).solids.set(alpha=1)
    elif label:
        axes.set_title(label_of(label, unit=True))
    tell(axes, words_of_map(cells, label))
    return axes


def word_map(
    axes: Axes,
    image: PIL.Image.Image | np.ndarray,
    words: Sequence[str],
    probabilities: Sequence[float],
    grid: tuple[int, int],
    *,
    label: str = "probability of the word",
) -> Axes:
    """Write on each patch the word that its token says alone; the deeper the tint, the surer the word.

    Letters are as large as the patch allows, so the size of the axes decides whether the map can be read: allow
    about half an inch a token. A long word goes on in a second line where that makes it larger. Words of positions
    whose probability is NaN are left out.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image, shown faintly beneath.
    words : sequence of str
        ``n_tokens`` words in raster order.
    probabilities : array_like
        ``(n_tokens,)`` probability of each word, in [0, 1].
    grid : tuple of int
        ``(height, width)`` in tokens.
    label : str
        Below the colour bar, where it is another number in [0, 1] that tells how sure a word is.
    """
    pixels = pixels_of(image)
    words = _cells("words", np.array(words, dtype=object), grid)
    probabilities = _cells("probabilities", probabilities, grid).astype(float)
    _show_grey(axes, pixels, fade=0.3)
    drawn = axes.imshow(
        np.ma.masked_invalid(probabilities.reshape(grid)),
        cmap=TINT,
        vmin=0,
        vmax=1,
        # An unsure word leaves the image visible, a sure one covers it.
        alpha=(0.35 + 0.6 * np.nan_to_num(probabilities)).reshape(grid),
        extent=_extent(pixels),
        zorder=2,
    )
    opaque = ScalarMappable(drawn.norm, drawn.cmap)  # unlike what was drawn
    _scale(axes, opaque, label, ax=axes, location="bottom", shrink=0.5, aspect=40)
    _draw_grid_lines(axes, pixels, grid)
    _write_words(axes, pixels, words, probabilities, grid)
    tell(axes, words_of_words(words, probabilities))
    return axes


def kept_map(
    axes: Axes,
    image: PIL.Image.Image | np.ndarray,
    kept: Sequence[int],
    grid: tuple[int, int],
    title: str = "",
) -> Axes:
    """Show which patches a pruner kept: dropped ones fade to grey.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image.
    kept : sequence of int
        Positions kept, in raster order.
    grid : tuple of int
        ``(height, width)`` in tokens.
    title : str
        What did the pruning; the count is added.
    """
    pixels = pixels_of(image)
    n_tokens = grid[0] * grid[1]
    kept = np.asarray(kept, dtype=int)
    if kept.size and not (0 <= kept.min() and kept.max() < n_tokens):
        raise ParameterError(
            "kept", [int(kept.min()), int(kept.max())], f"positions from 0 to {n_tokens - 1}"
        )
    _show_grey(axes, pixels, fade=0.3)
    mask = np.zeros(n_tokens, dtype=bool)
    mask[kept] = True
    opacity = _to_pixels(mask.reshape(grid), pixels.shape[:2])
    axes.imshow(np.dstack([pixels, opacity]), extent=_extent(pixels), zorder=2)
    count = f"{mask.sum()} of {n_tokens} tokens"
    axes.set_title(f"{method_label(title)}: {count}" if title else count)
    tell(axes, f"keeps {count}")
    return axes


def grid_map(
    axes: Axes,
    values: Sequence[float],
    grid: tuple[int, int],
    *,
    label: str = "",
) -> Axes:
    """Draw one value a grid cell, without an image: a quantity by position over many images.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    values : array_like
        ``(n_tokens,)`` in raster order.
    grid : tuple of int
        ``(height, width)`` in tokens.
    label : str
        What the values are, with unit, beside the colour bar.
    """
    cells = _cells("values", values, grid).astype(float).reshape(grid)
    drawn = axes.imshow(cells, cmap=SEQUENTIAL)
    tell(axes, words_of_map(cells, label))
    _scale(axes, drawn, label, ax=axes)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def outlined_objects(
    axes: Axes, image: PIL.Image.Image | np.ndarray, masks: Sequence[np.ndarray], text: str = ""
) -> Axes:
    """Draw an image with the outlines of its objects.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    image : PIL.Image.Image or numpy.ndarray
        RGB image.
    masks : sequence of numpy.ndarray
        ``(height, width)`` a mask an object, non-zero where it is.
    text : str
        What is written beneath the image, such as a caption; wrapped to about 30 letters a line.
    """
    pixels = pixels_of(image)
    axes.imshow(pixels, extent=_extent(pixels))
    # Pixel centres, with a border of nothing so that an outline closes at the edge of the image.
    x, y = np.arange(-0.5, pixels.shape[1] + 1), np.arange(-0.5, pixels.shape[0] + 1)
    for mask in masks:
        axes.contour(x, y, np.pad(np.asarray(mask, float), 1), levels=[0.5], colors="white", linewidths=1.1)
    axes.set(xlim=(0, pixels.shape[1]), ylim=(pixels.shape[0], 0), xticks=[], yticks=[])
    axes.set_xlabel(textwrap.fill(text, 30), fontsize=7, labelpad=3, parse_math=False)
    axes.spines[:].set_visible(False)
    tell(axes, f"{len(masks)} outlined object{'s' * (len(masks) != 1)}" + (f", “{text}”" if text else ""))
    return axes


def _scale(axes: Axes, drawn: ScalarMappable, label: str, **place: Any) -> Colorbar:
    """Draw a colour scale beside axes (`ax`) or in axes of its own (`cax`)."""
    beside = {} if "cax" in place else {"fraction": 0.046, "pad": 0.03}
    bar = axes.figure.colorbar(drawn, label=label_of(label, unit=True), **place, **beside)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
    return bar


def pixels_of(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    """Return an image as ``(height, width, 3)`` floats in [0, 1]."""
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ParameterError("image", f"shape {pixels.shape}", "an RGB image, (height, width, 3)")
    return pixels / 255 if pixels.dtype == np.uint8 else pixels.astype(float)


def _cells(name: str, values: Sequence[Any], grid: tuple[int, int]) -> np.ndarray:
    """Return values, one a grid cell, or raise."""
    values = np.asarray(values)
    n_tokens = grid[0] * grid[1]
    if values.shape != (n_tokens,):
        raise ParameterError(
            name, f"shape {values.shape}", f"one a token of the {grid[0]}×{grid[1]} grid: ({n_tokens},)"
        )
    return values


def _extent(pixels: np.ndarray) -> tuple[float, float, float, float]:
    return (0, pixels.shape[1], pixels.shape[0], 0)


def _to_pixels(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch grid cells ``(rows, columns)`` to pixels ``(height, width)``."""
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    return cells[np.ix_(rows, columns)].astype(float)


def _show_grey(axes: Axes, pixels: np.ndarray, fade: float = 1.0) -> None:
    """Show an image by its luminance, mixed with white: `fade` 1 is full contrast, 0 is white."""
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    axes.imshow(1 - fade * (1 - grey), cmap="gray", vmin=0, vmax=1, extent=_extent(pixels), zorder=1)
    axes.set(xticks=[], yticks=[], xlim=(0, pixels.shape[1]), ylim=(pixels.shape[0], 0))
    axes.spines[:].set_visible(False)


def _draw_grid_lines(axes: Axes, pixels: np.ndarray, grid: tuple[int, int]) -> None:
    for edges, draw in ((grid[0], axes.axhline), (grid[1], axes.axvline)):
        size = pixels.shape[0] if draw == axes.axhline else pixels.shape[1]
        for line in range(1, edges):
            draw(line * size / edges, color="white", linewidth=0.6, zorder=3)


def _write_words(
    axes: Axes, pixels: np.ndarray, words: np.ndarray, share: np.ndarray, grid: tuple[int, int]
) -> None:
    """Write each word into its cell, as large as fits; `share`, 0 to 1, darkens it, NaN leaves it out."""
    axes.figure.draw_without_rendering()  # settles the layout, hence the size of a cell
    box = axes.get_window_extent()
    points = 72 / axes.figure.dpi
    cell_height, cell_width = box.height * points / grid[0], box.width * points / grid[1]
    largest = 0.32 * cell_height  # so that short words do not shout
    inks = LinearSegmentedColormap.from_list("ink", ["#6f6f6f", "#000000"])
    for position in np.flatnonzero(~np.isnan(share)):
        word = str(words[position]).strip()
        if not word:
            continue
        broken = in_two_lines(word)
        size, larger = (min(largest, 0.84 * cell_width / _width_of(text)) for text in (word, broken))
        if larger > 1.2 * size:
            word, size = broken, larger
        row, column = divmod(int(position), grid[1])
        axes.text(
            (column + 0.5) * pixels.shape[1] / grid[1],
            (row + 0.5) * pixels.shape[0] / grid[0],
            word,
            fontsize=size,
            ha="center",
            va="center_baseline",
            linespacing=0.95,
            color=inks(min(1.0, 2 * share[position])),
            parse_math=False,
            clip_on=True,
            zorder=4,
        )


def _width_of(text: str) -> float:
    """Return the width of the widest line of a text, in units of the size of its letters."""
    lines = (
        TextPath((0, 0), line.replace("$", r"\$"), size=1, prop=FontProperties()) for line in text.split("\n")
    )
    return max(1e-6, *(line.get_extents().width for line in lines))


def in_two_lines(word: str) -> str:
    """Break a word of seven letters or more near its middle, best between two consonants, else behind a vowel."""
    if len(word) < 7:
        return word
    middle = len(word) / 2

    def badness(place: int) -> tuple[int, float]:
        is_vowel = [letter.lower() in "aeiouy" for letter in word[place - 1 : place + 1]]
        joined = not is_vowel[0] and word[place].lower() in "rlh"  # as in "ground" and "phone"
        return 2 * is_vowel[1] + joined or is_vowel[0] / 2, abs(place - middle)

    place = min(range(3, len(word) - 2), key=badness)
    return f"{word[:place]}-\n{word[place:]}"
