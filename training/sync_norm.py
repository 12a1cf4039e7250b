"""BatchNorm over the batches of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all processes' batches together.

    For CPUs: torch's own SyncBatchNorm, which does the same, runs on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x if x.dtype == torch.float64 else x.float()
        # Values per channel; unreadable images make the batches of processes differ in size.
        values = _Sum.apply(torch.tensor(x.numel() / x.shape[1], dtype=torch.float64))
        # Two passes, because mean square minus squared mean would lose digits.
        mean = _Sum.apply(x.sum((0, 2, 3))) / values  # (C,)
        centred = x - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / values  # (C,)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            unbiased = variance * (values / (values - 1))
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        out: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return out.to(dtype)


def with_shared_statistics(network: nn.Module, device: torch.device) -> nn.Module:
    """Replaces every BatchNorm2d of a network; its keys and weights stay the same.

    A GPU gets torch's own SyncBatchNorm: it keeps one map in half precision, and the class above
    keeps several in float32.
    """
    if device.type == "cuda":
        own: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return own
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            shared = SharedBatchNorm2d(module.num_features, module.eps, module.momentum or 0.1)
            shared.load_state_dict(module.state_dict())
            network.set_submodule(name, shared)
    return network


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.forward(ctx, grads[0])
