"""Write the tables of the page of methods from the registry: names, what each needs, whom it serves, and its rule.

What a method's rule, cost and limits are stands in the notes of its class; what it needs and whom it serves follows
from the class itself. The page ``book/methods.md`` includes what is written to ``book/_build/methods/``.

    python -m tools.make_methods
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from pathlib import Path

from rcblib.mllm.encoder import offered_signals
from rcblib.pruners.context import OF_SAMPLES, QUESTION
from rcblib.pruners.registry import PRUNERS, Method
from rcblib.reading.labels import label_of
from tools.write_parts import write_parts

ROOT = Path(__file__).resolve().parents[1]

COMMON = ("retain_ratio", "position_ids", "layout", "scope")
NOTES = ("Rule", "Cost", "Fails", "Source", "Differs")

ENCODERS = {
    "CLIP": (offered_signals(True), True),
    "DINOv2": (offered_signals(True), False),
    "SigLIP": (offered_signals(False), False),
    "SigLIP, video": (frozenset(), False),
    "Qwen2.5-VL": (frozenset(), False),
}
"""Signals of the vision encoders that models have, and whether CLIP's text tower belongs to them."""


def serves(method: Method, signals: Iterable[str], has_clip: bool) -> bool:
    """Tell whether a method serves models whose vision encoder offers some signals."""
    needs = method.needs - OF_SAMPLES - {QUESTION}
    return needs <= set(signals) and (has_clip or "text_tower" not in method.parameters)


def acts(method: Method) -> str:
    """Say where a method acts."""
    kind = method.kind
    if kind._overrides("inside"):
        return "layers of the LLM"
    if kind._overrides("resize"):
        return "the picture"
    return "tokens, merged" if kind._overrides("reduce") else "tokens"


def notes_of(kind: type) -> dict[str, str]:
    """Return what the notes of a class say after each of `NOTES`."""
    found: dict[str, str] = {}
    name = None
    for line in (inspect.getdoc(kind) or "").partition("Notes\n-----\n")[2].splitlines():
        begin, colon, rest = line.partition(": ")
        if colon and begin in NOTES:
            name, line = begin, rest
        if name is not None:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return {name: as_markdown(text) for name, text in found.items()}


def as_markdown(text: str) -> str:
    """Return a docstring's text as the page writes it."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    return re.sub(r"``([^`]*)``", r"`\1`", text)


def listed(names: Iterable[str]) -> str:
    """Write names as code."""
    return ", ".join(f"`{name}`" for name in names) or "–"


def parameters_of(method: Method) -> list[str]:
    """List the parameters of a method's own, with their defaults; they are in no base of all methods."""
    own = {name: value for name, value in method.parameters.items() if name not in COMMON}
    return [name if value is MISSING or value is None else f"{name}={value}" for name, value in own.items()]


def names_text(methods: Mapping[str, Method]) -> str:
    """Write the table of names."""
    lines = [
        "| name | in figures | acts on | looks at, besides tokens | parameters of its own | from |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [`{name}`](#method-{name.replace('_', '-')}) | {method.label} | {acts(method)} "
        f"| {', '.join(map(label_of, sorted(method.needs))) or '–'} | {listed(parameters_of(method))} "
        f"| {method.paper or '–'} |"
        for name, method in methods.items()
    ]
    return "\n".join(lines) + "\n"


def encoders_text(methods: Mapping[str, Method]) -> str:
    """Write which method serves models with which vision encoder."""
    lines = ["| name | " + " | ".join(ENCODERS) + " |", "|---|" + ":-:|" * len(ENCODERS)]
    for name, method in methods.items():
        marks = ["✓" if serves(method, *encoder) else "–" for encoder in ENCODERS.values()]
        lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    return "\n".join(lines) + "\n"


def rules_text(methods: Mapping[str, Method]) -> str:
    """Write the rule of every method, its cost, and when it fails."""
    parts = []
    for name, method in methods.items():
        told = notes_of(method.kind)
        lines = [f"(method-{name.replace('_', '-')})=", f"### {method.label}", ""]
        lines += [f"`{name}`. {as_markdown(inspect.getdoc(method.kind).splitlines()[0])}", ""]
        lines += [f"- **{note}**: {told[note]}" for note in NOTES if note in told]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the parts of the page."""
    parts = {"names": names_text(PRUNERS), "encoders": encoders_text(PRUNERS), "rules": rules_text(PRUNERS)}
    write_parts(ROOT / "book/_build/methods", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
