"""Update weight matrices by Muon in float32; `torch.optim.Muon` works in bfloat16, which older CPUs emulate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# Odd quintic whose iteration drives every singular value near 1 (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

N_ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1 by Newton-Schulz iteration; `(n, rows, columns)` in and out."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    for _ in range(N_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Step along the orthogonalised momentum, scaled so that its root mean square is 0.2, as AdamW's typically is.

    Parameters
    ----------
    params : iterable
        Matrices, or parameter groups of them.
    lr : float
        Learning rate on AdamW's scale.

    Source: Jordan et al. 2024; the scaling is that of Liu et al. 2025 (arXiv 2502.16982).
    """

    def __init__(
        self, params: Iterable, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.02
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix that has a gradient; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for (rows, columns), parameters in shapes.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(state["momentum"], group["momentum"]))
                scale = 0.2 * max(rows, columns) ** 0.5
                for parameter, update in zip(
                    parameters, orthogonalize(torch.stack(updates).float()), strict=True
                ):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)
