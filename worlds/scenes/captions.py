"""Write captions of a drawn scene."""

from __future__ import annotations

from collections.abc import Sequence

from rcblib.data.questions import COUNT_WORDS, KnownObject, with_article


def _noun(item: KnownObject) -> str:
    return f"{item.color} {item.category}" if item.color else item.category


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def captions(objects: Sequence[KnownObject], background: str) -> tuple[str, ...]:
    """Write five captions of a scene; the first lists every object by decreasing area.

    Parameters
    ----------
    objects : sequence
        At least one object with category, colour, area and centre.
    background : str
        Kind of background, named by the fourth caption.
    """
    by_area = [with_article(_noun(o)) for o in sorted(objects, key=lambda o: -o.area)]
    by_column = [with_article(_noun(o)) for o in sorted(objects, key=lambda o: o.center[0])]
    n = len(objects)
    count = COUNT_WORDS[n - 1] if n <= len(COUNT_WORDS) else str(n)
    objects_word = "object" if n == 1 else "objects"
    return (
        f"{_join(by_area)}.",
        f"from left to right: {_join(by_column)}.",
        f"the image shows {count} {objects_word}: {_join(by_area)}.",
        f"{_join(by_area)} on a {background} background.",
        f"an image of {by_area[0]}" + (f" with {_join(by_area[1:])}." if n > 1 else "."),
    )
