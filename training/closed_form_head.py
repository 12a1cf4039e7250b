"""The head of a quality network in closed form: ridge regression on a trunk as it stands."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.device import Compute
from common.distributed import ProcessGroup
from models.backbones.layers import FLOOR, floor_of
from models.networks import FaceModel

# Weight of the slopes' squares, as a share of the features' variances together. Of five between
# 1/10,000 and 1/1,000 this ranks the faces of unseen people best, by a hair (SFace's 1,024
# features, 131 people in five folds; docs/model.md).
PENALTY = 1 / 2048
_WHOLE = 4096  # values of a map: up to so many the head sees it whole
_LEAST_LABEL = 1.0  # the floor is reached at minus infinity only


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
        shrink = penalty * squares.diagonal().sum()
        squares.diagonal().add_(shrink.clamp(min=1e-12))  # above 0 where nothing varies
        slopes = torch.linalg.solve(squares, products[:size, size + 1])
        return slopes, float(means[size + 1] - means[:size] @ slopes)


def features_of(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, D) float32: what the head sees of a map.

    How strongly each channel responds, mean |x|, (B, C): where in the face a channel responds, and
    which way, tells people and poses apart rather than good pictures from bad ones. Of a small map,
    w600k_mbf's 64 x 7 x 7, whose few channels say too little by that: all of it, (B, C x H x W).
    """
    x = feature_map.float()
    return x.flatten(1) if is_seen_whole(feature_map) else x.abs().mean((2, 3))


def is_seen_whole(feature_map: Tensor) -> bool:
    """Whether a head sees all values of a map, and not only the strengths of its channels."""
    return feature_map.shape[1:].numel() <= _WHOLE


def below_floor(labels: Tensor, floor: float = FLOOR) -> Tensor:
    """What the head's linear part is to give for labels of 0..100: the floor undone."""
    at_least = labels.clamp(min=_LEAST_LABEL) / floor
    return floor * torch.log(torch.expm1(at_least))


@torch.inference_mode()
def fit_head(
    model: nn.Module,
    examples: Iterable[tuple[Tensor, Tensor, Tensor]],
    compute: Compute,
    world: ProcessGroup,
) -> None:
    """Gives a quality network a head fitted to the labels on its trunk's last map.

    The head is linear in what it sees of the map (`features_of`), with a floor below, and stands in
    the published head's place: its PReLU slopes become -1, which makes |x| of x, and a channel's
    weight repeats over the positions; or 1, for a map that is seen whole.

    Args:
        model: a FaceModel whose head is floored (`layers.add_floor`); its trunk stays as it
            is, BatchNorm statistics included.
        examples: this process's part: (B, 112, 112, 3) uint8 faces, (B,) labels, (B,) weights.
        compute: the precision of the trunk.
        world: the processes that see the parts.
    """
    assert isinstance(model, FaceModel)
    head = model.network.quality
    assert isinstance(head, nn.Sequential)
    floor = floor_of(head)
    assert floor is not None
    maps: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    model.eval()
    ridge: Ridge | None = None
    for faces, labels, weights in examples:
        with compute.autocast():
            model(faces)
        features = features_of(maps[-1])
        if ridge is None:
            ridge = Ridge(features.shape[1], features.device)
        ridge.add(features, below_floor(labels, floor), weights)
        del maps[:-1]
    hook.remove()
    assert ridge is not None
    if world.size > 1:
        ridge.reduce()
    slopes, level = ridge.solve()
    whole = is_seen_whole(maps[-1])
    if not whole:
        positions = maps[-1].shape[2] * maps[-1].shape[3]
        slopes = (slopes / positions).repeat_interleave(positions)
    prelu, linear = head[1], head[3]
    assert isinstance(prelu, nn.PReLU) and isinstance(linear, nn.Linear)
    prelu.weight.fill_(1 if whole else -1)
    linear.weight.copy_(slopes.view(1, -1))
    linear.bias.fill_(level)
    if world.size > 1:  # each has solved it, and unlike devices round otherwise
        for tensor in (linear.weight, linear.bias):
            dist.broadcast(tensor, 0)
