"""Know vision encoders of LLaVA models; read signals off one while it makes the state that the connector gets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from rcblib.mllm.hooks import hooked
from rcblib.tensors.geometry import cosine_to_cls

HAS_CLS: dict[str, bool] = {"clip_vision_model": True, "dinov2": True, "siglip_vision_model": False}
"""Whether the first row of a hidden state is a [CLS], by the ``model_type`` of each supported vision encoder.

All other rows must be patches in raster order, and attention must have ``q_proj`` and ``k_proj``, with heads of
``head_dim``. Encoders with further rows, such as registers, cannot be entered: LLaVA takes off one row at most.
"""

CLS_SIGNALS = frozenset({"cls_similarity", "cls_attention", "last_cls_attention"})
LAYER_SIGNALS = frozenset({"cls_attention", "received_attention", "keys"})
"""Signals read inside the layer that makes the selected state."""
LAST_SIGNALS = frozenset({"last_cls_attention", "last_keys"})
"""Signals read inside the encoder's last layer, all heads taken as one."""


def offered_signals(has_cls: bool) -> frozenset[str]:
    """Return the names of the signals of an encoder with or without [CLS]."""
    there = LAYER_SIGNALS | LAST_SIGNALS | CLS_SIGNALS | {"hidden_states"}
    return there if has_cls else there - CLS_SIGNALS


class EncoderSignals:
    """Read signals of every grid that goes through a vision encoder once.

    Parameters
    ----------
    tower : torch.nn.Module
        A vision encoder of `transformers`, of a kind in `HAS_CLS`.
    selected : int
        Number of the hidden state that the connector gets, as ``vision_feature_layer``; not that of the embeddings.
    has_cls : bool
        Whether the first row of a hidden state is a [CLS].

    Attributes
    ----------
    offers : frozenset of str
        Names of the signals that there are.

    Notes
    -----
    Attention and keys are computed from the layer's input and projections, so that the tokens are the same with and
    without them, whichever attention implementation the model runs. Signals are float32 on the CPU.
    """

    def __init__(self, tower: Any, selected: int, has_cls: bool):
        self.has_cls, self.selected = has_cls, selected
        layers = [part for part in tower.modules() if hasattr(part, "q_proj") and hasattr(part, "k_proj")]
        self.layer, self.last = (
            layers[selected % (len(layers) + 1) - 1],
            layers[-1],
        )  # state 0 is the embeddings
        self.offers = offered_signals(has_cls)

    @contextmanager
    def reading(self, needs: Collection[str]) -> Iterator[_Reading]:
        """Read what is needed of what passes through the encoder, once, inside the ``with`` block."""
        reading = _Reading(self, self.offers & set(needs))
        with ExitStack() as stack:
            if reading.needs & LAYER_SIGNALS:
                stack.enter_context(hooked({self.layer: reading.read_layer}, with_kwargs=True))
            if reading.needs & LAST_SIGNALS:
                stack.enter_context(hooked({self.last: reading.read_last}, with_kwargs=True))
            yield reading


class _Reading:
    """Hold the signals of one pass, one mapping a grid."""

    def __init__(self, source: EncoderSignals, needs: frozenset[str]):
        self.source, self.needs = source, needs
        self.found: dict[str, Sequence[torch.Tensor]] = {}

    def read_layer(self, module: Any, arguments: tuple, named: dict, _output: Any) -> None:
        """Keep attention and keys of a layer that has just run; a forward hook."""
        hidden, n_cls, found = given_states(arguments, named), int(self.source.has_cls), self.found

        def heads(rows: torch.Tensor) -> torch.Tensor:
            """Return ``(n_grids, n_heads, n_rows, d_head)``."""
            return rows.unflatten(-1, (-1, module.head_dim)).transpose(1, 2)

        def attention(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            scores = query @ key.transpose(-1, -2) * module.head_dim**-0.5
            return scores.float().softmax(-1)

        key = heads(module.k_proj(hidden))
        if "keys" in self.needs:
            found["keys"] = key[:, :, n_cls:].float().mean(1).cpu()
        if "cls_attention" in self.needs:
            query = heads(module.q_proj(hidden[:, :1]))
            found["cls_attention"] = attention(query, key).mean(1)[:, 0, 1:].cpu()
        if "received_attention" in self.needs:
            query = heads(module.q_proj(hidden[:, n_cls:]))
            pairs = zip(query, key, strict=True)  # a grid at a time: the maps of many tiles are large
            found["received_attention"] = [attention(*pair).mean((0, 1))[n_cls:].cpu() for pair in pairs]

    def read_last(self, module: Any, arguments: tuple, named: dict, _output: Any) -> None:
        """Keep attention and keys of the encoder's last layer, its heads taken as one; a forward hook."""
        hidden, n_cls = given_states(arguments, named), int(self.source.has_cls)
        key = module.k_proj(hidden)
        if "last_keys" in self.needs:
            self.found["last_keys"] = key[:, n_cls:].float().cpu()
        if "last_cls_attention" in self.needs:
            scores = module.q_proj(hidden[:, :1]) @ key.transpose(-1, -2) * key.shape[-1] ** -0.5
            self.found["last_cls_attention"] = scores.float().softmax(-1)[:, 0, 1:].cpu()

    def signals(self, states: tuple[torch.Tensor, ...]) -> list[dict[str, torch.Tensor]]:
        """Return the signals of each grid, given all hidden states, ``(n_grids, n_rows, d)`` each."""
        selected = states[self.source.selected]
        by_grid = []
        for i, rows in enumerate(selected):
            found = {name: values[i] for name, values in self.found.items()}
            if "cls_similarity" in self.needs:
                found["cls_similarity"] = cosine_to_cls(rows.cpu())
            if "hidden_states" in self.needs:
                found["hidden_states"] = rows[int(self.source.has_cls) :].float().cpu()
            by_grid.append(found)
        return by_grid


def given_states(arguments: tuple, named: dict) -> torch.Tensor:
    """Return the hidden states ``(n_grids, n_rows, d)`` that a layer's attention was given."""
    return named["hidden_states"] if "hidden_states" in named else arguments[0]
