"""Check that modules import only in the direction of the library's flow.

The rules are read from ``[tool.check_imports]`` in pyproject.toml: ``layers``, an ordered list of rows of
module names (a name also covers everything below it, so ``mllm`` stands for ``rcblib/mllm/``); ``beside``,
which other modules of its own row a module may import; ``only``, outside packages that no other module may
import. Imports inside functions and under TYPE_CHECKING count like any other.

    python tools/check_imports.py [folder of the repository]
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_DYNAMIC_IMPORTS = ("import_module", "__import__")


@dataclass(frozen=True)
class Rules:
    """Hold which module may import what; see the module's docstring."""

    package: str
    layers: tuple[tuple[str, ...], ...]
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def row(self, unit: str) -> int | None:
        """Return the row of a module, counted from 0 at the top, or `None` for one that no row lists."""
        return next((row for row, units in enumerate(self.layers) if unit in units), None)


def read_rules(pyproject: Path) -> Rules:
    """Read the rules from pyproject.toml.

    Raises
    ------
    ValueError
        If a module is listed twice, or `beside` or `only` names one that no row lists.
    """
    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["check_imports"]
    rules = Rules(
        package=table["package"],
        layers=tuple(tuple(row) for row in table["layers"]),
        beside={unit: tuple(others) for unit, others in table.get("beside", {}).items()},
        only={name: tuple(units) for name, units in table.get("only", {}).items()},
    )
    listed = [unit for row in rules.layers for unit in row]
    repeated = sorted({unit for unit in listed if listed.count(unit) > 1})
    named = {*rules.beside, *(u for others in (*rules.beside.values(), *rules.only.values()) for u in others)}
    if repeated:
        raise ValueError(f"layers: {repeated} listed more than once")
    if named - set(listed):
        raise ValueError(f"beside or only: {sorted(named - set(listed))} not among the layers")
    return rules


def imported_names(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """List what a module imports, as (line number, absolute dotted name).

    Parameters
    ----------
    tree : ast.AST
        The parsed module.
    package : tuple of str
        Dotted parts of the package that holds it, against which relative imports are resolved.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield node.lineno, ".".join([*parts, alias.name])
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            literal = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if called in _DYNAMIC_IMPORTS and isinstance(literal, str):
                yield node.lineno, literal


def check_module(source: str, path: Path, rules: Rules) -> list[str]:
    """Return one line for each import of a module that its row does not allow.

    Parameters
    ----------
    source : str
        Text of the module.
    path : pathlib.Path
        Its path below the repository, such as ``rcblib/mllm/llava.py``.
    """
    parts = path.with_suffix("").parts
    package = parts[:-1]
    if parts == (rules.package, "__init__"):
        return []  # re-exports the public names of every row
    unit = parts[1]
    row = rules.row(unit)
    if row is None:
        return [f"{path}: module {unit!r} is in no row of layers in pyproject.toml"]
    problems = []
    for line, name in imported_names(ast.parse(source), package):
        top, *rest = name.split(".")
        if top != rules.package:
            allowed = rules.only.get(top)
            if allowed is not None and unit not in allowed:
                problems.append(f"{path}:{line}: imports {top}; only {', '.join(allowed)} may")
            continue
        if not rest or rest == ["__version__"] or rest[0] == unit:
            continue
        other = rules.row(rest[0])
        if other is None:
            problems.append(f"{path}:{line}: imports {name}; import from the module that defines it")
        elif other > row or (other == row and rest[0] not in rules.beside.get(unit, ())):
            where = "beside it" if other == row else "below it"
            problems.append(f"{path}:{line}: {unit} imports {rest[0]}, a module {where}")
    return list(dict.fromkeys(problems))  # one line for an import of several names


def check_package(root: Path, rules: Rules) -> list[str]:
    """Return every problem in the package below the folder `root`, sorted by path."""
    problems = []
    for path in sorted((root / rules.package).rglob("*.py")):
        problems += check_module(path.read_text(encoding="utf-8"), path.relative_to(root), rules)
    return problems


def main(arguments: list[str]) -> int:
    """Print the problems of the repository; return 1 if there are any."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    problems = check_package(root, read_rules(root / "pyproject.toml"))
    print("\n".join(problems) if problems else "imports follow the layers")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
