"""Write the page on what can go wrong: run each situation, and list every message that stands in the library.

The situations are those of ``book/what_can_go_wrong.yml``; ``book/what_can_go_wrong.md`` includes what is written here
to ``book/_build/messages/``.

    python -m tools.make_messages
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from tools.write_parts import write_parts

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "rcblib"
ERRORS = ("ParameterError", "UnsupportedModelError", "CodebookError", "ChecksumError", "ImageError")
"""The project's own errors; a warning is the other kind of message."""


@dataclass(frozen=True)
class Message:
    """Describe one place of the library that says something to the user.

    Attributes
    ----------
    module : str
        Where it stands, below ``rcblib``.
    first, last : int
        Its lines.
    kind : str
        One of `ERRORS`, or ``"Warning"``; empty where another function makes the error.
    about : str
        The parameter, or what the text begins with; ``…`` where that is known only when it runs.
    text : str
        What is accepted, or the rest of the text, ``…`` in place of what is known only when it runs.
    """

    module: str
    first: int
    last: int
    kind: str
    about: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """Hold what a situation ended in: kind and text of its message, and the lines of the library on the way."""

    kind: str
    text: str
    places: tuple[tuple[str, int], ...]


def _written(node: ast.AST | None, texts: Mapping[str, ast.AST]) -> str:
    """Write a text's expression, with ``…`` for what is known only when it runs."""
    if isinstance(node, ast.Name):
        node = texts.get(node.id, node)
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return "…"


def _texts(tree: ast.AST) -> dict[str, ast.AST]:
    """Return the texts that a function gives names to, where a name has one text only."""
    found = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id].append(node.value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def messages(library: Path = LIBRARY) -> list[Message]:
    """List every message of the library's source, by module and line."""
    found, trees = [], {path: ast.parse(path.read_text(encoding="utf-8")) for path in library.rglob("*.py")}
    functions = [n for tree in trees.values() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    makers = {n.name for n in functions if n.returns is not None and ast.unparse(n.returns) in ERRORS}
    for path, tree in sorted(trees.items()):
        module = ".".join(path.relative_to(library).with_suffix("").parts)
        texts = {}  # of the function around each call, the innermost
        for function in [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))]:
            texts |= dict.fromkeys(ast.walk(function), {} if function is tree else _texts(function))
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        found += filter(None, (_message(module, node, texts[node], makers) for node in calls))
    return sorted(found, key=lambda own: (own.module, own.first))


def _message(
    module: str, node: ast.Call, texts: Mapping[str, ast.AST], makers: Collection[str]
) -> Message | None:
    called = ast.unparse(node.func)
    given, *more = [*node.args, None]
    lines = module, node.lineno, node.end_lineno
    if called in makers:  # a function that makes an error; what it says stands there
        return Message(*lines, "", "…", "…")
    if called == "ParameterError" and given is not None:
        return Message(*lines, called, _written(given, texts), _written(more[1], texts))
    kind = "Warning" if called == "warnings.warn" else called.partition(".")[0]
    if kind not in (*ERRORS, "Warning") or given is None:
        return None
    about, _, text = _written(given, texts).partition(": ")
    return Message(*lines, kind, about, text)


def read_groups() -> list[dict[str, Any]]:
    """Return the groups of situations."""
    return yaml.safe_load((ROOT / "book/what_can_go_wrong.yml").read_text(encoding="utf-8"))


def surroundings() -> dict[str, Any]:
    """Return the names that situations find, as a user of a small embedded model has them."""
    import numpy as np
    import pandas as pd
    import torch
    from PIL import Image

    import rcblib
    from rcblib.data.opening import open_images

    model, processor = rcblib.load_model("llava-scenes")
    samples = open_images("scenes", n=20)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return {name: getattr(rcblib, name) for name in rcblib.__all__} | {
        "Image": Image, "Path": Path, "json": json, "np": np, "pd": pd, "torch": torch,
        "write_coco": write_coco,
        "model": model, "processor": processor, "samples": samples,
        "inputs": dict(processor(images=samples[0].image, text=text, return_tensors="pt")),
        "codebook": rcblib.Codebook.from_pretrained("llava-scenes"),
    }  # fmt: skip


