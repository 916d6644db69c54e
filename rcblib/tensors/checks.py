"""Check what public functions are given, before any work is done: one line says what was given and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Integral, Real

import numpy as np
import torch

from rcblib.records import ParameterError


def check_integer(parameter: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an ``int`` if it is an integer inside the closed range, else raise.

    Raises
    ------
    ParameterError
        If it is no integer, below `minimum` or above `maximum`.
    """
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < minimum or (maximum is not None and value > maximum):
        limits = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ParameterError(parameter, value, f"an integer {limits}")
    return int(value)


def check_share(parameter: str, value: object) -> float:
    """Return `value` as a ``float`` if it is a number in [0, 1], else raise a `ParameterError`."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ParameterError(parameter, value, "a number from 0 to 1")
    return float(value)


def check_features(parameter: str, features: object, shape: str) -> None:
    """Raise unless `features` is a finite floating-point tensor of the given shape, no dimension empty.

    Parameters
    ----------
    parameter : str
        Name used in the message.
    features : object
        What was given.
    shape : str
        Names of the dimensions, such as ``"(n_tokens, d)"``; a leading ``...`` stands for any number of them.

    Raises
    ------
    ParameterError
        If it is something else, or contains NaN or infinity.
    """
    check_shape(parameter, features, shape)
    check_finite(parameter, features)


def check_shape(parameter: str, features: object, shape: str) -> None:
    """Raise unless `features` is what `check_features` accepts, whatever its values."""
    accepted = f"a floating-point tensor {shape}, no dimension empty"
    if not isinstance(features, torch.Tensor):
        raise ParameterError(parameter, type(features).__name__, accepted)
    names = shape.strip("(),").split(", ")
    n_named = len(names) - (names[0] == "...")
    fits = features.ndim >= n_named if names[0] == "..." else features.ndim == n_named
    if not fits or not features.is_floating_point() or features.numel() == 0:
        raise ParameterError(parameter, f"{features.dtype} {tuple(features.shape)}", accepted)


def check_finite(parameter: str, features: torch.Tensor) -> None:
    """Raise if there is NaN or infinity in `features`, or in what was computed from them and hands it on."""
    if isfinite(features.detach().sum().item()):
        return  # what is not finite reaches the sum, which takes one pass; finite values may make it overflow
    if not torch.isfinite(features).all():
        raise ParameterError(parameter, "NaN or infinity among its values", "finite values")


def check_positions(parameter: str, positions: Sequence[int] | torch.Tensor, n_tokens: int) -> list[int]:
    """Return `positions` as a list if they all lie in the grid, else raise.

    Raises
    ------
    ParameterError
        If one is no integer, negative or not below `n_tokens`.
    """
    listed = positions.tolist() if isinstance(positions, torch.Tensor | np.ndarray) else positions
    try:
        listed = list(listed)
    except TypeError:
        raise ParameterError(parameter, positions, "a sequence of positions") from None
    return [check_integer(parameter, position, 0, n_tokens - 1) for position in listed]


def check_grid(grid: tuple[int, int], n_tokens: int, smallest: int = 1) -> tuple[int, int]:
    """Return ``(height, width)`` if the grid holds `n_tokens` and no side is below `smallest`, else raise.

    Raises
    ------
    ParameterError
        If the grid is no pair of such integers or its product is another.
    """
    try:
        height, width = grid
    except (TypeError, ValueError):
        raise ParameterError("grid", grid, "(height, width) in tokens") from None
    check_integer("grid height", height, smallest)
    check_integer("grid width", width, smallest)
    if height * width != n_tokens:
        raise ParameterError("grid", tuple(grid), f"a height and width whose product is {n_tokens} tokens")
    return height, width
