"""Let somebody else answer calls of a model's `generate` and `forward`, for those who are to be answered otherwise.

Doors are put into the class, so that the model itself, which others may run, copy or save meanwhile, stays as it is;
into the model only in front of a method that it has of its own, as one spread over devices has.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from transformers import GenerationMixin


class Answerer(Protocol):
    """Answer calls in place of a model; `plain` is its own method."""

    def answer_generate(self, plain: Callable[..., Any], arguments: tuple, named: dict[str, Any]) -> Any:
        """Answer a call of ``model.generate``."""

    def answer_forward(self, plain: Callable[..., Any], arguments: tuple, named: dict[str, Any]) -> Any:
        """Answer a call of ``model(...)``."""


Find = Callable[[Any, str], Answerer | None]
"""Says who answers for a model, ``None`` for itself, when its `generate` is asked for or its `forward` called."""

_COMPILED = "_compiled_call_impl"
"""Where a module has what is called in place of its forward after ``compile()``."""

_LOCK = threading.Lock()
_DOORS: dict[tuple[int, str], _Door] = {}


@contextmanager
def doors(models: Iterable[Any], find: Find) -> Iterator[None]:
    """Keep doors in front of `generate` and `forward` of some models inside the ``with`` block.

    Parameters
    ----------
    models : iterable
        A model and what it is wrapped in.
    find : callable
        Asked at every call. Who takes ``model.generate`` where it says somebody takes his answers along, also into
        another thread.

    Notes
    -----
    While ``torch.compile`` traces a model nobody is asked: what is compiled is the model's own.
    """
    with ExitStack() as open_doors:
        for model in models:
            for name in ("generate", "forward", _COMPILED):
                if vars(model).get(name) is not None:
                    open_doors.enter_context(_door(model, name, find))
                elif hasattr(type(model), "generate") and name != _COMPILED:  # no wrapper
                    open_doors.enter_context(_door(type(model), name, find))
        yield


def plain_generate(model: Any) -> Callable[..., Any]:
    """Return a model's own `generate`, whatever door stands in front of it."""
    own = vars(model).get("generate")
    if own is not None:
        return own.original if isinstance(own, _OfModel) else own
    of_class = inspect.getattr_static(model, "generate")
    return (of_class.original if isinstance(of_class, _OfClass) else of_class).__get__(model)


def is_generating() -> bool:
    """Tell whether a `generate` of transformers runs here."""
    code = inspect.unwrap(GenerationMixin.generate).__code__
    return any(frame.f_code is code for frame in running_frames())


def running_frames() -> Iterator[FrameType]:
    """Yield the frames of the functions that run here, from the innermost."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


@contextmanager
def _door(owner: Any, name: str, find: Find) -> Iterator[None]:
    key, lock, opened = (id(owner), name), _LOCK, _DOORS
    with lock:
        if key not in opened:
            opened[key] = _Door(owner, name, find)
        opened[key].n_open += 1
    try:
        yield
    finally:
        with lock:
            opened[key].n_open -= 1
            if not opened[key].n_open:
                opened.pop(key).take_away()


class _Door:
    """Stand in front of a method as long as anybody wants it."""

    def __init__(self, owner: Any, name: str, find: Find):
        self.owner, self.name, self.n_open = owner, name, 0
        self.own = vars(owner).get(name)
        if not isinstance(owner, type):
            vars(owner)[name] = _OfModel(self.own, find, owner, name)
        elif name == "generate":
            owner.generate = _OfClass(inspect.getattr_static(owner, name), find)
        else:
            owner.forward = _forward(inspect.getattr_static(owner, name), find)

    def take_away(self) -> None:
        if not isinstance(self.owner, type):
            vars(self.owner)[self.name] = self.own
        elif self.own is None:
            delattr(self.owner, self.name)  # it was inherited
        else:
            setattr(self.owner, self.name, self.own)


class _OfClass:
    """Bind `generate` to its model, and to who answers for it where it is asked for."""

    def __init__(self, original: Any, find: Find):
        self.original, self.find = original, find

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        plain = self.original.__get__(model, owner)
        answerer = None if model is None else self.find(model, "generate")
        if answerer is None:
            return plain

        @functools.wraps(plain)
        def generate(*arguments: Any, **named: Any) -> Any:
            return answerer.answer_generate(plain, arguments, named)

        return generate


def _forward(original: Callable[..., Any], find: Find) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        answerer = None if torch.compiler.is_compiling() else find(self, "forward")
        if answerer is None:
            return original(self, *arguments, **named)
        return answerer.answer_forward(functools.partial(original, self), arguments, named)

    return forward


class _OfModel:
    """Stand in front of a method that a model has of its own; a copy of the model has a copy of that."""

    def __init__(self, original: Callable[..., Any], find: Find, model: Any, name: str):
        functools.update_wrapper(self, original, updated=())
        self.original, self.find, self.model = original, find, model
        self.name = "generate" if name == "generate" else "forward"

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        answerer = None if torch.compiler.is_compiling() else self.find(self.model, self.name)
        if answerer is None:
            return self.original(*arguments, **named)
        return getattr(answerer, f"answer_{self.name}")(self.original, arguments, named)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.original,)


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method
