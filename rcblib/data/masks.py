"""Check masks in COCO's format before pycocotools decodes them, which reads beyond the end of damaged ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def mask_fault(segmentation: Any, height: int, width: int) -> str | None:
    """Say what is wrong with a mask before pycocotools sees it, ``None`` where nothing is.

    Parameters
    ----------
    segmentation : object
        As read from JSON: sound are a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, and run lengths
        ``{"size": [height, width], "counts": ...}``, counts a list or compressed text.
    height, width : int
        Size of the image in pixels. A polygon may reach beyond it by once its size.
    """
    if not segmentation:
        return "without segmentation"
    if isinstance(segmentation, Mapping):
        return _run_fault(segmentation, height, width)
    if not isinstance(segmentation, list):
        return f"with a segmentation of type {type(segmentation).__name__}"
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return "with a segmentation that is no list of polygons"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"with a polygon of {len(polygon)} numbers"
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in polygon):
            return "with a polygon that is no list of numbers"
        if not all_finite(polygon):
            return "with a polygon of NaN or infinity"
        x, y = polygon[::2], polygon[1::2]
        if min(x) < -width or min(y) < -height or max(x) > 2 * width or max(y) > 2 * height:
            return f"with a polygon far outside the image of {width} x {height}"
    in_first = all(0 <= value <= 1 for polygon in segmentation for value in polygon)
    if in_first and min(width, height) > 1 and not covers_nothing(segmentation, height, width):
        return "with a polygon in the first pixel, as of fractions of the image"
    return None


def covers_nothing(segmentation: Any, height: int, width: int) -> bool:
    """Tell whether a sound mask is of no pixel: background alone, or polygons that are lines or beside the image."""
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        return not any((run_lengths(counts) if isinstance(counts, str) else counts)[1::2])
    return all(_is_beside(polygon, height, width) or _is_line(polygon) for polygon in segmentation)


def reaches_beyond(segmentation: Any, height: int, width: int) -> bool:
    """Tell whether a sound mask has corners over a pixel outside of its image, as of a picture before it shrank."""
    if isinstance(segmentation, Mapping):
        return False
    x = [value for polygon in segmentation for value in polygon[::2]]
    y = [value for polygon in segmentation for value in polygon[1::2]]
    return min(*x, *y) < -1 or max(x) > width + 1 or max(y) > height + 1


def is_of_other_box(segmentation: Any, box: Sequence[float]) -> bool:
    """Tell whether polygons lie mostly outside of the ``(x, y, width, height)`` beside them, or fill little of it."""
    if isinstance(segmentation, Mapping):
        return False
    x = [value for polygon in segmentation for value in polygon[::2]]
    y = [value for polygon in segmentation for value in polygon[1::2]]
    sides = [
        (min(values), max(values), start, start + length)
        for values, start, length in ((x, box[0], box[2]), (y, box[1], box[3]))
    ]
    shared = [max(0.0, min(high, end) - max(low, start)) for low, high, start, end in sides]
    own, other = ([side[i + 1] - side[i] for side in sides] for i in (0, 2))
    common = shared[0] * shared[1]
    return 2 * common < own[0] * own[1] + other[0] * other[1] - common


def run_lengths(counts: str) -> list[int] | None:
    """Decode compressed run lengths; ``None`` where the text is none, on which pycocotools reads beyond its end.

    Notes
    -----
    Source: ``rleFrString`` of pycocotools.
    """
    found: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value = shift = 0
    return found if shift == 0 else None


def all_finite(values: Iterable[Any]) -> bool:
    """Tell whether all values are numbers of a size that pictures have."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15
        for value in values
    )


def _run_fault(rle: Mapping[str, Any], height: int, width: int) -> str | None:
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        shape = tuple(size) if isinstance(size, list) else size
        return f"with a mask of {shape} where the image is {(height, width)}"
    if isinstance(counts, str):
        counts = run_lengths(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        return "with run lengths that are none"
    if sum(counts) != height * width:
        return f"with run lengths of {sum(counts)} pixels where the image has {height * width}"
    return None


def _is_beside(polygon: Sequence[float], height: int, width: int) -> bool:
    x, y = polygon[::2], polygon[1::2]
    return max(x) <= 0 or max(y) <= 0 or min(x) >= width or min(y) >= height


def _is_line(polygon: Sequence[float]) -> bool:
    """Tell whether all corners ``[x1, y1, x2, y2, ...]`` lie on one line."""
    sides = [(x - polygon[0], y - polygon[1]) for x, y in zip(polygon[2::2], polygon[3::2], strict=True)]
    first = next((side for side in sides if any(side)), (0, 0))
    return all(first[0] * y == first[1] * x for x, y in sides)
