"""Other makers' networks, written down from their published code: keys, shapes, forward passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
CHANNELS = (64, 128, 256, 512)
UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


# The files' keys, written down from the published code and not from ours.


def norm(key: str, channels: int, affine: bool = True) -> Shapes:
    names = (*(("weight", "bias") if affine else ()), "running_mean", "running_var")
    return {f"{key}.{n}": (channels,) for n in names} | {f"{key}.num_batches_tracked": ()}


def iresnet_keys(depth: int) -> Shapes:
    keys: Shapes = {"conv1.weight": (64, 3, 3, 3), **norm("bn1", 64), "prelu.weight": (64,)}
    before = 64
    for stage, (units, channels) in enumerate(zip(UNITS[depth], CHANNELS, strict=True), 1):
        for unit in range(units):
            at = f"layer{stage}.{unit}"
            keys |= norm(f"{at}.bn1", before)
            keys |= {f"{at}.conv1.weight": (channels, before, 3, 3)}
            keys |= norm(f"{at}.bn2", channels) | {f"{at}.prelu.weight": (channels,)}
            keys |= {f"{at}.conv2.weight": (channels, channels, 3, 3)}
            keys |= norm(f"{at}.bn3", channels)
            if unit == 0:
                keys |= {f"{at}.downsample.0.weight": (channels, before, 1, 1)}
                keys |= norm(f"{at}.downsample.1", channels)
            before = channels
    keys |= norm("bn2", 512) | {"fc.weight": (512, 25088), "fc.bias": (512,)}
    return keys | norm("features", 512)


def ir_keys(depth: int, adaface: bool) -> Shapes:
    keys: Shapes = {"input_layer.0.weight": (64, 3, 3, 3), **norm("input_layer.1", 64)}
    keys |= {"input_layer.2.weight": (64,)}
    number, before = 0, 64
    for units, channels in zip(UNITS[depth], CHANNELS, strict=True):
        for _ in range(units):
            res = f"body.{number}.res_layer"
            keys |= norm(f"{res}.0", before) | {f"{res}.1.weight": (channels, before, 3, 3)}
            keys |= norm(f"{res}.2", channels) if adaface else {}
            last = 3 if adaface else 2  # PReLU, conv, BN follow each other
            keys |= {f"{res}.{last}.weight": (channels,)}
            keys |= {f"{res}.{last + 1}.weight": (channels, channels, 3, 3)}
            keys |= norm(f"{res}.{last + 2}", channels)
            if before != channels:
                short = f"body.{number}.shortcut_layer"
                keys |= {f"{short}.0.weight": (channels, before, 1, 1)}
                keys |= norm(f"{short}.1", channels)
            number, before = number + 1, channels
    keys |= norm("output_layer.0", 512)
    keys |= {"output_layer.3.weight": (512, 25088), "output_layer.3.bias": (512,)}
    return keys | norm("output_layer.4", 512, affine=not adaface)


TABLES: dict[str, Callable[[], Shapes]] = {
    "iresnet18": lambda: iresnet_keys(18),
    "iresnet34": lambda: iresnet_keys(34),
    "iresnet50": lambda: iresnet_keys(50),
    "iresnet100": lambda: iresnet_keys(100),
    "adaface_ir_18": lambda: ir_keys(18, adaface=True),
    "adaface_ir_50": lambda: ir_keys(50, adaface=True),
    "adaface_ir_101": lambda: ir_keys(100, adaface=True),
    "evolve_ir_50": lambda: ir_keys(50, adaface=False),
}
RECOGNITION_HEADS = {
    "iresnet": ("fc.", "features."),
    "adaface": ("output_layer.3", "output_layer.4"),
}
RECOGNITION_HEADS["evolve"] = RECOGNITION_HEADS["adaface"]


def head_of(name: str) -> tuple[str, ...]:
    return next(keys for start, keys in RECOGNITION_HEADS.items() if name.startswith(start))


def hollow(shapes: Shapes) -> State:
    """Tensors of these shapes that take no room, on disk either."""
    return {
        key: torch.zeros((), dtype=torch.int64 if not shape else torch.float32).expand(shape)
        for key, shape in shapes.items()
    }


def filled(shapes: Shapes, seed: int = 0) -> State:
    """Random weights under which activations stay of ordinary size."""
    draw = torch.Generator().manual_seed(seed)
    state: State = {}
    for key, shape in shapes.items():
        if not shape:
            state[key] = torch.tensor(7)
        elif len(shape) > 1:
            inputs = np.prod(shape[1:])
            state[key] = torch.randn(shape, generator=draw) / float(inputs) ** 0.5
        elif key.endswith("running_var") or key.endswith("weight"):
            state[key] = 0.5 + torch.rand(shape, generator=draw)
        else:
            state[key] = torch.randn(shape, generator=draw) / 4
    return state


# The published forward passes, as formulas over such a state.


def bn(state: State, key: str, x: Tensor) -> Tensor:
    mean, var = state[f"{key}.running_mean"], state[f"{key}.running_var"]
    return F.batch_norm(x, mean, var, state.get(f"{key}.weight"), state.get(f"{key}.bias"), False)


def iresnet(state: State, x: Tensor) -> Tensor:
    x = bn(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1))
    x = F.prelu(x, state["prelu.weight"])
    for stage in range(1, 5):
        unit = 0
        while f"layer{stage}.{unit}.conv1.weight" in state:
            at, stride = f"layer{stage}.{unit}", 2 if unit == 0 else 1
            y = F.conv2d(bn(state, f"{at}.bn1", x), state[f"{at}.conv1.weight"], padding=1)
            y = F.prelu(bn(state, f"{at}.bn2", y), state[f"{at}.prelu.weight"])
            y = F.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1)
            if unit == 0:
                x = F.conv2d(x, state[f"{at}.downsample.0.weight"], stride=2)
                x = bn(state, f"{at}.downsample.1", x)
            x, unit = x + bn(state, f"{at}.bn3", y), unit + 1
    x = bn(state, "bn2", x).flatten(1)
    return bn(state, "features", F.linear(x, state["fc.weight"], state["fc.bias"]))


def ir(state: State, x: Tensor) -> Tensor:
    x = bn(state, "input_layer.1", F.conv2d(x, state["input_layer.0.weight"], padding=1))
    x = F.prelu(x, state["input_layer.2.weight"])
    depth = next(
        d for d, units in UNITS.items() if f"body.{sum(units)}.res_layer.1.weight" not in state
    )
    firsts = {sum(UNITS[depth][:stage]) for stage in range(4)}
    for number in range(sum(UNITS[depth])):
        at, stride = f"body.{number}.res_layer", 2 if number in firsts else 1
        adaface = f"{at}.2.running_mean" in state
        last = 3 if adaface else 2
        y = F.conv2d(bn(state, f"{at}.0", x), state[f"{at}.1.weight"], padding=1)
        y = bn(state, f"{at}.2", y) if adaface else y
        y = F.prelu(y, state[f"{at}.{last}.weight"])
        y = F.conv2d(y, state[f"{at}.{last + 1}.weight"], stride=stride, padding=1)
        short = f"body.{number}.shortcut_layer"
        if f"{short}.0.weight" in state:
            x = bn(state, f"{short}.1", F.conv2d(x, state[f"{short}.0.weight"], stride=stride))
        else:
            x = x[:, :, ::stride, ::stride]
        x = x + bn(state, f"{at}.{last + 2}", y)
    x = bn(state, "output_layer.0", x).flatten(1)
    x = F.linear(x, state["output_layer.3.weight"], state["output_layer.3.bias"])
    return bn(state, "output_layer.4", x)
