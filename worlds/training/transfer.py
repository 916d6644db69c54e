"""Start a model from the weights of another family, where shapes allow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


@torch.no_grad()
def adopt(module: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Copy parameters by name; convert what differs by form, leave what has no counterpart.

    Converted are: keys and values of several heads into fewer (the mean over each group of heads), position embeddings
    of an encoder with [CLS] into one without (the row of [CLS] is dropped), and a vocabulary into a longer one that
    begins with the same words.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.
    state : Mapping
        Parameters of a module of the same naming.

    Returns
    -------
    dict of list of str
        Names under ``copied``, ``converted`` and ``fresh``.

    Notes
    -----
    Source: Ainslie et al. 2023 (mean-pooled key and value heads).
    """
    report: dict[str, list[str]] = {"copied": [], "converted": [], "fresh": []}
    for name, parameter in module.named_parameters():
        given = state.get(name)
        if given is None:
            kind = "fresh"
        elif given.shape == parameter.shape:
            kind = "copied"
        elif name.endswith(("k_proj.weight", "v_proj.weight")) and given.shape[0] % parameter.shape[0] == 0:
            given, kind = _pool_heads(given, parameter.shape[0], module), "converted"
        elif name.endswith("position_embedding.weight") and len(given) == len(parameter) + 1:
            given, kind = given[1:], "converted"
        elif name.endswith("embed_tokens.weight") and len(given) < len(parameter):
            given, kind = torch.cat([given, parameter[len(given) :]]), "converted"
        else:
            kind = "fresh"
        if kind != "fresh":
            parameter.copy_(given)
        report[kind].append(name)
    return report


def identity_layers(
    decoder: nn.Module, state: Mapping[str, torch.Tensor], prefix: str
) -> dict[str, torch.Tensor]:
    """Return parameters for the layers that a state of fewer layers lacks, which change nothing at first.

    Parameters
    ----------
    decoder : torch.nn.Module
        A decoder with ``layers``, just made; what each further layer adds is set to zero, so that it passes on what it
        is given.
    state : Mapping
        Parameters of a trainer that holds such a decoder with as many layers or fewer.
    prefix : str
        Of the decoder's parameters in `state`.

    Notes
    -----
    Source: Chen et al. 2016 (Net2Net), deepening without changing the function.
    """
    further = {}
    for name, parameter in decoder.named_parameters(prefix=prefix.removesuffix(".")):
        if ".layers." in name and name not in state:
            added = name.endswith(("o_proj.weight", "down_proj.weight"))
            further[name] = torch.zeros_like(parameter) if added else parameter.detach().clone()
    return further


def _pool_heads(weight: torch.Tensor, n_rows: int, module: nn.Module) -> torch.Tensor:
    """Average the rows of consecutive heads, `(n_heads * d_head, d)` to `(n_rows, d)`."""
    width = module.config.head_dim
    groups = weight.view(n_rows // width, -1, width, weight.shape[1])
    return groups.mean(1).reshape(n_rows, -1)
