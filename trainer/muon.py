"""Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon), the optimizer for weights that are matrices.

It computes as torch.optim.Muon does, with its factors, but in fp32 and in fewer operations. torch's own always computes
in bf16, which took a quarter of the step's time where the processor has no instructions for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Nesterov momentum; each matrix then moves by the nearest orthogonal one. `lr` counts for square matrices."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                average = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                direction = orthogonal(weight.grad.lerp(average, group["momentum"]))
                rate = group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V of the matrix's singular value decomposition U S V: 3 rounds of Newton and Schulz.

    Each round multiplies the matrix from the left by a polynomial of its Gram matrix, and all of these commute. So the
    rounds are made on the Gram matrix, which is small, and the matrix itself is multiplied once.
    """
    x = matrix / matrix.norm().clamp(min=1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    gram = x @ x.T
    factor = torch.eye(len(gram), device=gram.device)
    for _ in range(3):
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal().add_(3.4445)
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    nearest: Tensor = factor @ x
    return nearest.T if tall else nearest
