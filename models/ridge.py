"""The head of a quality network in closed form: ridge regression on a trunk as it stands."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from models.device import Compute
from models.networks import FaceModel
from models.world import World

POOLED = 2  # positions a side of the map that the head tells apart
# Weight of the slopes' squares, as a share of the features' mean variance. Of ten between .001 and
# 10, 1 and 2 rank the faces of unseen people best (SFace, 131 people in five folds; docs/model.md).
PENALTY = 1.0


class Ridge:
    """Weighted ridge regression, summed up part by part; the parts may lie on several processes."""

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        """Nothing seen yet; `size` features."""
        # Weighted sums of all products among features, a one and the target.
        self._sums = torch.zeros(size + 2, size + 2, dtype=torch.float64, device=device)

    def add(self, features: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Sees (B, D) features with (B,) targets and (B,) weights."""
        ones = torch.ones_like(targets)
        # Double precision: the means, subtracted in the end, may be far larger than what varies.
        rows = torch.cat([features, ones[:, None], targets[:, None]], 1).double()
        self._sums += (rows * weights[:, None]).T @ rows

    def reduce(self) -> None:
        """Adds up what all processes have seen; every process must ask."""
        dist.all_reduce(self._sums)

    def solve(self, penalty: float = PENALTY) -> tuple[Tensor, float]:
        """(D,) float64 slopes and the level: a target is features @ slopes + level."""
        size = len(self._sums) - 2
        total = self._sums[size, size]
        means = self._sums[size] / total
        products = self._sums - total * torch.outer(means, means)
        squares = products[:size, :size]
        shrink = penalty * squares.diagonal().mean()
        squares.diagonal().add_(shrink.clamp(min=1e-12))  # above 0 where nothing varies
        slopes = torch.linalg.solve(squares, products[:size, size + 1])
        return slopes, float(means[size + 1] - means[:size] @ slopes)


def pooled(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C x POOLED x POOLED) float32: means over parts of the map."""
    return functional.adaptive_avg_pool2d(feature_map.float(), POOLED).flatten(1)


@torch.inference_mode()
def fit_head(
    model: nn.Module,
    examples: Iterable[tuple[Tensor, Tensor, Tensor]],
    compute: Compute,
    world: World,
) -> None:
    """Gives a quality network a head fitted to the labels on its trunk's last map.

    The head is linear in the map averaged to 2 x 2 and stands in the published head's place: its
    PReLU slopes become 1, its weights repeat over the positions that were averaged.

    Args:
        model: a FaceModel; its trunk stays as it is, BatchNorm statistics included.
        examples: this process's part: (B, 112, 112, 3) uint8 faces, (B,) labels, (B,) weights.
        compute: the precision of the trunk.
        world: the processes that see the parts.
    """
    assert isinstance(model, FaceModel)
    head = model.network.quality
    assert isinstance(head, nn.Sequential)
    maps: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    model.eval()
    ridge: Ridge | None = None
    for faces, labels, weights in examples:
        with compute.autocast():
            model(faces)
        features = pooled(maps[-1])
        if ridge is None:
            ridge = Ridge(features.shape[1], features.device)
        ridge.add(features, labels, weights)
        del maps[:-1]
    hook.remove()
    assert ridge is not None
    if world.size > 1:
        ridge.reduce()
    slopes, level = ridge.solve()
    _, channels, height, width = maps[-1].shape
    places = torch.eye(height * width, dtype=slopes.dtype, device=slopes.device)
    parts = functional.adaptive_avg_pool2d(places.view(-1, 1, height, width), POOLED).flatten(1)
    prelu, linear = head[1], head[3]
    assert isinstance(prelu, nn.PReLU) and isinstance(linear, nn.Linear)
    prelu.weight.fill_(1)
    linear.weight.copy_((slopes.view(channels, -1) @ parts.T).view(1, -1))
    linear.bias.fill_(level)
