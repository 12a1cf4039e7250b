"""The head of a quality network in closed form: ridge regression on a fixed trunk."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.device import Compute
from common.distributed import ProcessGroup
from models.backbones.layers import FLOOR, floor_of
from models.networks import FaceModel, quality_head

# Weight of the squared slopes, as a share of the sum of the features' variances. Of five values
# from 1/10,000 to 1/1,000 this one ranked the faces of unseen people best, by a small margin
# (SFace's 1,024 features, 131 people in five folds; docs/model.md).
PENALTY = 1 / 2048
_FULL_MAP = 4096  # the head uses every value of a map that has at most this many
_LEAST_LABEL = 1.0  # the floor turns only minus infinity into 0


class Ridge:
    """Weighted ridge regression of `size` features, summed up part by part."""

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        # Weighted sums of all products of two among the features, a one and the target.
        self.sums = torch.zeros(size + 2, size + 2, dtype=torch.float64, device=device)

    def add(self, features: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Adds (B, D) features with (B,) targets and (B,) weights."""
        ones = torch.ones_like(targets)
        # In float64: the means, which `solve` subtracts, may be far larger than the variation.
        rows = torch.cat([features, ones[:, None], targets[:, None]], 1).double()
        self.sums += (rows * weights[:, None]).T @ rows

    def solve(self, penalty: float = PENALTY) -> tuple[Tensor, float]:
        """(D,) float64 slopes and the intercept: a target is features @ slopes + intercept."""
        size = len(self.sums) - 2
        total = self.sums[size, size]
        means = self.sums[size] / total
        products = self.sums - total * torch.outer(means, means)
        squares = products[:size, :size]
        shrink = penalty * squares.diagonal().sum()
        squares.diagonal().add_(shrink.clamp(min=1e-12))  # above 0 where nothing varies
        slopes = torch.linalg.solve(squares, products[:size, size + 1])
        return slopes, float(means[size + 1] - means[:size] @ slopes)


def features_of(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, D) float32: the head's features of a map.

    Usually the strength of each channel, mean |x|, (B, C). Position and sign of a response say more
    about person and pose than about quality. A small map (w600k_mbf's 64 x 7 x 7) has too few
    channels for that: its features are all its values, (B, C x H x W).
    """
    x = feature_map.float()
    return x.flatten(1) if uses_full_map(feature_map) else x.abs().mean((2, 3))


def uses_full_map(feature_map: Tensor) -> bool:
    """Whether the features are all values of a map, not only the strengths of its channels."""
    return feature_map.shape[1:].numel() <= _FULL_MAP


def invert_floor(labels: Tensor, floor: float = FLOOR) -> Tensor:
    """What the head's linear part must give, before the floor, for labels of 0..100."""
    at_least = labels.clamp(min=_LEAST_LABEL) / floor
    return floor * torch.log(torch.expm1(at_least))


@torch.inference_mode()
def fit_head(
    model: FaceModel,
    examples: Iterable[tuple[Tensor, Tensor, Tensor]],
    compute: Compute,
    processes: ProcessGroup,
) -> None:
    """Fits the head of a quality network to labels, on the last map of its trunk.

    The head is linear in the map's features (`features_of`) and ends in a floor. It is written into
    the published head: PReLU slopes of -1 turn x into |x|, and the weight of a channel repeats over
    the positions. For a map that is used in full the slopes are 1.

    Args:
        model: its head has a floor (`layers.add_floor`); its trunk does not change, nor do its
            BatchNorm statistics.
        examples: this process's part: (B, 112, 112, 3) uint8 faces, (B,) labels, (B,) weights.
        compute: the precision of the trunk.
        processes: all of them have a part.
    """
    head = quality_head(model.network)
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
        ridge.add(features, invert_floor(labels, floor), weights)
        del maps[:-1]
    hook.remove()
    assert ridge is not None
    if processes.size > 1:
        dist.all_reduce(ridge.sums)
    slopes, intercept = ridge.solve()
    whole = uses_full_map(maps[-1])
    if not whole:
        positions = maps[-1].shape[2] * maps[-1].shape[3]
        slopes = (slopes / positions).repeat_interleave(positions)
    prelu, linear = head[1], head[3]
    assert isinstance(prelu, nn.PReLU) and isinstance(linear, nn.Linear)
    prelu.weight.fill_(1 if whole else -1)
    linear.weight.copy_(slopes.view(1, -1))
    linear.bias.fill_(intercept)
    if processes.size > 1:  # different devices round differently
        for tensor in (linear.weight, linear.bias):
            dist.broadcast(tensor, 0)
