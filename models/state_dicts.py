"""Reads checkpoint files without running their code, and finds the network that each belongs to."""

from __future__ import annotations

import os
import pickle  # nosec B403 # for the name of an error; torch loads weights only
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from models.networks import BACKBONES, HEAD, build_network
from sdd_fiqa.errors import UserError

State = dict[str, Tensor]
# Where trainers keep the network; the last is arcface_torch's checkpoint_gpu_<rank>.pt.
_INSIDE = ("state_dict", "model", "state_dict_backbone")
# The modules of the callbacks and settings that Lightning saves with the weights. Nothing here
# needs them; they are read as objects that hold nothing and do nothing.
_IGNORED = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "argparse.")
# Files of old torch releases lack this key; nothing here depends on it.
_COUNTER = "num_batches_tracked"
_SHOWN = 3  # keys that an error names before "and N more"


def read_state(path: str | os.PathLike[str]) -> State:
    """Reads a checkpoint file into {key: tensor}, on the CPU.

    The state_dict may be inside `state_dict`, `model` or `state_dict_backbone`. A `module.` prefix
    is removed from every key. Of a Lightning file (AdaFace's) only the keys below `model.` are
    kept: the rest is the classifier of the training identities.

    Raises:
        UserError: missing, damaged, not a checkpoint, or one that needs code to be read.
    """
    content = load_plain(path)
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    plain = isinstance(content, Mapping) and all(map(_is_plain, content.values()))
    if not plain or not content:
        raise UserError(
            f"{path}: holds no state_dict, or more than tensors of plain numbers; save the "
            "network's bare state_dict"
        )
    state = {str(key): value for key, value in content.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("model.") for key in state):
        state = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    return state


def load_plain(path: str | os.PathLike[str]) -> Any:
    """What torch.save wrote, on the CPU: tensors, numbers, texts, and dicts and lists of these.

    Raises:
        UserError: missing, damaged, or it asks for other classes.
    """
    needs = _needs(path)
    ignored = all(name.startswith(_IGNORED) for name in needs)
    empty: list[Any] = [(_Ignored, name) for name in needs if ignored]
    try:
        if zipfile.is_zipfile(path):  # torch itself does not check the CRCs
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(damaged)
        with warnings.catch_warnings(), torch.serialization.safe_globals(empty):
            warnings.simplefilter("ignore")  # about pickles; the errors below are clearer
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        wanted = f" (it asks for {', '.join(needs[:3])})" if needs else ""
        raise UserError(
            f"{path}: is no checkpoint of plain tensors, and nothing else is loaded from a file"
            f"{wanted}; save the network's state_dict"
        ) from error
    except Exception as error:  # damaged bytes raise a dozen kinds of exceptions
        raise UserError(f"{path}: is damaged or not a torch checkpoint; get it again") from error


def _is_plain(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_quantized or value.is_complex() or value.is_meta)


class _Ignored:
    """Accepts anything and holds nothing."""

    def __init__(self, *values: object) -> None:
        pass

    __setstate__ = __setitem__ = __init__


def _needs(path: str | os.PathLike[str]) -> list[str]:
    """The names of the classes that a file asks for; empty if that is not known."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(os.fspath(path)))
    except Exception:  # a file of the old format, or none at all
        return []


@dataclass(frozen=True)
class LoadReport:
    """What a network took over from another network's weights.

    Attributes:
        loaded: keys taken from the file.
        new: keys that keep their random start (the head).
        unused: keys of the file that do not exist here (its own head).
    """

    loaded: list[str]
    new: list[str]
    unused: list[str]

    def __str__(self) -> str:
        new = f"new: {_names(self.new)}" if self.new else "nothing new"
        unused = f"; not used: {_names(self.unused)}" if self.unused else ""
        return f"{len(self.loaded)} tensors loaded; {new}{unused}"


def copy_fitting(network: nn.Module, state: State) -> LoadReport:
    """Copies into `network` what it has under the same key with the same shape."""
    own = network.state_dict()
    fitting = {
        key: value for key, value in state.items() if key in own and own[key].shape == value.shape
    }
    network.load_state_dict(fitting, strict=False)
    return LoadReport(
        loaded=list(fitting),
        new=[key for key in own if key not in fitting and not key.endswith(_COUNTER)],
        unused=[key for key in state if key not in fitting],
    )


def identify(state: State) -> tuple[str, str] | None:
    """The backbone and head ("quality" or "recognition") whose keys and shapes a state has."""
    for backbone in BACKBONES:
        for recognition in (False, True):
            if not differences(skeleton(backbone, recognition), state):
                return backbone, "recognition" if recognition else "quality"
    return None


def find_trunk(state: State, where: str, backbone: str | None = None) -> str:
    """Finds the backbone whose whole trunk a state holds, under any head.

    Raises:
        UserError: the state holds none, or not the one asked for; the message begins with `where`,
            and names the nearest and what is missing.
    """
    unlike = partial(_trunk_differences, state)
    candidates = BACKBONES if backbone is None else [backbone]
    fitting = [name for name in candidates if not unlike(name)]
    if fitting:  # face.evoLVe's trunk is R_50's and one layer more
        return max(fitting, key=lambda name: len(_trunk(name)))
    raise UserError(f"{where}: {explain_mismatch(state, backbone, 'the trunk of {}', unlike)}")


def explain_mismatch(
    state: State, backbone: str | None, part: str, differences_to: Callable[[str], str]
) -> str:
    """Explains why a state fits no network, or not the backbone asked for.

    `part` is what was wanted of it, with {} for the backbone's name; `differences_to` gives the
    differences to a backbone, by name.
    """
    if backbone is not None:
        return f"does not fit {part.format(backbone)}: {differences_to(backbone)}"

    def in_common(name: str) -> int:
        own = skeleton(name, False) | skeleton(name, True)
        return sum(key in own and own[key].shape == value.shape for key, value in state.items())

    name = max(BACKBONES, key=in_common)
    return (
        f"fits no network known here ({', '.join(BACKBONES)}); the nearest is "
        f"{part.format(name)}: {differences_to(name)}"
    )


@cache
def skeleton(backbone: str, recognition: bool) -> State:
    """A network's keys and shapes, without memory for the values."""
    with torch.device("meta"):
        return build_network(backbone, recognition=recognition).state_dict()


def differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The reasons why `state` does not fit, in words; empty if it fits."""
    missing = [key for key in expected if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} in place of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)]
    return "; ".join(f"{word}: {_names(keys)}" for word, keys in parts if keys)


def _trunk(backbone: str) -> State:
    """The keys and shapes that a network has under any head."""
    whole = skeleton(backbone, False)
    return {key: value for key, value in whole.items() if not key.startswith(HEAD)}


def _trunk_differences(state: State, backbone: str) -> str:
    trunk = _trunk(backbone)
    both = skeleton(backbone, False).keys() | skeleton(backbone, True).keys()
    heads = {key.partition(".")[0] for key in both - trunk.keys()}
    rest = {k: v for k, v in state.items() if k in trunk or k.partition(".")[0] not in heads}
    return differences(trunk, rest)


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
