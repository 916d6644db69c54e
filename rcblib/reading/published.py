"""Read published scores with random visual tokens, and set a curve of one's own beside them."""

from __future__ import annotations

import pandas as pd

from rcblib.runs.provenance import project_path

LLAVA_15 = "LLaVA-1.5-7B"


def published_random_tokens() -> pd.DataFrame:
    """Read ``data/published/random_tokens.csv``: what others report of models whose tokens were kept at random.

    Returns
    -------
    pandas.DataFrame
        ``model``, ``n_all`` and ``n_kept`` tokens, ``benchmark``, ``score`` and ``unpruned`` as published, ``source``,
        ``read_in`` (where the number was read, if not in the source itself), ``retained`` (fraction of the tokens) and
        ``relative`` (score over unpruned score; guessing is in both, as publications have it).
    """
    table = pd.read_csv(project_path("data/published/random_tokens.csv"))
    return table.assign(
        retained=table["n_kept"] / table["n_all"], relative=table["score"] / table["unpruned"]
    )


def published_curve(table: pd.DataFrame) -> pd.DataFrame:
    """Average `published_random_tokens` over benchmarks, for `rcblib.reading.figures.score_against_retained`.

    Returns
    -------
    pandas.DataFrame
        ``method`` (the model), ``retained``, ``mean``, ``low`` and ``high`` of the relative scores, the last two being
        those of the benchmarks that lose most and least, and ``n`` benchmarks.
    """
    groups = table.groupby(["model", "retained"], sort=False)["relative"]
    found = groups.agg(mean="mean", low="min", high="max", n="size").reset_index()
    return found.rename(columns={"model": "method"})


def compare_falls(own: pd.DataFrame, other: pd.DataFrame) -> str:
    """Say whether scores fall faster than others' as random tokens become fewer.

    Parameters
    ----------
    own, other : pandas.DataFrame
        One row a share: ``retained``, ``mean``, ``low`` and ``high`` of the relative score. With a share of its own
        that is no larger than one of `other` and an interval at or above that mean, a curve falls no faster; with one
        that is no smaller and an interval below it, it falls faster.

    Returns
    -------
    str
        ``"faster"``, ``"no faster"`` or ``"undecided"``, as where shares of `other` disagree.
    """
    verdicts = set()
    for share, mean in zip(other["retained"], other["mean"], strict=True):
        fewer, more = own[own["retained"] <= share], own[own["retained"] >= share]
        if len(fewer) and (fewer["low"] >= mean).any():
            verdicts.add("no faster")
        if len(more) and (more["high"] < mean).any():
            verdicts.add("faster")
    return verdicts.pop() if len(verdicts) == 1 else "undecided"
