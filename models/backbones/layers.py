"""The parts that several networks share: PReLU, the strided convolution, the quality head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.device import in_float32

EMBEDDING_DIM = 512
MAP = 512 * 7 * 7  # values of the last feature map of every IR network
# In points of the label scale. The scores of a head with a floor stay above 0. They leave the
# straight line at about twice this value.
FLOOR = 10.0


class PReLU(nn.PReLU):
    """nn.PReLU, with the same weights and values, and a faster gradient on a CPU.

    torch's own backward pass branches on every element there, and takes almost half of a training
    step of MobileFaceNet. A few vector operations take a quarter of that time (measured in
    benchmarks/speed_training.py).
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


class Convolution(nn.Conv2d):
    """nn.Conv2d, in float32 where a CPU's bf16 gradient is slow.

    That gradient is the one of a depthwise convolution with stride 2. In bf16 it takes eleven times
    as long as in float32 (oneDNN, torch 2.15).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W')."""
        strided = self.groups > 1 and self.stride[0] > 1
        if strided and x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.requires_grad:
            return in_float32(super().forward, x).to(x.dtype)
        return super().forward(x)


def head(outputs: int, dropout: float, values: int = MAP) -> nn.Sequential:
    """Makes the published head, (B, C, H, W) -> (B, outputs); its weights are at 1 and 3.

    Args:
        outputs: 1 for a quality, 512 for an embedding.
        dropout: share of the inputs dropped while training.
        values: C x H x W of its input.
    """
    return nn.Sequential(
        nn.Flatten(), PReLU(values), nn.Dropout(dropout), nn.Linear(values, outputs)
    )


def add_floor(quality: nn.Sequential, floor: float = FLOOR) -> None:
    """Gives a quality head a last step, floor log(1 + exp(x / floor)), if it has none.

    Without it, unrecognisable faces would get arbitrary scores around 0. The step has no weights,
    so the keys stay the published ones. The .json next to a checkpoint records it.
    """
    if floor_of(quality) is None:
        quality.append(nn.Softplus(beta=1 / floor))


def floor_of(quality: nn.Sequential) -> float | None:
    """The floor of a quality head, if it has one."""
    last = quality[-1]
    return 1 / last.beta if isinstance(last, nn.Softplus) else None
