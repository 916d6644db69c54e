"""Check parameters with pydantic: types, ranges and names, every mistake told in one line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Collection, Mapping, MutableMapping
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import pydantic
from annotated_types import Ge, Gt, Le, Lt
from pydantic.dataclasses import dataclass as pydantic_dataclass

from rcblib.records import ParameterError

T = TypeVar("T")


class AtLeast:
    """Spell an integer with a lower bound: ``n_images: AtLeast[2] = 400``."""

    def __class_getitem__(cls, minimum: int) -> Any:
        """Return the annotation."""
        return Annotated[int, Ge(minimum)]


Count = AtLeast[1]
"""Integer from 1."""
Seed = Annotated[int, Ge(0), Lt(2**32)]
"""Integer from 0 that every generator takes."""
Positive = Annotated[float, Gt(0)]
"""Number above 0."""
Weight = Annotated[float, Ge(0)]
"""Number from 0."""
Share = Annotated[float, Gt(0), Le(1)]
"""Number above 0, up to 1."""
Retained = Annotated[float, Gt(0), Le(0.99)]
"""Share of the visual tokens that are kept, where some are dropped: above 0, up to 0.99."""
Cosine = Annotated[float, Ge(-1), Le(1)]
"""Number from -1 to 1."""

NAMED, READ, WRITTEN = "name or path", "path that is read", "path that is written"
NameOrPath = Annotated[str, NAMED]
"""Text that names something, or a file or folder that is read."""
InputPath = Annotated[str, READ]
"""File or folder that is read, and a folder made where it is missing."""
OutputFolder = Annotated[str, WRITTEN]
"""Folder that is written into."""

# papermill lists a parameter only where its annotation is made of letters, digits, commas and square brackets, so
# choices have names that say them.
ValidationOrTest = Literal["validation", "test"]
AutoOrAll = Literal["auto", "all"]
AllOrGrid = Literal["all", "grid"]
AllRanksOrGrid = Literal["all", "paper_ranks", "grid"]
StopOrSkip = Literal["stop", "skip"]

_WORDS = {
    "integer": "an integer",
    "number": "a finite number (in YAML write 0.002: 2e-3 is read as text)",
    "boolean": "true or false",
    "string": "text",
    "null": "None",
}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}

_LITERAL_TYPES = (str, int, float, bool, type(None), list, tuple, dict)
_IPYTHON_NAMES = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open"})


def _accepted(schema: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema accepts."""
    if "anyOf" in schema:
        return " or ".join(_accepted(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(repr(choice) for choice in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"a list of ({_accepted(schema['items'])})"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return ", ".join([_WORDS.get(schema.get("type"), "anything"), *bounds])


def unknown_parameter(name: str, value: Any, known: Collection[str]) -> ParameterError:
    """Make the error for a name that is no parameter, with the nearest known one."""
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return ParameterError(name, value, f"no parameter of this name; known: {', '.join(sorted(known))}{hint}")


@dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields pydantic checks, strictly, and whose errors are a `ParameterError`.

    Nothing is converted but an integer where a finite number is asked for. ``__post_init__`` may check what
    concerns several fields and raise a `ParameterError` of its own. `dataclasses.replace` checks anew.
    """
    settings = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made = pydantic_dataclass(frozen=True, config=settings)(cls)
    validate = made.__init__
    names = [field.name for field in dataclasses.fields(made)]

    @functools.wraps(validate)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(names) or {*names[: len(args)]} & {*kwargs}:
            raise TypeError(f"{cls.__name__}: too many arguments for {', '.join(names)}")
        given = dict(zip(names, args, strict=False)) | kwargs
        for name in given:
            if name not in names:
                raise unknown_parameter(name, given[name], names)
        try:
            validate(self, **given)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            if isinstance(first.get("ctx", {}).get("error"), ParameterError):
                raise first["ctx"]["error"] from None
            name = first["loc"][0]
            properties = pydantic.TypeAdapter(made).json_schema()["properties"]
            raise ParameterError(name, given.get(name), _accepted(properties[name])) from None

    made.__init__ = __init__
    return made


def notebook_config(namespace: MutableMapping[str, Any]) -> Any:
    """Read a notebook's parameters, declared as ``name: type = literal``, into one checked config.

    papermill puts the values that it is given into a cell of its own after the declarations, and only warns on a name
    that was not declared. So a plain value here that is no parameter is a misspelt one: of a notebook's first cells
    the others make modules, functions and classes only. Constants in capitals are left alone, unless they spell a
    parameter.

    Parameters
    ----------
    namespace : MutableMapping
        ``globals()`` of the notebook, right after its imports. The annotations of its variables say the types.

    Returns
    -------
    dataclass
        Frozen, with the parameters as attributes.

    Raises
    ------
    ParameterError
        On a misspelt name, a missing value, a value of another type or out of range.
    """
    hints = namespace.get("__annotations__", {})
    if not hints:
        # Python 3.14 keeps annotations elsewhere.
        raise ParameterError("parameters", None, "name: type = literal in a cell before, up to Python 3.13")
    if "_parameters_read" not in namespace:  # else run again in a session where later cells have left values
        for name, value in namespace.items():
            if name in hints or name.startswith("_") or name in _IPYTHON_NAMES:
                continue
            if type(value) in _LITERAL_TYPES and (not name.isupper() or name.lower() in hints):
                raise unknown_parameter(name, value, hints)
    schema = checked(type("Config", (), {"__annotations__": dict(hints)}))
    config = schema(**{name: namespace[name] for name in hints if name in namespace})
    namespace["_parameters_read"] = True
    return config
