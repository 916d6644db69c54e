"""Keep beside a figure what it shows in words, for readers who do not see it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from matplotlib.axes import Axes

from rcblib.reading.figures.words import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OF_AXES: WeakKeyDictionary[Axes, list[str]] = WeakKeyDictionary()
_OF_FIGURES: WeakKeyDictionary[Figure, str] = WeakKeyDictionary()


def tell(axes: Axes, sentence: str) -> None:
    """Add what one plot of a figure shows: a sentence with numbers, or a comparison; what draws it knows them."""
    if sentence:
        _OF_AXES.setdefault(axes, []).append(plain(sentence))


def tell_whole(figure: Figure, sentence: str) -> None:
    """Say what a figure shows, in place of what its plots say one by one."""
    _OF_FIGURES[figure] = plain(sentence)


def finding_of(figure: Figure) -> str:
    """Return what a figure shows: what was told of the whole, else of its plots, each after its title.

    Returns
    -------
    str
        Sentences in one line; empty where nothing was told.
    """
    if figure in _OF_FIGURES:
        return _OF_FIGURES[figure]
    told = []
    for axes in figure.axes:
        if axes in _OF_AXES:
            title = plain(axes.get_title("left") or axes.get_title("center"))
            said = "; ".join(dict.fromkeys(_OF_AXES[axes]))
            told.append(f"{title}: {said}" if title else said)
    about = plain(figure.get_supxlabel())
    told = [about, *told] if about and told else told
    said = ". ".join(each[0].upper() + each[1:] if each[0].isascii() else each for each in told)
    return f"{said}." if said else ""
