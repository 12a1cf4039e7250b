"""Our PReLU, against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.backbones.layers import PReLU


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (7, 5)])
def test_prelu_is_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = PReLU(5).double(), nn.PReLU(5).double()
    with torch.no_grad():
        ours.weight.uniform_(-1, 1)
    theirs.load_state_dict(ours.state_dict())
    grad = torch.randn(shape, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    x[0] = 0
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, at in zip((ours, theirs), inputs, strict=True):
        module(at).backward(grad)
    assert torch.equal(ours(inputs[0]), theirs(inputs[1]))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
