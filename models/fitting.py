"""Which network a state_dict belongs to: by its keys and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from models.networks import BACKBONES, build_network
from models.state_dicts import State
from sdd_fiqa.errors import UserError

_SHOWN = 3  # keys named in an error before "and N more"
# Files saved by old releases of torch have no such key; nothing here depends on it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Loaded:
    """What a start from another network's weights took over.

    Attributes:
        loaded: keys taken from the file.
        new: keys that keep their random start (the head).
        unused: keys of the file that have no place here (its own head).
    """

    loaded: list[str]
    new: list[str]
    unused: list[str]

    def __str__(self) -> str:
        """For people: what was loaded and what is new."""
        new = f"new: {_names(self.new)}" if self.new else "nothing new"
        unused = f"; not used: {_names(self.unused)}" if self.unused else ""
        return f"{len(self.loaded)} tensors loaded; {new}{unused}"


def identify(state: State) -> tuple[str, str] | None:
    """The backbone and head ("quality" or "recognition") whose keys and shapes a state has."""
    for backbone in BACKBONES:
        for recognition in (False, True):
            if not differences(skeleton(backbone, recognition), state):
                return backbone, "recognition" if recognition else "quality"
    return None


def find_trunk(state: State, where: str, backbone: str | None = None) -> str:
    """The backbone whose whole trunk a state holds, under whatever head.

    Args:
        state: of a recognition or quality network.
        where: begins the error message: the file.
        backbone: the only one to consider; None considers all.

    Raises:
        UserError: the state holds none; the message names the nearest and what is missing.
    """
    candidates = BACKBONES if backbone is None else [backbone]
    fitting = [name for name in candidates if not _trunk_differences(name, state)]
    if fitting:  # face.evoLVe's trunk is R_50's and one layer more
        return max(fitting, key=lambda name: len(_trunk(name)))
    raise UserError(
        f"{where}: "
        + misfit(state, backbone, "the trunk of {}", lambda name: _trunk_differences(name, state))
    )


def misfit(state: State, backbone: str | None, part: str, explain: Callable[[str], str]) -> str:
    """Says that a state fits nothing, or not the backbone asked for, and why.

    Args:
        state: that fits not.
        backbone: asked for; None where any would have done.
        part: what of it was wanted, with {} for its name.
        explain: gives the differences to a backbone.
    """
    name = backbone or _nearest(state)
    if backbone is not None:
        return f"does not fit {part.format(name)}: {explain(name)}"
    known = ", ".join(BACKBONES)
    return (
        f"fits no network known here ({known}); the nearest is {part.format(name)}: {explain(name)}"
    )


def copy_fitting(network: nn.Module, state: State) -> Loaded:
    """Copies what has a place in `network`, by key and shape."""
    own = network.state_dict()
    fitting = {
        key: value for key, value in state.items() if key in own and own[key].shape == value.shape
    }
    network.load_state_dict(fitting, strict=False)
    return Loaded(
        loaded=list(fitting),
        new=[key for key in own if key not in fitting and not key.endswith(_COUNTER)],
        unused=[key for key in state if key not in fitting],
    )


@cache
def skeleton(backbone: str, recognition: bool) -> State:
    """Keys and shapes without memory."""
    with torch.device("meta"):
        return build_network(backbone, recognition=recognition).state_dict()


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What keeps `state` from fitting, in words; empty when it fits."""
    missing = [key for key in expected if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} in place of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)]
    return "; ".join(f"{word}: {_names(keys)}" for word, keys in parts if keys)


@cache
def _trunk(backbone: str) -> State:
    """What a network's two forms share."""
    other = skeleton(backbone, True)
    return {key: value for key, value in skeleton(backbone, False).items() if key in other}


def _trunk_differences(backbone: str, state: State) -> str:
    trunk = _trunk(backbone)
    both = skeleton(backbone, False).keys() | skeleton(backbone, True).keys()
    heads = {key.partition(".")[0] for key in both - trunk.keys()}
    rest = {k: v for k, v in state.items() if k in trunk or k.partition(".")[0] not in heads}
    return differences(trunk, rest)


def _nearest(state: State) -> str:
    """The backbone that shares the largest part of its and the state's keys and shapes."""

    def likeness(backbone: str, recognition: bool) -> float:
        own = {(key, value.shape) for key, value in skeleton(backbone, recognition).items()}
        given = {(key, value.shape) for key, value in state.items()}
        return len(own & given) / len(own | given)

    return max(BACKBONES, key=lambda name: max(likeness(name, False), likeness(name, True)))


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
