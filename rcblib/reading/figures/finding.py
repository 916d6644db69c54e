"""Keep beside a figure what it shows in words, for readers who do not see it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from matplotlib.axes import Axes

from rcblib.reading.figures.words import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 300
"""Characters of what is said of a figure: it is listened to in one go."""

_LEAST = 90
"""Characters that a plot needs to say something; where there are fewer for each, some plots are left out."""

_MORE = " …"
"""What stands for what is left out."""

_INTERVAL = re.compile(r" \[-?[\d.e+-]+, -?[\d.e+-]+\]")
_ENDS = re.compile(r"(?<=[\w%”\])])(?:[.;] |, )")
"""Where a sentence can end early."""


@dataclass
class _Told:
    """Hold what one plot shows, and how far its first method leads where that is known."""

    sentences: list[str]
    lead: float | None = None


_OF_AXES: WeakKeyDictionary[Axes, _Told] = WeakKeyDictionary()
_OF_FIGURES: WeakKeyDictionary[Figure, str] = WeakKeyDictionary()


def tell(axes: Axes, sentence: str, lead: float | None = None) -> None:
    """Add what one plot of a figure shows: a sentence with numbers, or a comparison; what draws it knows them.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        The plot.
    sentence : str
        What it shows.
    lead : float, optional
        By how much what the plot is about is ahead of the best of the others; of many plots the ends are said.
    """
    if sentence:
        told = _OF_AXES.setdefault(axes, _Told([]))
        told.sentences.append(plain(sentence))
        told.lead = lead


def tell_whole(figure: Figure, sentence: str) -> None:
    """Say what a figure shows, in place of what its plots say one by one."""
    _OF_FIGURES[figure] = plain(sentence)


def finding_of(figure: Figure) -> str:
    """Return what a figure shows: what was told of the whole, else of its plots, each after its title.

    What is longer than `MOST` loses its intervals, then the last parts of each plot's sentences; where there are many
    plots, some are said: those where the first method leads most and least, or the first.

    Returns
    -------
    str
        Sentences in one line, of at most `MOST` characters; empty where nothing was told.
    """
    if figure in _OF_FIGURES:
        return _within(_OF_FIGURES[figure], MOST)
    plots = [
        (_with_title(axes, "; ".join(dict.fromkeys(_OF_AXES[axes].sentences))), _OF_AXES[axes].lead)
        for axes in figure.axes
        if axes in _OF_AXES
    ]
    about = plain(figure.get_supxlabel())
    about = f"{_sentence(about)} " if about and plots else ""
    whole = about + " ".join(_sentence(said) for said, _ in plots)
    if len(whole) <= MOST:
        return whole
    room = MOST - len(about)
    most = min(len(plots), max(1, room // _LEAST))
    if most < len(plots) and sum(len(_INTERVAL.sub("", said)) + 2 for said, _ in plots) > room:
        led = all(lead is not None for _, lead in plots)
        about += f"Of {len(plots)} plots {'where the first leads most and least' if led else f'the first {most}'}: "
        room = MOST - len(about)
        most = max(1, room // _LEAST)
        plots = _ends(plots, most) if led else plots[:most]
    said = dict.fromkeys(range(len(plots)), "")
    for left, k in zip(range(len(plots), 0, -1), sorted(said, key=lambda k: len(plots[k][0])), strict=True):
        said[k] = _sentence(_within(plots[k][0], room // left - 2))
        room -= len(said[k]) + 1
    return about + " ".join(said.values())


def _with_title(axes: Axes, said: str) -> str:
    title = plain(axes.get_title("left") or axes.get_title("center"))
    return f"{title}: {said}" if title else said


def _sentence(text: str) -> str:
    """Begin with a capital, where it is a Latin letter, and end with a full stop."""
    begun = text[0].upper() + text[1:] if text[0].isascii() else text
    return begun if begun.endswith(_MORE) else begun.rstrip(".") + "."


def _ends(plots: list[tuple[str, float | None]], most: int) -> list[tuple[str, float | None]]:
    """Return the plots with the largest and the smallest leads, in the order in which they are drawn."""
    order = sorted(range(len(plots)), key=lambda k: plots[k][1], reverse=True)
    n_least = most // 2
    return [plots[k] for k in sorted(order[: most - n_least] + order[len(order) - n_least :])]


def _within(text: str, most: int) -> str:
    """Return text of at most so many characters: without intervals, then without its last parts."""
    if len(text) <= most:
        return text
    text = _INTERVAL.sub("", text)
    if len(text) <= most:
        return text
    ends = [found.start() for found in _ENDS.finditer(text) if found.start() <= most - len(_MORE)]
    numbered = [end for end in ends if text[end - 1] in "0123456789%”"]
    return text[: (numbered or ends or [most - len(_MORE)])[-1]] + _MORE
