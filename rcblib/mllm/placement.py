"""Find the parts of a model, and the devices that they compute on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def module_device(module: torch.nn.Module) -> torch.device:
    """Return the device that a module computes on.

    Parameters
    ----------
    module : torch.nn.Module
        A model or a part of one.

    Returns
    -------
    torch.device
        That of its first parameter. Where weights are kept elsewhere and brought in for each call, as a `device_map`
        with parts on the CPU or the disk does, the device that they are brought to.
    """
    for part in module.modules():
        brought_to = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if brought_to is not None:
            return (
                torch.device("cuda", brought_to) if isinstance(brought_to, int) else torch.device(brought_to)
            )
    return next(module.parameters()).device


def weights_by_name(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters of a model with their values, also where a `device_map` keeps them on the CPU or the disk.

    Parameters
    ----------
    model : torch.nn.Module
        The model, in parts or not.

    Yields
    ------
    name, weight : str, torch.Tensor
        As ``named_parameters``, in its order; what is kept elsewhere is on the CPU until the next one.
    """
    for name, weight in model.named_parameters():
        if not weight.is_meta:
            yield name, weight
            continue
        from accelerate.utils import align_module_device  # it is there where parts are kept elsewhere

        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        with align_module_device(module, "cpu"):
            yield name, getattr(module, own_name)


def outside_llm(model: Any) -> list[str]:
    """List the modules of a multimodal model that are no part of its LLM.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Weights are not looked at: one on the meta device will do.

    Returns
    -------
    list of str
        Dotted names, as few as say it: vision encoder, connector and the head that turns states into logits.
    """
    decoder = model.get_decoder()
    names = {module: name for name, module in model.named_modules()}
    inside = names[decoder]
    found: list[str] = []
    for name in names.values():
        is_around = not name or inside.startswith(f"{name}.")
        is_within = name == inside or name.startswith(f"{inside}.")
        is_covered = any(name.startswith(f"{outer}.") for outer in found)
        if not (is_around or is_within or is_covered):
            found.append(name)
    return found
