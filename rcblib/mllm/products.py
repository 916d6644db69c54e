"""Multiply by weights as fast as the processor can, and only the rows that are read, while an LLM runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

N_ROWS = 16
"""Rows from which on oneDNN is not slower, though it reorders the weights each time."""

_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)


class LastRows(TorchFunctionMode):
    """Run a model of which only the last row of each prompt is read, for the thread that enters it.

    What follows the last layer's attention is computed for that row alone; where weights are multiplied in float32 on a
    CPU, oneDNN does it: it uses the whole width of the vector units of processors on which MKL, which torch asks by
    default, uses half. Results differ by rounding in float32. Nothing is changed in the model.

    Parameters
    ----------
    layers : sequence of torch.nn.Module
        Of the LLM.
    """

    def __init__(self, layers: Sequence[torch.nn.Module]):
        super().__init__()
        self._last = after_attention(layers[-1])

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Multiply by a weight; leave everything else as it is."""
        if func is not linear or kwargs or len(args) < 2:
            return func(*args, **(kwargs or {}))
        rows, weight, *bias = args
        # Asked of the modules at each call: those that are kept on disk hold other weights each time they run.
        if rows.ndim == 3 and any(weight is module.weight for module in self._last):
            rows = rows[:, -1:]  # what it is added to is as wide, and right in its last row
        if (
            _ONEDNN is None
            or rows.device.type != "cpu"
            or rows.dtype != torch.float32
            or weight.dtype != torch.float32
            or rows.numel() < N_ROWS * rows.shape[-1]
        ):
            return func(rows, weight, *bias)
        return _ONEDNN(rows, weight, bias[0] if bias else None, "none", [], "")


def after_attention(layer: torch.nn.Module) -> list[torch.nn.Linear]:
    """List the modules of a decoder layer that rows pass after attention has looked at all of them."""
    attention = getattr(layer.self_attn, "o_proj", None)
    modules = [*layer.mlp.modules(), *([] if attention is None else attention.modules())]
    return [module for module in modules if isinstance(module, torch.nn.Linear)]
