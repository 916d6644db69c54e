"""Build perturbed visual inputs: single tokens, and windows with tokens replaced (leave-one-out).

All inputs are visual tokens after the connector, ``(n_tokens, d)`` in raster order. The replacement goes in
as it is: it is a word embedding of the LLM, the space that the connector maps to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rcblib.records import ParameterError
from rcblib.tensors.checks import check_features, check_grid, check_positions
from rcblib.tensors.geometry import window

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW_SIZE = 3
"""Side of the neighbourhood in tokens."""


def _check_replacement(replacement: object, tokens: torch.Tensor) -> torch.Tensor:
    """Return `replacement` as a ``(d,)`` row in the dtype and on the device of `tokens`, or raise."""
    check_features("replacement", replacement, "(..., d)")
    if replacement.numel() != tokens.shape[-1] or replacement.shape[-1] != tokens.shape[-1]:
        raise ParameterError(
            "replacement", tuple(replacement.shape), f"one row as wide as the tokens, {tokens.shape[-1]}"
        )
    return replacement.reshape(-1).to(tokens)


def replace_tokens(
    tokens: torch.Tensor, positions: Sequence[int] | torch.Tensor, replacement: torch.Tensor
) -> torch.Tensor:
    """Copy tokens with the rows at some positions replaced.

    Parameters
    ----------
    tokens : torch.Tensor
        ``(..., n_tokens, d)``; left as it is.
    positions : sequence of int or torch.Tensor
        Rows to replace, none of them negative; may be empty.
    replacement : torch.Tensor
        ``(d,)`` or ``(1, d)``; cast to the dtype of `tokens`.

    Returns
    -------
    torch.Tensor
        ``(..., n_tokens, d)``, a new tensor.

    Raises
    ------
    ParameterError
        If a position lies outside, the widths differ, or a value is not finite.

    Notes
    -----
    Source: the released ``*_context_pad_patch`` and ``*_ablate_*`` modes, which insert the embedding after
    the connector, unprojected.
    Differs: the release overwrites the caller's tokens, ignores a position outside the image in some modes,
    and lets a replacement of another dtype promote the result.
    """
    check_features("tokens", tokens, "(..., n_tokens, d)")
    row = _check_replacement(replacement, tokens)
    replaced = tokens.clone()
    replaced[..., check_positions("positions", positions, tokens.shape[-2]), :] = row
    return replaced


def single_token_inputs(tokens: torch.Tensor, positions: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Gather inputs of exactly one visual token each.

    Parameters
    ----------
    tokens : torch.Tensor
        ``(n_tokens, d)``.
    positions : sequence of int or torch.Tensor
        Targets.

    Returns
    -------
    torch.Tensor
        ``(n_positions, 1, d)``, in the order of `positions`.

    Raises
    ------
    ParameterError
        If the shape differs, a position lies outside, or a value is not finite.

    Notes
    -----
    Source: token-centric analysis; the released ``fix_sim_patch`` and ``fix_id_patch`` modes.
    Differs: one token even where the similarity to [CLS] ties; the release feeds all tied tokens.
    """
    check_features("tokens", tokens, "(n_tokens, d)")
    return tokens[check_positions("positions", positions, tokens.shape[0])].unsqueeze(1)


def region_inputs(
    tokens: torch.Tensor,
    grid: tuple[int, int],
    positions: Sequence[int] | torch.Tensor,
    replacement: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Build the region level of leave-one-out: the target's window alone, with the target and without.

    Parameters
    ----------
    tokens : torch.Tensor
        ``(n_tokens, d)``.
    grid : tuple of int
        ``(height, width)``, product ``n_tokens``, each at least 3.
    positions : sequence of int or torch.Tensor
        Targets.
    replacement : torch.Tensor
        ``(d,)`` or ``(1, d)`` embedding that takes the target's place.

    Returns
    -------
    intact, ablated : torch.Tensor
        ``(n_positions, 9, d)`` each, in the order of `positions`, a window in raster order.

    Raises
    ------
    ParameterError
        If the grid does not fit the tokens or the window, a position lies outside, the widths differ, or a
        value is not finite.

    Notes
    -----
    Source: context-centric analysis; the released ``*_context_tgt_patch`` and ``*_context_pad_patch`` modes.
    """
    targets, windows, row = _targets(tokens, grid, positions, replacement)
    intact = tokens[windows]
    is_target = windows == targets[:, None]
    return intact, torch.where(is_target[..., None], row, intact)


def global_inputs(
    tokens: torch.Tensor,
    grid: tuple[int, int],
    positions: Sequence[int] | torch.Tensor,
    replacement: torch.Tensor,
) -> torch.Tensor:
    """Build the global level of leave-one-out: all tokens, with the target's whole window replaced.

    Parameters
    ----------
    tokens : torch.Tensor
        ``(n_tokens, d)``.
    grid : tuple of int
        ``(height, width)``, product ``n_tokens``, each at least 3.
    positions : sequence of int or torch.Tensor
        Targets; the result has a copy of the image for each, so pass as many as one batch takes.
    replacement : torch.Tensor
        ``(d,)`` or ``(1, d)`` embedding that takes the place of the nine tokens.

    Returns
    -------
    torch.Tensor
        ``(n_positions, n_tokens, d)``, in the order of `positions`; `tokens` itself is the intact input of
        all.

    Raises
    ------
    ParameterError
        As `region_inputs`.

    Notes
    -----
    Source: context-centric analysis; the released ``*_ablate_context_tgt_patch`` modes.
    """
    _, windows, row = _targets(tokens, grid, positions, replacement)
    ablated = tokens.repeat(len(windows), 1, 1)
    ablated[torch.arange(len(windows), device=tokens.device)[:, None], windows] = row
    return ablated


def _targets(
    tokens: torch.Tensor,
    grid: tuple[int, int],
    positions: Sequence[int] | torch.Tensor,
    replacement: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Check leave-one-out's inputs; return targets ``(n,)``, windows ``(n, 9)`` and the row ``(d,)``."""
    check_features("tokens", tokens, "(n_tokens, d)")
    height, width = check_grid(grid, tokens.shape[0], smallest=WINDOW_SIZE)
    row = _check_replacement(replacement, tokens)
    listed = check_positions("positions", positions, tokens.shape[0])
    windows = [window(position, height, width, WINDOW_SIZE) for position in listed]
    targets = torch.tensor(listed, dtype=torch.long, device=tokens.device)
    return (
        targets,
        torch.tensor(windows, dtype=torch.long, device=tokens.device).view(-1, WINDOW_SIZE**2),
        row,
    )
