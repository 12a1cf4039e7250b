"""BatchNorms folded into convolutions: the same numbers, and nothing folded that others see."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.inference import fold_norms
from models.networks import build_network

# All networks of a kind share their units; these are the smallest of each.
NETWORKS = {"R_50": 24, "MFN": 0, "iresnet18": 9, "adaface_ir_18": 9, "evolve_ir_50": 25}


def settle(network: nn.Module) -> nn.Module:
    """Gives every BatchNorm statistics, weights and offsets of its own."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    with torch.no_grad():
        network.train()(torch.rand(8, 3, 112, 112) * 2 - 1)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("recognition", [False, True])
@pytest.mark.parametrize("backbone", NETWORKS)
def test_the_same_numbers_with_fewer_norms(backbone: str, recognition: bool) -> None:
    network = settle(build_network(backbone, recognition=recognition))
    folded = copy.deepcopy(network)
    fold_norms(folded)
    assert norms(folded) == NETWORKS[backbone] < norms(network)
    faces = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.inference_mode():
        expected, found = network(faces), folded(faces)
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()
    fold_norms(folded)  # once more: nothing is left to fold
    with torch.inference_mode():
        assert torch.equal(folded(faces), found)


class Shared(nn.Module):
    """What one convolution gives is normed, and used as it is, too; another feeds a norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3) for _ in range(3))
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        out: Tensor = self.other(self.third(self.norm(x) + x))
        return out


class Twice(Shared):
    """One convolution that runs twice, before a norm and before none."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.norm(self.second(self.first(x))))
        return out


class SameNorm(Shared):
    """One norm that runs twice, after a convolution and after none."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.other(self.third(self.norm(self.second(self.norm(x)))))
        return out


@pytest.mark.parametrize(
    ("kind", "left"), [(Shared, {"norm"}), (Twice, {"norm", "other"}), (SameNorm, {"norm"})]
)
def test_what_others_see_is_not_folded(kind: type[Shared], left: set[str]) -> None:
    network = settle(kind())
    folded = copy.deepcopy(network)
    fold_norms(folded)
    kept = {name for name, child in folded.named_children() if isinstance(child, nn.BatchNorm2d)}
    assert kept == left
    x = torch.rand(1, 3, 112, 112)
    with torch.inference_mode():
        assert torch.allclose(folded(x), network(x), atol=1e-4)
