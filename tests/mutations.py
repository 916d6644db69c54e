"""Damage files and values in ways that are drawn from a seeded generator."""

import copy
import json
import math

ODD = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**70, -(2**63), 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, "",
    "1", "7", "abc", "a" * 5000, "\0", "../..", "$x_1$", "<b>", "é\u202e", [], [[]], [1], [math.nan] * 6, [None],
    ["a"], [[0, 0, 1e9, 0, 0, 1e9]], {}, {"a": 1}, {"size": [2**31, 2**31], "counts": "1"}, [10**6] * 3,
)  # fmt: skip
"""Values that somebody's file or command may hold where another was meant."""


def damaged_bytes(data, generator):
    """Return bytes cut off, flipped, doubled, zeroed or with others put in, and what was done."""
    if not data:
        return b"\xff", "one byte"
    place = int(generator.integers(len(data)))
    end = min(len(data), place + int(generator.integers(1, 64)))
    noise = generator.bytes(end - place)
    kind = ("cut off", "flipped", "doubled", "zeroed", "overwritten", "inserted", "removed")[
        int(generator.integers(7))
    ]
    changed = {
        "cut off": data[:place],
        "flipped": data[:place] + bytes([data[place] ^ 1 << int(generator.integers(8))]) + data[place + 1 :],
        "doubled": data[:end] + data[place:],
        "zeroed": data[:place] + bytes(end - place) + data[end:],
        "overwritten": data[:place] + noise + data[end:],
        "inserted": data[:place] + noise + data[place:],
        "removed": data[:place] + data[end:],
    }[kind]
    return changed, f"{kind} at byte {place} of {len(data)}"


def damaged_value(value, generator, odd=ODD):
    """Return a JSON value in which one entry is another, missing or twice there, and what was done."""
    value = copy.deepcopy(value)
    places = list(_places(value, ()))
    holder, key, path = places[int(generator.integers(len(places)))]
    kind = ("odd", "odd", "odd", "removed", "twice", "moved")[int(generator.integers(6))]
    if kind == "odd":
        holder[key] = copy.deepcopy(odd[int(generator.integers(len(odd)))])
        return value, f"{path}={holder[key]!r}"[:120]
    if kind == "removed":
        del holder[key]
    elif kind == "twice" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        other, other_key, _ = places[int(generator.integers(len(places)))]
        holder[key] = copy.deepcopy(other[other_key])
    return value, f"{path} {kind}"


def as_json(value):
    """Return a value as JSON text; NaN and infinity are written as Python does."""
    return json.dumps(value)


def _places(value, path):
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        own = (*path, key)
        yield value, key, "/".join(map(str, own))
        if isinstance(entry, dict | list):
            yield from _places(entry, own)
