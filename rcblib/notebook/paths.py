"""Say what the relative paths among a notebook's parameters count from."""

from __future__ import annotations

import ast
import dataclasses
import os
from collections.abc import Collection, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rcblib.codebook.criterion import PRESETS
from rcblib.data.opening import PREFIXES, WORLD_GROUP
from rcblib.data.plain import SAMPLE
from rcblib.mllm.loading import model_names
from rcblib.runs.parameters import NAMED, READ, WRITTEN
from rcblib.runs.paths import user_path


def handed_over(namespace: Mapping[str, Any]) -> set[str]:
    """Return the parameters that were assigned after their declaration, as papermill assigns those it is given."""
    names: set[str] = set()
    for source in namespace.get("In", ()):
        try:
            statements = ast.parse(source).body
        except SyntaxError:
            continue
        for node in statements:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.discard(node.target.id)
            elif isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def settle_paths(
    config: Any, hints: Mapping[str, Any], handed: Collection[str], here: Path, root: Path
) -> Any:
    """Return parameters whose paths mean the same wherever the notebook works from here on.

    A path that was handed over counts from the folder where the notebook was started, one that the notebook itself
    declares from the project. What is read is looked for in the other place too; a name stays a name.

    Parameters
    ----------
    config : dataclass
        The parameters.
    hints : Mapping
        Their types; those that are paths say so (`NameOrPath`, `InputPath`, `OutputFolder`).
    handed : collection of str
        Those of `handed_over`.
    here, root : pathlib.Path
        Where the notebook was started, and the project, which becomes the working directory.

    Returns
    -------
    dataclass
        With ``~`` and variables replaced, and relative paths from `root`, or absolute where they lead out of it.

    Raises
    ------
    ParameterError
        If a variable in a path is not set.
    """
    names = {"auto", SAMPLE, *entry_points(group=WORLD_GROUP).names, *model_names(), *PRESETS}
    changed = {}
    for name, hint in hints.items():
        marks = getattr(hint, "__metadata__", ())
        role = next((mark for mark in marks if mark in (NAMED, READ, WRITTEN)), None)
        given = getattr(config, name)
        if role is None or not given or given in names:
            continue
        prefix = next((each for each in PREFIXES if given.startswith(each)), "")
        path = user_path(given.removeprefix(prefix), name)
        if not path.is_absolute():
            starts = (here, root) if name in handed else (root, here)
            there = [start for start in starts if role != WRITTEN and (start / path).exists()]
            if role == NAMED and not there:
                continue
            path = Path(os.path.normpath((there or starts)[0] / path))
            path = path.relative_to(root) if path.is_relative_to(root) else path
        changed[name] = f"{prefix}{path}"
    return dataclasses.replace(config, **changed)
