"""Find the model inside what it was wrapped in."""

from __future__ import annotations

from typing import Any

import torch

from rcblib.records import ParameterError


def wrapping(model: Any) -> list[Any]:
    """List what a model is wrapped in, from the outermost, and the model itself last.

    Parameters
    ----------
    model
        A model of `transformers`, or one as PEFT's ``get_peft_model`` returns it, compiled by ``torch.compile``, in
        ``DataParallel`` or ``DistributedDataParallel``, or held as ``model`` by something that is no module, such as a
        pipeline. What PEFT changed in its layers stays at work.

    Raises
    ------
    ParameterError
        If PEFT puts learned rows into prompts, of which the model alone knows nothing.
    """
    chain = [model]
    while (inner := _inside(chain[-1])) is not None:
        chain.append(inner)
    return chain


def unwrapped(model: Any) -> Any:
    """Return the model inside what it was wrapped in; see `wrapping`."""
    return wrapping(model)[-1]


def _inside(model: Any) -> Any:
    """Return what is wrapped, ``None`` where nothing is."""
    if not isinstance(model, torch.nn.Module):
        held = getattr(model, "model", None)
        return held if isinstance(held, torch.nn.Module) else None
    if hasattr(type(model), "get_base_model"):  # PEFT's, which need not be installed
        learned = [own.peft_type.value for own in model.peft_config.values() if own.is_prompt_learning]
        if learned:
            accepted = "an adapter that changes layers, such as LoRA, or the model without any"
            raise ParameterError("model", f"PEFT's {learned[0]}, which puts rows into prompts", accepted)
        return model.get_base_model()
    if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return model.module
    return getattr(model, "_orig_mod", None)  # of a compiled one
