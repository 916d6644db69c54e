"""Check the parameters of a run: types, ranges, and names that nobody knows."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rcblib.records import ParameterError

if TYPE_CHECKING:
    pass

Config = TypeVar("Config")

_IPYTHON_NAMES = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open"})

_LITERAL_TYPES = (str, int, float, bool, types.NoneType, list, tuple, dict)


def bounded(
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Collection[Any] | None = None,
) -> Any:
    """Declare a field of a config dataclass together with the values it accepts.

    Parameters
    ----------
    default : object, optional
        Value when none is given; without it the parameter is required.
    minimum, maximum : float, optional
        Inclusive bounds of a number, or of every element of a list or tuple.
    above : float, optional
        Exclusive lower bound.
    choices : collection, optional
        The accepted values.

    Returns
    -------
    dataclasses.Field
        For use as ``n_images: int = bounded(24, minimum=1)``.
    """
    limits = {"minimum": minimum, "maximum": maximum, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata=limits)


def _accepted(hint: Any, limits: Mapping[str, Any]) -> str:
    """Say in words which values a parameter accepts."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if limits.get("choices") is not None:
        words = "one of " + ", ".join(repr(choice) for choice in limits["choices"])
    elif origin is Literal:
        words = "one of " + ", ".join(repr(choice) for choice in arguments)
    elif origin in (typing.Union, types.UnionType):
        words = " or ".join(_accepted(argument, {}) for argument in arguments)
    elif origin in (list, tuple):
        words = f"a list of ({_accepted(arguments[0], {})})"
    else:
        words = {
            int: "an integer",
            float: "a finite number (in YAML write 0.002: 2e-3 is read as text)",
            bool: "true or false",
            str: "text",
            types.NoneType: "None",
        }.get(hint, str(hint))
    bounds = [
        f"{sign} {limits[key]}"
        for key, sign in (("minimum", ">="), ("above", ">"), ("maximum", "<="))
        if limits.get(key) is not None
    ]
    return ", ".join([words, *bounds])


def _converted(value: Any, hint: Any) -> Any:
    """Return `value` as the annotated type, or raise TypeError where it is not of it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in arguments:
            return value
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _converted(value, argument)
            except TypeError:
                continue
    elif origin in (list, tuple):
        if isinstance(value, list | tuple):
            return origin(_converted(element, arguments[0]) for element in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif type(value) is hint or (hint is types.NoneType and value is None):
        return value
    raise TypeError


def _within(value: Any, limits: Mapping[str, Any]) -> bool:
    """Tell whether a converted value, or every element of a list, respects the limits."""
    if isinstance(value, list | tuple):
        return all(_within(element, limits) for element in value)
    if limits.get("choices") is not None and value not in limits["choices"]:
        return False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            (limits.get("minimum") is None or value >= limits["minimum"])
            and (limits.get("maximum") is None or value <= limits["maximum"])
            and (limits.get("above") is None or value > limits["above"])
        )
    return True


def _checked(name: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """Return a parameter as its annotated type, or raise where type or limits are not met."""
    try:
        converted = _converted(value, hint)
    except TypeError:
        raise ParameterError(name, value, _accepted(hint, limits)) from None
    if not _within(converted, limits):
        raise ParameterError(name, value, _accepted(hint, limits))
    return converted


def _unknown(name: str, value: Any, known: Collection[str]) -> ParameterError:
    """Make the error for a name that is no parameter, with the nearest known one."""
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return ParameterError(name, value, f"no parameter of this name; known: {', '.join(sorted(known))}{hint}")


def validate_parameters(given: Mapping[str, Any], schema: type[Config]) -> Config:
    """Turn given values into one validated config.

    Parameters
    ----------
    given : Mapping
        Name to value, as a ``parameters`` cell or a command line supplies them.
    schema : type
        Dataclass whose annotations say the types (``int``, ``float``, ``bool``, ``str``, ``Literal``,
        optional, ``list`` or ``tuple`` of these) and whose fields may carry the limits of `bounded`.

    Returns
    -------
    object
        An instance of `schema`; integers given for ``float`` are converted, lists for ``tuple`` too.

    Raises
    ------
    ParameterError
        On an unknown name, a missing value, a value of another type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name, value in given.items():
        if name not in fields:
            raise _unknown(name, value, fields)
    hints = typing.get_type_hints(schema)
    values = {}
    for name, field in fields.items():
        if name in given:
            values[name] = _checked(name, given[name], hints[name], field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ParameterError(name, None, _accepted(hints[name], field.metadata))
    return schema(**values)


def check_fields(config: Any) -> None:
    """Check, and convert in place, the fields of a dataclass; for use in its ``__post_init__``.

    Parameters
    ----------
    config : dataclass
        Annotated and bounded as in `validate_parameters`; it may be frozen.

    Raises
    ------
    ParameterError
        On a value of another type or out of range.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = _checked(field.name, getattr(config, field.name), hints[field.name], field.metadata)
        object.__setattr__(config, field.name, value)


def reject_unknown_parameters(
    namespace: Mapping[str, Any], known: Collection[str], baseline_names: Collection[str] = ()
) -> None:
    """Raise where a notebook's namespace holds a plain value that is no parameter.

    papermill only warns on a name that the notebook does not know and then defines it in a cell of its own.
    A notebook that calls this right after its set-up cell notices: what papermill injects are plain literals,
    while a set-up cell makes modules, functions and classes. Constants in capitals are left alone, unless
    they spell a known parameter.

    Parameters
    ----------
    namespace : Mapping
        ``globals()`` of the notebook.
    known : collection of str
        Parameter names.
    baseline_names : collection of str
        Further plain variables that the set-up cell makes on purpose.

    Raises
    ------
    ParameterError
        Naming the unknown parameter and the nearest known one.
    """
    known = set(known)
    allowed = known | set(baseline_names) | _IPYTHON_NAMES
    lowered = {name.lower() for name in known}
    for name, value in list(namespace.items()):
        if name in allowed or name.startswith("_") or type(value) not in _LITERAL_TYPES:
            continue
        if name.isupper() and name.lower() not in lowered:
            continue
        raise _unknown(name, value, known)


def notebook_config(
    namespace: Mapping[str, Any], schema: type[Config], baseline_names: Collection[str] = ()
) -> Config:
    """Read a notebook's parameters from its namespace into one validated config.

    Parameters
    ----------
    namespace : Mapping
        ``globals()`` of the notebook, right after its set-up cell.
    schema : type
        Dataclass as in `validate_parameters`.
    baseline_names : collection of str
        As in `reject_unknown_parameters`.

    Returns
    -------
    object
        An instance of `schema`.

    Raises
    ------
    ParameterError
        On a misspelt name, a missing value, a value of another type or out of range.
    """
    names = [field.name for field in dataclasses.fields(schema)]
    reject_unknown_parameters(namespace, names, baseline_names)
    return validate_parameters({name: namespace[name] for name in names if name in namespace}, schema)
