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
import marshal
import os
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
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
    ParameterError
        Where this process runs other statements than the file now holds: what it computes must not be kept under the
        name of code that has not run.

    Notes
    -----
    Of a command, a module called ``__main__``, its own statements count only: it imports what all its subcommands need.
    Where torch or transformers are imported, their major and minor versions belong to it: a model's preprocessing and
    forward pass are theirs. Patch releases do not, as they are not to change results; provenance records them.
    """
    every = sorted(imported_modules(*modules))
    used = sorted({name for module in every for name in _parsed(module)[2]})
    parts = [f"{name} {_minor_version(name)}" for name in used]
    return _short([*parts, *(f"{module}\n{_parsed(module)[0]}" for module in every)])


def digest_of(code: Any) -> str:
    """Hash the code of a class, a function or another callable object, wherever it was written.

    Parameters
    ----------
    code : type or callable
        Of a module: with all that the module imports of `rcblib` and of its own package, as by `code_digest`. Of a
        notebook or a session: its attributes and methods, its bases, and what its methods name, as far as that is
        defined there or in `rcblib`; from source where there is any, else from byte code. A `functools.partial` or an
        instance: what it consists of.

    Returns
    -------
    str
        12 hexadecimal digits.
    """
    root = code
    while isinstance(root, functools.partial):
        root = root.func
    is_code = isinstance(root, type | types.FunctionType | types.MethodType) or hasattr(root, "__wrapped__")
    module = (root if is_code else type(root)).__module__ or ""
    parts: dict[int, str] = {}
    if _has_source(module):
        parts[id(module)] = code_digest(module)
        if root is code and is_code and not isinstance(root, types.MethodType):
            return parts[id(module)]
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
            if module.endswith(".__main__"):
                continue
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
    with contextlib.suppress(ValueError):  # of a module that was made, not imported
        return top in ("", "__main__") or importlib.util.find_spec(top) is None
    return True


@functools.cache
def _has_source(module: str) -> bool:
    return module_file(module) is not None


def _parsed(module: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the bare code of a module as its file is now, the modules that it imports, and which frameworks."""
    path = module_file(module)
    if path is None:
        raise ModuleNotFoundError(f"no source of module {module}", name=module)
    status = path.stat()
    parsed = _read(module, path, status.st_mtime_ns, status.st_size)
    _check_loaded(module, path, parsed[0])
    return parsed


@functools.cache
def _read(module: str, path: Path, *state: int) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    tree = _Bare().visit(ast.parse(path.read_text(encoding="utf-8")))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = tuple(dict.fromkeys(imported_names(tree, package)))
    own = tuple(name for name in map(_module_of, names) if name not in (None, module))
    used = {name.partition(".")[0] for name in names}
    return ast.unparse(tree), own, tuple(name for name in FRAMEWORKS if name in used)


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
    """Describe a class, function or object of a notebook, and what it names or holds, once each."""
    if id(value) in parts or value is None or isinstance(value, str | bytes | int | float | types.ModuleType):
        return
    is_code = isinstance(value, type | types.FunctionType)
    module = (value if is_code else type(value)).__module__ or ""
    is_library, is_improvised = module.partition(".")[0] == PACKAGE, _is_improvised(module)
    if is_code and is_library:
        parts[id(value)] = code_digest(module)
    elif is_code and is_improvised:
        parts[id(value)] = ""
        if isinstance(value, type):
            own = {name: entry for name, entry in vars(value).items() if name not in _BOOKKEEPING}
            parts[id(value)] = f"class {value.__qualname__} {_constants(own)}"
            for entry in (*value.__bases__, *map(_inner, own.values())):
                _collect(entry, parts)
        else:
            _collect_function(value, parts)
    elif not is_code:
        held = _held(value, is_library or is_improvised)
        parts[id(value)] = _constants(held)
        for entry in held.values():
            _collect(entry, parts)


def _held(value: Any, is_own: bool) -> dict[str, Any]:
    """List what an object consists of as far as code can lie in it: a container, a wrapper, an own class's instance."""
    if isinstance(value, dict):
        return {f"{type(key).__name__} {key}": entry for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=lambda entry: getattr(entry, "__qualname__", None) or repr(entry))
    if isinstance(value, list | tuple):
        return {str(i): entry for i, entry in enumerate(value)}
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, types.MethodType):
        return {"func": value.__func__, "self": value.__self__}
    if "__wrapped__" in getattr(value, "__dict__", ()):  # such as by functools.cache
        return {"wrapped": value.__wrapped__}
    return {"class": type(value), **getattr(value, "__dict__", {})} if is_own else {}


