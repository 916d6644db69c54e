"""Ask methods that are added to pictures measured before in both ways: what they drop removed, or replaced.

`rcblib.evaluate.explored.explore` asks such methods with their tokens removed. A method that replaces is one like any
other to it; here it is made, and what is found about it gets its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rcblib.evaluate.explored import KEPT, REMOVED, REPLACED
from rcblib.evaluate.grid import setting_of
from rcblib.evaluate.replacing import ReplacePruner
from rcblib.mllm import Adapter
from rcblib.pruners.base import Pruner
from rcblib.records import CodebookError, ParameterError, UnsupportedModelError

HOWS = (REMOVED, REPLACED)

Ways = dict[str, dict[Any, Pruner]]
"""Registered name of a method to its pruners; the keys of these only tell them apart."""


def in_ways(
    pruners: Mapping[str, Mapping[float, Pruner]], hows: Sequence[str], adapter: Adapter
) -> tuple[Ways, dict[str, str]]:
    """Return the pruners of each method in each way, and say why for each that cannot replace, one line.

    Parameters
    ----------
    pruners : Mapping
        Registered name to share to pruner.
    hows : sequence of str
        Some of `HOWS`.
    adapter : Adapter
        Of the model that is asked.
    """
    made: Ways = {}
    unfit: dict[str, str] = {}
    for name, own in pruners.items():
        ways = {(REMOVED, share): pruner for share, pruner in own.items() if REMOVED in hows}
        try:
            replacing = {(REPLACED, share): ReplacePruner(pruner) for share, pruner in own.items()}
            for pruner in replacing.values():
                pruner.check(adapter)
            ways |= replacing if REPLACED in hows else {}
        except (ParameterError, CodebookError, UnsupportedModelError) as error:
            unfit |= {f"{name}, {REPLACED}": str(error)} if REPLACED in hows else {}
        if ways:
            made[name] = ways
    return made, unfit


def told_ways(table: pd.DataFrame, pruners: Ways) -> pd.DataFrame:
    """Say of each row of answers in which way it was asked; what a method keeps is listed once, where it removes.

    Parameters
    ----------
    table : pandas.DataFrame
        As `rcblib.evaluate.explored.explore` returns it, of these pruners.
    pruners : dict
        As `in_ways` returns them.
    """
    replacing = {
        setting_of(pruner) for own in pruners.values() for (how, _), pruner in own.items() if how == REPLACED
    }
    is_replaced = table["setting"].isin(replacing)
    told = table.assign(how=table["how"].mask(is_replaced, REPLACED))
    return told[~(is_replaced & (told["part"] == KEPT))].reset_index(drop=True)
