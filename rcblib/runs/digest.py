"""Name code by a digest, so that a stored number is read back only by the code that would compute it again.

A digest covers what changes results: the statements of a module and of every module of the same package that it
imports. Comments, docstrings, the annotations of functions and imports for type checkers leave it as it is.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rcblib.records import ParameterError
from rcblib.runs.files import to_plain

PACKAGE = __name__.partition(".")[0]

FRAMEWORKS = ("torch", "transformers")
"""Packages whose arithmetic or preprocessing decides numbers."""


def code_digest(*modules: str) -> str:
    """Hash the code of modules and of everything that they import of `rcblib` and of their own packages.

    Parameters
    ----------
    *modules : str
        Names such as ``"rcblib.probe.run"``; none of them is imported.

    Returns
    -------
    str
        12 hexadecimal digits.

    Raises
    ------
    ModuleNotFoundError
        Where a module has no source file.

    Notes
    -----
    Where torch or transformers are imported, their major and minor versions belong to it: a model's preprocessing and
    forward pass are theirs. Patch releases do not, as they are not to change results; provenance records them.
    """
    every = sorted(imported_modules(*modules))
    used = sorted({name for module in every for name in _parsed(module)[2]})
    parts = [f"{name} {_minor_version(name)}" for name in used]
    return _short([*parts, *(f"{module}\n{_parsed(module)[0]}" for module in every)])


def digest_of(code: type | types.FunctionType) -> str:
    """Hash the code of a class or function, wherever it was written.

    Parameters
    ----------
    code : type or function
        Of a module: with all that the module imports of `rcblib` and of its own package, as by `code_digest`. Of a
        notebook or a session: its attributes and methods, its bases, and what its methods name, as far as that is
        defined there or in `rcblib`; from source where there is any, else from byte code.

    Returns
    -------
    str
        12 hexadecimal digits.
    """
    module = code.__module__ or ""
    if _has_source(module):
        return code_digest(module)
    parts: dict[int, str] = {}
    _collect(code, parts)
    return _short(parts.values())


def imported_modules(*modules: str) -> frozenset[str]:
    """Name modules and all that they import, directly or not, of `rcblib` and of their own packages."""
    packages = {PACKAGE, *(module.partition(".")[0] for module in modules)}
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += (name for name in _parsed(module)[1] if name.partition(".")[0] in packages)
    return frozenset(found)


def modules_in(source: str, packages: Iterable[str] = (PACKAGE,)) -> frozenset[str]:
    """Name the modules of some packages that a program imports, such as the cells of a notebook one after the other."""
    names = (name for name in imported_names(ast.parse(source)) if name.partition(".")[0] in set(packages))
    return frozenset(module for module in map(_module_of, names) if module is not None)


def module_file(module: str) -> Path | None:
    """Find the source of a module without importing it or the packages that it lies in."""
    top, *rest = module.split(".")
    # What is called __main__ may be a notebook's, whichever program its kernel was started as.
    spec = None if top in ("", "__main__") else importlib.util.find_spec(top)
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return None
    if spec.submodule_search_locations is None:
        places = [] if rest else [Path(spec.origin)]
    else:
        folders = [Path(folder, *rest) for folder in spec.submodule_search_locations]
        places = [
            place for folder in folders for place in (folder / "__init__.py", folder.with_suffix(".py"))
        ]
        places = [place for place in places if rest or place.name == "__init__.py"]
    return next((place for place in places if place.suffix == ".py" and place.is_file()), None)


@functools.cache
def _is_improvised(module: str) -> bool:
    """Tell whether code was written in a notebook or a session, or in a file that cannot be imported."""
    top = module.partition(".")[0]
    return top in ("", "__main__") or importlib.util.find_spec(top) is None


@functools.cache
def _has_source(module: str) -> bool:
    return module_file(module) is not None


@functools.cache
def _parsed(module: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return a module's bare code, the modules that it imports, and which frameworks."""
    path = module_file(module)
    if path is None:
        raise ModuleNotFoundError(f"no source of module {module}", name=module)
    tree = _Bare().visit(ast.parse(path.read_text(encoding="utf-8")))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = tuple(dict.fromkeys(imported_names(tree, package)))
    own = tuple(name for name in map(_module_of, names) if name not in (None, module))
    return (
        ast.unparse(tree),
        own,
        tuple(name for name in FRAMEWORKS if name in {n.split(".")[0] for n in names}),
    )


