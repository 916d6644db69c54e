"""Hook modules for the thread that asks for it, as another may run the same model at the same time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def hooked(
    hooks: Mapping[torch.nn.Module, Callable[..., Any]], *, before: bool = False, with_kwargs: bool = False
) -> Iterator[None]:
    """Hook modules inside the ``with`` block; what other threads run through them stays as it is.

    Parameters
    ----------
    hooks : Mapping
        Modules, and what each is hooked with, as ``register_forward_hook`` or ``register_forward_pre_hook`` takes it.
    before : bool
        Whether a hook is called before its module runs.
    with_kwargs : bool
        Whether it is given keyword arguments too.
    """
    thread = threading.get_ident()

    def of_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def only_here(*arguments: Any) -> Any:
            return hook(*arguments) if threading.get_ident() == thread else None

        return only_here

    with ExitStack() as handles:
        for module, hook in hooks.items():
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            handles.callback(register(of_thread(hook), with_kwargs=with_kwargs).remove)
        yield
