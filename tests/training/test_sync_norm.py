"""BatchNorm over several processes, against torch's."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from models.networks import build_network
from training.sync_norm import with_shared_statistics


def test_shared_statistics_are_batch_norms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    shared = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    shared.load_state_dict(plain.state_dict())
    with_shared_statistics(shared, torch.device("cpu"))
    shared.double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for module in (plain, shared):
            module(x).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for (name, ours), theirs in zip(shared.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name].to(value), value, rtol=1e-5, atol=1e-6)


def test_on_gpus_shared_statistics_are_torchs_own() -> None:
    plain = build_network("MFN")
    keys = list(plain.state_dict())
    shared = with_shared_statistics(plain, torch.device("cuda", 0))
    norms = [module for module in shared.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) > 40 and not any(type(m) is nn.BatchNorm2d for m in shared.modules())
    assert list(shared.state_dict()) == keys
