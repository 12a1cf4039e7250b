"""PReLU whose gradient costs a CPU no more than its arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PReLU(nn.PReLU):
    """nn.PReLU, the same weights and values.

    torch's own backward pass chooses element by element on the CPU, and there takes near half of a
    MobileFaceNet's training step. Written as a few vector operations it takes a quarter of that
    (measured in benchmarks/speed_training.py).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape: x where x > 0, else weight_c x."""
        if x.device.type == "cpu" and torch.is_grad_enabled() and x.requires_grad:
            out: Tensor = _VectorPReLU.apply(x, self.weight)
            return out
        return super().forward(x)


class _VectorPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.prelu(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        slope = weight.to(x.dtype).view(-1, *[1] * (x.dim() - 2))  # against (B, C, ...)
        above = torch.ops.aten.threshold_backward(grad, x, 0)  # grad where x > 0, else 0
        below = grad - above
        channels = [0, *range(2, x.dim())]
        grad_weight = (below * x).sum(channels, dtype=weight.dtype)
        return torch.addcmul(above, below, slope), grad_weight