def imported_names(tree: ast.AST, package: str = "") -> Iterator[str]:
    """List what a tree imports, in functions too: modules, and ``module.name`` for a name from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def _module_of(name: str) -> str | None:
    """Return the module that ``package.module`` or ``package.module.name`` is or comes from, where it has source.

    A public name of `rcblib`, such as ``rcblib.probe``, comes from where it is defined, not from the room of that
    name; what else the package itself holds, its version and its list of names, decides nothing.
    """
    if name.startswith(f"{PACKAGE}.") and (home := _homes().get(name.removeprefix(f"{PACKAGE}."))):
        return f"{PACKAGE}.{home}"
    return next(
        (n for n in (name, name.rpartition(".")[0]) if n not in ("", PACKAGE) and _has_source(n)), None
    )


@functools.cache
def _homes() -> dict[str, str]:
    """Read where the package has its public names from, which it imports when they are first used."""
    tree = ast.parse(module_file(PACKAGE).read_text(encoding="utf-8"))
    named = (node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "_HOME")
    return ast.literal_eval(next(named).value)


class _Bare(ast.NodeTransformer):
    """Drop what does not change results: docstrings, functions' annotations, imports for type checkers."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> Any:
        name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", "")
        if name == "TYPE_CHECKING":
            return [self.visit(statement) for statement in node.orelse]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def _function(self, node: Any) -> ast.AST:
        node.returns = None
        return self.visit_ClassDef(node)

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_ClassDef(self, node: Any) -> ast.AST:
        node = self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


def _collect(value: Any, parts: dict[int, str]) -> None:
    """Describe a class or function of a notebook, and what it names, once each."""
    value = inspect.unwrap(value) if isinstance(value, types.FunctionType) else value
    if id(value) in parts or not isinstance(value, type | types.FunctionType):
        return
    module = value.__module__ or ""
    if module.partition(".")[0] == PACKAGE:
        parts[id(value)] = code_digest(module)
    elif _is_improvised(module):
        parts[id(value)] = ""
        if isinstance(value, type):
            own = {name: entry for name, entry in vars(value).items() if name not in _BOOKKEEPING}
            parts[id(value)] = f"class {value.__qualname__} {_constants(own)}"
            for entry in (*value.__bases__, *map(_inner, own.values())):
                _collect(entry, parts)
        else:
            _collect_function(value, parts)


_BOOKKEEPING = ("__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__")


def _inner(entry: Any) -> Any:
    """Return the function inside a property, class method or static method."""
    return next((f for name in ("fget", "__func__", "func") if (f := getattr(entry, name, None))), entry)


def _constants(values: Mapping[str, Any]) -> str:
    """Write the values that can be written down, by name."""
    written = {}
    for name in sorted(values):
        with contextlib.suppress(ParameterError):
            written[name] = to_plain(values[name])
    return repr(written)


def _collect_function(function: types.FunctionType, parts: dict[int, str]) -> None:
    codes = list(_nested(function.__code__))
    try:
        text = ast.unparse(_Bare().visit(ast.parse(textwrap.dedent(inspect.getsource(function)))))
    except (OSError, TypeError, SyntaxError):
        text = repr([(code.co_code, _constants(dict(enumerate(code.co_consts)))) for code in codes])
    names = {name for code in codes for name in code.co_names} & set(function.__globals__)
    named = {name: function.__globals__[name] for name in sorted(names)}
    named |= inspect.getclosurevars(function).nonlocals | (function.__kwdefaults__ or {})
    named |= {str(k): value for k, value in enumerate(function.__defaults__ or ())}
    parts[id(function)] = f"{text}\n{_constants(named)}"
    for value in named.values():
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] == PACKAGE:
            parts[id(value)] = code_digest(value.__name__)
        _collect(value, parts)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """List a code object and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _minor_version(package: str) -> str:
    """Return major and minor version of an installed package, without importing it."""
    try:
        return ".".join(importlib.metadata.version(package).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return ""


def _short(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
