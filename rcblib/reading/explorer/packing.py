"""Write many small numbers as letters, two a number, and texts deflated, so that a picture takes a few kilobytes.

The letters are those of base64 for addresses; two of them hold 0 to 4095. 4095, ``"__"``, stands for nothing; a dot and
two letters for so many nothings in a row, since of some pictures most tokens are not probed. Texts of such letters are
deflated at last: letters that are rare take more bits than those that are frequent, as of tokens that stay.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
NOTHING = 4095
GAP = "."
STEPS = NOTHING - 1
"""A number is written as one of `STEPS` + 1 steps from the smallest to the largest of its picture."""

N_BITS = 6
"""Truth values that one letter holds."""


def pack_integers(values: Sequence[int | None]) -> str:
    """Write integers from 0 to 4094, or ``None``, as two letters each; rows of ``None`` as three.

    Raises
    ------
    ValueError
        If one is out of range.
    """
    given = [NOTHING if value is None else int(value) for value in values]
    if any(not 0 <= value <= NOTHING for value in given):
        raise ValueError(f"values: got {min(given)} to {max(given)}; accepted: 0 to {STEPS}")
    text = ""
    for value, group in groupby(given):
        n = len(list(group))
        if value == NOTHING:
            whole, rest = divmod(n, NOTHING)
            text += (GAP + _letters(NOTHING)) * whole + (GAP + _letters(rest) if rest > 1 else "__" * rest)
        else:
            text += _letters(value) * n
    return text


def _letters(value: int) -> str:
    return LETTERS[value >> 6] + LETTERS[value & 63]


def unpack_integers(text: str) -> list[int | None]:
    """Read what `pack_integers` wrote."""
    values: list[int | None] = []
    for gap, high, low in re.findall(rf"({re.escape(GAP)}?)(.)(.)", text):
        code = LETTERS.index(high) << 6 | LETTERS.index(low)
        values += [None] * code if gap else [None if code == NOTHING else code]
    return values


def pack_numbers(values: Sequence[float], power: int = 1) -> tuple[float, float, str]:
    """Write numbers as steps between the smallest and the largest of them; NaN as nothing.

    Parameters
    ----------
    values : sequence of float
        Finite, or NaN.
    power : {1, 2}
        1: steps of equal size. 2: steps that grow with the distance from the smallest number, for values most of which
        are small.

    Returns
    -------
    tuple
        Smallest and largest number (0 where there is none), and the letters. What `unpack_numbers` returns differs from
        a number by at most `largest_error`.
    """
    given = np.asarray(values, dtype=float)
    finite = given[np.isfinite(given)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    span = high - low or 1.0
    steps = np.rint(np.clip((given - low) / span, 0, 1) ** (1 / power) * STEPS)
    return low, high, pack_integers([None if np.isnan(step) else int(step) for step in steps])


def unpack_numbers(low: float, high: float, text: str, power: int = 1) -> np.ndarray:
    """Read what `pack_numbers` wrote."""
    codes = np.array([np.nan if code is None else code for code in unpack_integers(text)], dtype=float)
    return low + (high - low) * (codes / STEPS) ** power


def largest_error(low: float, high: float, power: int = 1) -> float:
    """Return how far a number may be from what was written: half of the largest step."""
    return (high - low) * (1 - (1 - 1 / STEPS) ** power) / 2 + 1e-12 * max(abs(low), abs(high))


def pack_choices(kept: Sequence[Sequence[bool] | None]) -> str:
    """Write which tokens stay at up to six budgets: one letter a token, whose lowest bit is the first budget.

    A choice that is ``None`` counts as one that keeps nothing; who reads knows which are there.
    """
    n_tokens = len(next(own for own in kept if own is not None))
    codes = np.zeros(n_tokens, dtype=int)
    for bit, own in enumerate(kept[:N_BITS]):
        if own is not None:
            codes |= np.asarray(own, dtype=int) << bit
    return "".join(LETTERS[code] for code in codes)


def unpack_choice(text: str, budget: int) -> np.ndarray:
    """Read which tokens stay at the budget of a number: ``(n_tokens,)`` booleans."""
    return np.array([bool(LETTERS.index(letter) >> budget & 1) for letter in text])


def pack_texts(parts: Iterable[str]) -> str:
    """Deflate texts, one after the other, as browsers can inflate them, and write the bytes in base64.

    Each part gets codes of its own: those of one with few different letters are short.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL)
    data = b"".join(packer.compress(part.encode()) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts)
    return base64.b64encode(data + packer.flush()).decode()


def unpack_text(text: str) -> str:
    """Read all that `pack_texts` wrote, as one text."""
    return zlib.decompress(base64.b64decode(text), -zlib.MAX_WBITS).decode()