def write_coco(annotation: Mapping[str, Any], width: int = 64, height: int = 64) -> None:
    """Write a folder in COCO's format around a photo, with one annotation, and a size that the photo need not have."""
    image = {"id": 1, "file_name": "1.jpg", "width": width, "height": height}
    content = {"images": [image], "annotations": [{"id": 7, "area": 9, "iscrowd": 0, **annotation}]}
    content["categories"] = [{"id": 1, "name": "cat"}]
    for folder in ("annotations", "val2017"):
        Path(folder).mkdir()
    Path("annotations/instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copy("photo.jpg", "val2017/1.jpg")


@contextlib.contextmanager
def _empty_folder(photo: Any) -> Iterator[Path]:
    """Work in a new folder that holds a photo."""
    before, folder = Path.cwd(), Path(tempfile.mkdtemp())
    photo.save(folder / "photo.jpg")
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def outcome(code: str, names: Mapping[str, Any]) -> Outcome:
    """Run a situation in a folder of its own; return its error, or its first warning."""
    warned = []

    def warn(message: str, category: type = UserWarning, stacklevel: int = 1) -> None:
        if category is UserWarning:
            warned.append((str(message), _places(traceback.extract_stack())))

    with _empty_folder(names["samples"][0].image) as folder, mock.patch.object(warnings, "warn", warn):
        try:
            exec(code, dict(names))
        except Exception as error:  # what it ends in is what is shown
            places = _places(traceback.extract_tb(error.__traceback__))
            return Outcome(type(error).__name__, str(error).replace(str(folder), "…"), places)
        return (
            Outcome("Warning", warned[0][0].replace(folder.name, "…"), warned[0][1])
            if warned
            else Outcome("", "", ())
        )


def _places(frames: traceback.StackSummary) -> tuple[tuple[str, int], ...]:
    """Return module and line of the frames that are the library's."""
    inside = ((Path(frame.filename), frame.lineno) for frame in frames)
    return tuple(
        (".".join(path.relative_to(LIBRARY).with_suffix("").parts), line)
        for path, line in inside
        if path.is_relative_to(LIBRARY)
    )


def told_at(found: Outcome, known: Sequence[Message]) -> Message | None:
    """Return the message of the source that a situation ended in, by line and text."""

    def fits(message: Message) -> bool:
        begins = ": ".join(
            part for part in (message.about, "" if message.kind == "ParameterError" else message.text) if part
        )
        pattern = ".*".join(re.escape(part) for part in begins.split("…"))
        return message.kind in ("", found.kind) and re.match(pattern, found.text, re.DOTALL) is not None

    for module, line in reversed(found.places):
        for message in known:
            if message.module == module and message.first <= line <= message.last and fits(message):
                return message
    return None


def _code(text: str) -> str:
    return f"`{' '.join(text.split())}`" if text else ""


def situations_text(situations: Sequence[Mapping[str, str]], outcomes: Sequence[Outcome]) -> str:
    """Write situations with what they ended in."""
    parts = []
    for situation, found in zip(situations, outcomes, strict=True):
        said = textwrap.fill(
            f"{found.kind}: {found.text}", 110, break_long_words=False, break_on_hyphens=False
        )
        parts.append(
            f"```python\n{situation['code'].strip()}\n```\n```text\n{said}\n```\n"
            f"{situation['means']} *What to do:* {situation['do'][0].lower()}{situation['do'][1:]}\n"
        )
    return "\n".join(parts)


def list_text(known: Sequence[Message], do: Mapping[str, str]) -> str:
    """Write the messages of a group as a folded table, one line for each error and parameter, and what to do."""
    texts = defaultdict(list)
    for message in filter(lambda own: own.kind, known):
        texts[message.kind, message.about].append(message.text)
    lines = ["| error | about | accepted, or what is said |", "| --- | --- | --- |"]
    for (kind, about), said in sorted(texts.items()):
        cells = [
            _code(text.replace("|", "/").replace("`", "'"))
            for text in dict.fromkeys(said)
            if text.strip("… ")
        ]
        lines.append(f"| `{kind}` | {_code(about)} | {'; '.join(cells) or 'told when it happens'} |")
    title = f"All messages of this kind, by the parameter that they name: {len(known)} places in the code"
    what = [f"- `{kind}`: {do[kind]}" for kind in dict.fromkeys(kind for kind, _ in sorted(texts))]
    told = "\n".join(["*What to do:*", "", *what, "", *lines])
    return f":::{{dropdown}} {title}\n{told}\n:::\n"


def numbers_text(
    groups: Sequence[Mapping[str, Any]], outcomes: Mapping[str, Sequence[Outcome]], known: Sequence[Message]
) -> str:
    """Write how much the page covers, as counted in this run."""
    every = [own for found in outcomes.values() for own in found]
    met = {told for own in every if (told := told_at(own, known))}
    in_line = sum("\n" not in own.text for own in every)
    kinds = {(message.kind, message.about) for message in known if message.kind}
    return (
        f"This page was made by running {len(every)} situations: {in_line} of them ended in one line, and they met "
        f"{len(met)} of the {len(known)} places in the library that say something to a user. These places name "
        f"{len(kinds)} parameters and files, and all of them are in the {len(groups)} lists below.\n"
    )


def faults_text(path: Path) -> str:
    """Write the table of the recorded campaign of faults, where there is one."""
    if not path.is_file():
        return "No campaign has been recorded yet.\n"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    rows = recorded["rows"]
    lines = ["| kind | tried | survived | what |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {row['kind']} | {row['tried']} | {row['survived']} | {row['what']} |" for row in rows]
    tried, survived = (sum(row[name] for row in rows) for name in ("tried", "survived"))
    made = recorded["made"]
    when = (
        f" It was recorded on {str(made['date'])[:10]}." if isinstance(made, dict) and "date" in made else ""
    )
    return (
        f"Of {tried} inputs and faults tried, {survived} were survived.{when}\n\n" + "\n".join(lines) + "\n"
    )


def precision_text(paths: Sequence[Path]) -> str:
    """Write how many decisions half precision changed, a line a decision, from what was recorded of each model."""
    header, cells, told = ["decision"], defaultdict(list), []
    for path in paths:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        for row in recorded["rows"]:
            cells[row["decision"]].append(f"{row['changed']} of {row['n']} ({row['changed'] / row['n']:.1%})")
        header += [
            f"{recorded['model']}, {name}" for name in dict.fromkeys(r["format"] for r in recorded["rows"])
        ]
        made = recorded["made"]
        told.append(
            f"{recorded['n_images']} images on {recorded['model']} on {made['date'][:10]} ({made['cpu']})"
        )
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    lines += [f"| {decision} | {' | '.join(found)} |" for decision, found in cells.items()]
    return "\n".join(lines) + f"\n\nRecorded of {'; '.join(told)}.\n"


def main() -> int:
    """Run everything and write the parts of the page."""
    groups, known, names = read_groups(), messages(), surroundings()
    outcomes = {
        group["name"]: [outcome(own["code"], names) for own in group["situations"]] for group in groups
    }
    parts = {
        "numbers": numbers_text(groups, outcomes, known),
        "faults": faults_text(ROOT / "data/recorded/faults.json"),
    }
    parts["precision"] = precision_text(sorted((ROOT / "data/recorded/precision").glob("*.json")))
    for group in groups:
        own = [message for message in known if message.module in group["modules"]]
        parts[group["name"]] = (
            f"How it is meant: []({group['page']}.md).\n\n"
            + situations_text(group["situations"], outcomes[group["name"]])
            + "\n"
            + list_text(own, group["do"])
        )
    write_parts(ROOT / "book/_build/messages", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
