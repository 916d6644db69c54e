"""Enter pruners' contexts, and know which is entered where a model is called.

A context belongs to the thread that enters it, or the asynchronous task; one entered inside a generator, such as a
stream of answers, to the generator: it prunes while that runs, whichever thread runs it, and not while it waits.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

from rcblib.mllm import adapter_for
from rcblib.mllm.calls import doors, is_generating, running_frames
from rcblib.mllm.wrapping import wrapping
from rcblib.pruners.generation import Pruned
from rcblib.pruners.steps import is_at_work
from rcblib.records import ParameterError

_ENTERED: ContextVar[tuple[Pruned, ...]] = ContextVar("entered", default=())
_IN_GENERATORS: list[tuple[FrameType, Pruned]] = []

_OF_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


@contextmanager
def pruning(
    pruner: Any, model: Any, processor: Any = None, image_indices: Sequence[int] | None = None
) -> Iterator[Pruned]:
    """Prune what a model generates inside the ``with`` block; see `Pruner.__call__`."""
    chain = wrapping(model)
    adapter = adapter_for(model, processor)
    pruner.check(adapter)
    if any(own.pruner is pruner or own.is_of(adapter.model) for own in _entered_here()):
        raise ParameterError(
            "model", "a pruner inside a pruner's context", "one pruner for a model at a time"
        )
    pruned = Pruned(pruner, adapter, None if image_indices is None else tuple(image_indices), chain)
    generator, entered, in_generators = _generator_that_enters(), _ENTERED, _IN_GENERATORS
    _note(pruner, pruned)
    with doors(chain, _answerer):
        if generator is not None:
            in_generators.append((generator, pruned))
        else:
            entered.set((*entered.get(), pruned))
        is_in_generator, generator = generator is not None, None
        try:
            yield pruned
        finally:  # maybe of a generator that is forgotten until Python ends, when names of modules are gone
            entered.set(tuple(own for own in entered.get() if own is not pruned))
            for own in [own for own in tuple(in_generators) if own[1] is pruned]:
                in_generators.remove(own)  # at once, as other threads enter and leave meanwhile
            pruned.close()
    if not pruned.is_used:
        name, why = type(pruner).__name__, _why_nothing(pruned, is_in_generator)
        warnings.warn(f"pruner: nothing was pruned in this context of {name}; {why}", stacklevel=5)


class Logs(threading.local):
    """Hold the latest context of a pruner: of each thread, and of any."""

    here: Pruned | None = None

    def __init__(self, latest: list[Pruned]):
        self.latest = latest


def _note(pruner: Any, pruned: Pruned) -> None:
    """Take a context as a pruner's latest."""
    logs = vars(pruner).setdefault(
        "_log", Logs([pruned])
    )  # no field: neither compared nor part of the method
    logs.here, logs.latest[:] = pruned, [pruned]


def _why_nothing(pruned: Pruned, is_in_generator: bool) -> str:
    """Say why it may be that nothing was pruned."""
    if pruned.n_without_images:
        return f"{pruned.n_without_images} calls came without images: were pixels left out?"
    waits = "while the generator that entered it waited, " if is_in_generator else ""
    return (
        "no call reached it. Was `generate` taken from the model before the context was entered, or called "
        f"{waits}on a copy, on another model, or in another thread (give that `pruned.generate`)?"
    )


def _answerer(model: Any, name: str) -> Pruned | None:
    """Return the context that is entered where a model is called; none inside of what it does itself."""
    if is_at_work():
        return None
    for own in _entered_here():
        if own.is_of(model):
            return None if name == "forward" and is_generating() else own
    return None


def _entered_here() -> Iterator[Pruned]:
    """Yield the open contexts of the generators that run here, the innermost first, then those of the thread."""
    if in_generators := tuple(_IN_GENERATORS):
        for frame in running_frames():
            yield from (own for running, own in reversed(in_generators) if running is frame)
    yield from (own for own in reversed(_ENTERED.get()) if own.is_open)


def _generator_that_enters() -> FrameType | None:
    """Return the frame of the generator whose ``with`` block it is, ``None`` where it is no generator's.

    A function that `contextlib` makes a context manager of passes a context on to whose block that is.
    """
    for frame in running_frames():
        caller = frame.f_back
        is_generator = bool(frame.f_code.co_flags & _OF_GENERATORS)
        is_passed_on = is_generator and caller is not None and _is_contextlib(caller)
        if not (_is_contextlib(frame) or is_passed_on or frame.f_code.co_filename == __file__):
            return frame if is_generator else None
    return None


def _is_contextlib(frame: FrameType) -> bool:
    return frame.f_code.co_filename == contextlib.__file__