_BOOKKEEPING = ("__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__")


def _inner(entry: Any) -> Any:
    """Return the function inside a property, class method or static method."""
    return next((f for name in ("fget", "__func__", "func") if (f := getattr(entry, name, None))), entry)


def _constants(values: Mapping[str, Any]) -> str:
    """Write the values that can be written down, by name."""
    written = {}
    for name in sorted(values):
        with contextlib.suppress(ParameterError, TypeError, RecursionError):
            written[name] = to_plain(values[name])
    return repr(written)


def _collect_function(function: types.FunctionType, parts: dict[int, str]) -> None:
    codes = list(_nested(function.__code__))
    try:
        if function.__code__.co_filename == "<string>":  # of all of them Python 3.13 shows the text after -c
            raise OSError("no source")
        source = textwrap.dedent(inspect.getsource(function.__code__))  # not of what it wraps
        text = ast.unparse(_Bare().visit(ast.parse(source)))
    except (OSError, TypeError, SyntaxError):
        text = repr([(code.co_code, _constants(dict(enumerate(code.co_consts)))) for code in codes])
    names = {name for code in codes for name in code.co_names} & set(function.__globals__)
    named = {name: function.__globals__[name] for name in sorted(names)}
    named |= inspect.getclosurevars(function).nonlocals | (function.__kwdefaults__ or {})
    named |= {str(k): value for k, value in enumerate(function.__defaults__ or ())}
    named |= {"wrapped": function.__wrapped__} if hasattr(function, "__wrapped__") else {}
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


_loaded: dict[str, tuple[Any, str | None]] = {}
"""Of modules that are loaded: by which import, and the bare code it ran; ``None`` where the file holds other code."""


def _check_loaded(module: str, path: Path, bare: str) -> None:
    """Raise where a module of this process ran other code than its file holds; reloading it makes both one again."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    if type(getattr(spec, "loader", None)) is not SourceFileLoader or spec.origin != str(path):
        return  # not loaded, or not from this file as it stands, such as what pytest rewrites
    if module not in _loaded or _loaded[module][0] is not spec:  # every import has a spec of its own
        _loaded[module] = spec, bare if _runs_its_file(sys.modules[module], spec) else None
    if _loaded[module][1] != bare:
        accepted = "code as it was loaded: restart the kernel"
        raise ParameterError("code", f"{module}, edited since it was loaded", accepted)


_HOLDERS = (types.FunctionType, property, classmethod, staticmethod, functools.cached_property)
_HOLDERS += (type(functools.cache(len)),)


def _runs_its_file(module: types.ModuleType, spec: Any) -> bool:
    """Tell, as far as it shows, whether a module was loaded from its file as the file is now."""
    cached = Path(spec.cached) if spec.cached else None
    with contextlib.suppress(OSError, ValueError, EOFError, TypeError):
        # Unless it may not write there, this process left the byte code of what it loaded, or found it.
        before = marshal.loads(cached.read_bytes()[16:]) if cached and not sys.dont_write_bytecode else None
        now = spec.loader.get_code(spec.name)
        if before is not None and os.access(cached.parent, os.W_OK) and _shape(before) != _shape(now):
            return False
        # Another process may have loaded the file since then: the functions here are what was loaded.
        own = [vars(module)[name] for name in now.co_names if name in vars(module)]
        own += [e for kind in own if isinstance(kind, type) for e in vars(kind).values()]
        functions = (inspect.unwrap(_inner(entry)) for entry in own if isinstance(entry, _HOLDERS))
        codes = (getattr(function, "__code__", None) for function in functions)
        shapes = {_shape(code) for code in _nested(now)}
        return all(_shape(code) in shapes for code in codes if code and code.co_filename == spec.origin)
    return True


def _shape(code: types.CodeType) -> tuple[Any, ...]:
    """Return what a code object does, wherever its lines stand."""
    constants = (
        _shape(c) if isinstance(c, types.CodeType) else (type(c).__name__, c) for c in code.co_consts
    )
    return (code.co_name, code.co_code, code.co_names, code.co_varnames, *constants)
