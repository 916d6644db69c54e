"""Write the pages of the API reference, one a module, from the layers in pyproject.toml.

The text comes from the docstrings, through Sphinx autodoc; ``book/api/`` is made at every build.

    python tools/make_api.py
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.check_imports import read_rules  # noqa: E402


def api_pages(root: Path) -> list[str]:
    """List the modules that get a page, in the order of the layers; dunder modules have none."""
    rules = read_rules(root / "pyproject.toml")
    units = [unit for row in rules.layers for unit in row if not unit.startswith("__")]
    return [unit for unit in units if unit_files(root / rules.package, unit)]


def unit_files(package: Path, unit: str) -> list[Path]:
    """List the public source files of a module, or of a package and everything below it."""
    found = [package / f"{unit}.py", *sorted((package / unit).rglob("*.py"))]
    return [path for path in found if path.is_file() and (path.name == "__init__.py" or path.name[0] != "_")]


def summary(path: Path) -> str:
    """Return the first line of a module's docstring, empty where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def page(root: Path, package: str, unit: str) -> str:
    """Write one page: every file of the module, its public members in source order."""
    lines = [f"# `{package}.{unit}`", ""]
    paths = unit_files(root / package, unit)
    for path in paths:
        name = module_name(path, root)
        if len(paths) > 1 and name != f"{package}.{unit}":
            lines += [f"## `{name}`", ""]
        # What a package only re-exports is documented where it is defined.
        directive = [f".. automodule:: {name}", "   :members:", "   :ignore-module-all:"]
        lines += ["```{eval-rst}", *directive, "```", ""]
    return "\n".join(lines)


def index(root: Path, package: str, units: list[str]) -> str:
    """Write the page that lists all modules."""
    lines = [
        "# API reference",
        "",
        f"The modules of `{package}` in the order of the flow: a module imports only from those above it.",
        "",
        "| module | holds |",
        "|---|---|",
    ]
    for unit in units:
        first = unit_files(root / package, unit)[0]
        lines.append(f"| [`{unit}`]({unit}.md) | {summary(first)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write ``book/api/``; files whose text stays the same are left alone, so that Sphinx skips them."""
    package = read_rules(ROOT / "pyproject.toml").package
    units = api_pages(ROOT)
    pages = {unit: page(ROOT, package, unit) for unit in units} | {"index": index(ROOT, package, units)}
    folder = ROOT / "book" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
