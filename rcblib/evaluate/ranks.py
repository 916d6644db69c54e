"""Put ranks inside a view in the place of what signals say of its tokens: all that comparisons inside views read."""

from __future__ import annotations

import pandas as pd

from rcblib.signals import signal_of

PLACE = ("view", "token", "position", "object_coverage", "object_category")
"""Columns of probing that tell where a token is; they are no ranks."""


def view_ranks(tokens: pd.DataFrame) -> pd.DataFrame:
    """Put ranks inside their view in the place of all numbers that say something of tokens, and leave the others out.

    Parameters
    ----------
    tokens : pandas.DataFrame
        One row a token of one image, with the columns of `PLACE`.

    Returns
    -------
    pandas.DataFrame
        `PLACE`, and of each column that has a side to keep (signals, attention of each layer, and what begins with
        ``score_``, ``pixel_`` or ``token_``) the rank: 0 for the lowest value of the view, 1 for the highest, equal
        values in the middle of theirs; ``attention_last`` and ``attention_question``: of the means over layers.
    """
    means = {}
    for rows in ("attention_last", "attention_question"):
        layers = tokens.filter(regex=rf"^{rows}_layer_\d+$")
        if len(layers.columns):
            means[rows] = layers.mean(axis=1)
    tokens = tokens.assign(**means)
    own = [name for name in tokens if name not in PLACE and has_side(name)]
    views = tokens.groupby("view")
    ranks = (views[own].rank() - 1).div((views["view"].transform("size") - 1).clip(lower=1), axis=0)
    return pd.concat([tokens[[name for name in PLACE if name in tokens]], ranks], axis=1)


def has_side(name: str) -> bool:
    """Tell whether one end of a column says that a token is worth keeping; one that repeats another has no side."""
    signal = signal_of(name)
    if name == "cls_rank":  # similarity to [CLS], turned round
        return False
    return name.startswith(("score_", "pixel_", "token_")) or bool(signal and signal.keep)
