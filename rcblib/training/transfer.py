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


def _pool_heads(weight: torch.Tensor, n_rows: int, module: nn.Module) -> torch.Tensor:
    """Average the rows of consecutive heads, `(n_heads * d_head, d)` to `(n_rows, d)`."""
    width = module.config.head_dim
    groups = weight.view(n_rows // width, -1, width, weight.shape[1])
    return groups.mean(1).reshape(n_rows, -1)
