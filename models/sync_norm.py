"""BatchNorm over the batches of all processes, on any device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all processes' equal batches together.

    torch's own SyncBatchNorm does the same on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x.float()
        values = x.numel() // x.shape[1] * dist.get_world_size()  # averaged over, per channel
        # Two passes: the plain difference of mean square and squared mean cancels digits.
        mean = all_reduce(x.sum((0, 2, 3))) / values  # type: ignore[no-untyped-call]  # (C,)
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / values  # type: ignore[no-untyped-call]  # (C,)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (values / (values - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        out: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return out.to(dtype)


def with_shared_statistics(network: nn.Module) -> nn.Module:
    """The same network, every BatchNorm2d in it replaced; keys and weights stay."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum or 0.1)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared)
        else:
            with_shared_statistics(child)
    return network
