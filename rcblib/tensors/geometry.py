"""Find positions on the grid of visual tokens: windows, ranks, evenly spaced cells.

A position is the 0-based index of a visual token in raster order (row by row); [CLS] is never counted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rcblib.records import ParameterError
from rcblib.tensors.checks import check_features, check_grid, check_integer

PAPER_N_TOKENS = 576
"""Number of visual tokens for which the paper lists its ranks."""

PAPER_RANK_GROUPS = ((0, 24), *((start, start + 8) for start in (36, 72, 144, 216, 288, 360, 432, 504, 568)))
"""Half-open groups of 0-based ranks that the authors probed among 576 tokens, 96 in all."""

POOLING_MODES = ("bilinear", "average", "max")


def window(index: int, height: int, width: int, size: int = 3) -> list[int]:
    """List the cells of the square window around a cell, shifted inwards at borders.

    The window always has ``size * size`` cells, so a target at a border is not at its centre. With an even
    size an inner target has one more row above it than below, and one more column to its left.

    Parameters
    ----------
    index : int
        Position of the target.
    height, width : int
        Grid size in tokens.
    size : int
        Cells along a side of the window.

    Returns
    -------
    list of int
        ``size * size`` positions, ascending, the target among them.

    Raises
    ------
    ParameterError
        If the grid is smaller than the window or the target lies outside it.

    Notes
    -----
    Source: section on context-centric analysis; the released ``*_context_*`` selection modes.
    """
    check_integer("size", size, 1)
    check_integer("height", height, size)
    check_integer("width", width, size)
    row, column = divmod(check_integer("index", index, 0, height * width - 1), width)
    top = min(max(row - size // 2, 0), height - size)
    left = min(max(column - size // 2, 0), width - size)
    return [r * width + c for r in range(top, top + size) for c in range(left, left + size)]


def cosine_to_cls(hidden: torch.Tensor) -> torch.Tensor:
    """Compute the cosine of every patch row with the [CLS] row.

    Parameters
    ----------
    hidden : torch.Tensor
        ``(1 + n_tokens, d)`` hidden state before the connector, [CLS] first.

    Returns
    -------
    torch.Tensor
        ``(n_tokens,)`` cosines in [-1, 1], float32; higher = more similar; 0 for a row of zeros.

    Raises
    ------
    ParameterError
        If the shape differs, no patch row is there, or a value is not finite.

    Notes
    -----
    Source: the released ``fix_sim_*`` selection modes.
    Differs: computed in float64 and rounded to float32, whatever the input's dtype, so that equal rows tie
    exactly and half precision adds no ties of its own.
    """
    check_features("hidden", hidden, "(1 + n_tokens, d)")
    if hidden.shape[0] < 2:
        raise ParameterError("hidden", tuple(hidden.shape), "[CLS] and at least one patch row")
    unit = F.normalize(hidden.double(), dim=-1)
    return (unit[1:] @ unit[0]).float()


def rank_by_cls(hidden: torch.Tensor) -> torch.Tensor:
    """Order positions by decreasing cosine to [CLS]; equal cosines are ordered by position.

    Parameters
    ----------
    hidden : torch.Tensor
        ``(1 + n_tokens, d)`` hidden state before the connector, [CLS] first.

    Returns
    -------
    torch.Tensor
        ``(n_tokens,)`` int64; entry ``r`` is the position at 0-based rank ``r``, entry 0 the most similar.

    Raises
    ------
    ParameterError
        As `cosine_to_cls`.

    Notes
    -----
    Source: the released ``fix_sim_*`` selection modes, whose ranks start at 1.
    Differs: among equal cosines the release returns all tokens (``fix_sim_patch``) or an unspecified one
    (window modes); here every rank is one position.
    """
    return torch.argsort(cosine_to_cls(hidden), descending=True, stable=True)


def paper_ranks(n_tokens: int) -> list[int]:
    """List the ranks of [CLS] similarity that the authors probed, at the same fractions of any token count.

    Parameters
    ----------
    n_tokens : int
        Visual tokens of the image.

    Returns
    -------
    list of int
        Distinct 0-based ranks, ascending. For 576 tokens the paper's 96: the first 24 and nine groups of 8.
        Elsewhere a group covers the same fraction of the ranks, and at least one rank.

    Raises
    ------
    ParameterError
        If `n_tokens` is no integer of at least 1.

    Notes
    -----
    Source: section on token-centric analysis. Differs: the paper lists ranks for 576 tokens only.
    """
    check_integer("n_tokens", n_tokens, 1)
    ranks = set()
    for start, stop in PAPER_RANK_GROUPS:
        first, end = start * n_tokens // PAPER_N_TOKENS, stop * n_tokens // PAPER_N_TOKENS
        ranks.update(range(first, max(end, first + 1)))
    return sorted(ranks)


def evenly_spaced(height: int, width: int, n_side: int = 8) -> list[int]:
    """List the positions of a regular sub-grid: the middle cell of each of ``n_side * n_side`` equal tiles.

    Parameters
    ----------
    height, width : int
        Grid size in tokens, each at least `n_side`.
    n_side : int
        Positions along each side.

    Returns
    -------
    list of int
        ``n_side * n_side`` positions, ascending. On 24 x 24 with 8: rows and columns 1, 4, ..., 22, the
        paper's 64.

    Raises
    ------
    ParameterError
        If a side of the grid is shorter than `n_side`.

    Notes
    -----
    Source: the 64 positions of the comparison with attention scores, which are for 24 x 24 grids.
    """
    check_integer("n_side", n_side, 1)
    check_integer("height", height, n_side)
    check_integer("width", width, n_side)
    rows = [(2 * i + 1) * height // (2 * n_side) for i in range(n_side)]
    columns = [(2 * i + 1) * width // (2 * n_side) for i in range(n_side)]
    return [row * width + column for row in rows for column in columns]


def pool_frames(features: torch.Tensor, grid: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    """Pool the visual tokens of video frames to half the grid's side.

    Parameters
    ----------
    features : torch.Tensor
        ``(n_frames, n_tokens, d)`` tokens after the connector, raster order.
    grid : tuple of int
        ``(height, width)`` in tokens, product ``n_tokens``.
    mode : {"bilinear", "average", "max"}
        ``bilinear`` resamples to the side halved and rounded up (27 -> 14), half-pixel centres, no
        antialiasing;
        ``average`` and ``max`` take 2 x 2 blocks and drop an odd last row and column (27 -> 13).

    Returns
    -------
    torch.Tensor
        ``(n_frames, n_pooled_tokens, d)`` in the input's dtype, raster order.

    Raises
    ------
    ParameterError
        If the mode is unknown, the grid does not fit the tokens or is too small, or a value is not finite.

    Notes
    -----
    Source: the released ``get_2dPool`` (stride 2), which all released video results use in its bilinear form.
    """
    if mode not in POOLING_MODES:
        raise ParameterError("mode", mode, f"one of {POOLING_MODES}")
    check_features("features", features, "(n_frames, n_tokens, d)")
    height, width = check_grid(grid, features.shape[1], smallest=1 if mode == "bilinear" else 2)
    planes = features.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    if mode == "bilinear":
        size = (-(-height // 2), -(-width // 2))
        pooled = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    else:
        pooled = (F.avg_pool2d if mode == "average" else F.max_pool2d)(planes, kernel_size=2)
    return pooled.flatten(2).transpose(1, 2)
