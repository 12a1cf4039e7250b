"""Checkpoint files: read without running code, matched by key name, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset.command_line import UserError, note
from dataset.files import read_json, replacing, sha256_of, write_json
from models.networks import BACKBONES, build_network

State = dict[str, Tensor]
HEADS = ("quality.", "output_layer.")  # key prefixes of the quality and the recognition head
_SHOWN = 3  # keys named in an error before "and N more"


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


def read_state(path: str | os.PathLike[str]) -> State:
    """Reads a checkpoint file into {key: tensor}, on the CPU.

    Files that hold the state_dict under `state_dict` or `model` are opened up; a `module.` prefix
    is taken off every key. The file can run no code: torch.load with weights_only=True.

    Raises:
        UserError: missing, damaged, not a checkpoint, or one that needs code to be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles; what is wrong is said below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: is no checkpoint of plain tensors, and nothing else is loaded from a file; "
            "save the network's state_dict"
        ) from error
    except Exception as error:  # damaged bytes end in any of a dozen kinds
        raise UserError(f"{path}: is damaged or not a torch checkpoint; get it again") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no state_dict; save the network's state_dict")
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: holds more than tensors; save the network's bare state_dict")
    state = {str(key): value for key, value in content.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def identify(state: State) -> tuple[str, str] | None:
    """The backbone and head ("quality" or "recognition") whose keys and shapes a state has."""
    for backbone in BACKBONES:
        for recognition in (False, True):
            if not _differences(_skeleton(backbone, recognition), state):
                return backbone, "recognition" if recognition else "quality"
    return None


def load_network(
    path: str | os.PathLike[str], *, recognition: bool, backbone: str | None = None
) -> tuple[str, nn.Module]:
    """Makes the network that a checkpoint file holds; every key must match.

    Args:
        path: the file.
        recognition: which head is wanted.
        backbone: its name; None finds it from the keys.

    Returns:
        The backbone's name and the network, in evaluation mode.

    Raises:
        UserError: unreadable, or the keys or shapes are not those of the wanted network.
    """
    state = read_state(path)
    wanted = "recognition" if recognition else "quality"
    found = identify(state)
    if found is not None and found[1] != wanted:
        raise UserError(
            f"{path}: is a {found[0]} network with a {found[1]} head; a {wanted} head is needed"
        )
    if found is not None and backbone not in (None, found[0]):
        raise UserError(f"{path}: is a {found[0]} network, not the {backbone} that was asked for")
    if found is None:
        name = backbone or _nearest(state, recognition)
        differences = _differences(_skeleton(name, recognition), state)
        raise UserError(f"{path}: does not fit {name} with a {wanted} head: {differences}")
    network = build_network(found[0], recognition=recognition)
    network.load_state_dict(state, strict=True)
    return found[0], network.eval()


def start_from(network: nn.Module, path: str | os.PathLike[str], backbone: str) -> Loaded:
    """Copies the trunk of a checkpoint into `network`, by key name; the head too where it fits.

    Raises:
        UserError: unreadable, or a trunk key is missing or has another shape.
    """
    state = read_state(path)
    own = network.state_dict()
    trunk = {key: value for key, value in own.items() if not key.startswith(HEADS)}
    differences = _differences(trunk, {k: v for k, v in state.items() if not k.startswith(HEADS)})
    if differences:
        raise UserError(f"{path}: does not fit the trunk of {backbone}: {differences}")
    fitting = {
        key: value for key, value in state.items() if key in own and own[key].shape == value.shape
    }
    network.load_state_dict(fitting, strict=False)
    return Loaded(
        loaded=list(fitting),
        new=[key for key in own if key not in fitting],
        unused=[key for key in state if key not in fitting],
    )


def save_network(path: str | os.PathLike[str], network: nn.Module, about: dict[str, Any]) -> None:
    """Writes the bare state_dict, and beside it a .json with `about` and the file's sha256."""
    target = Path(path)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with replacing(target, "wb") as file:
        torch.save(state, file)
    write_json(target.with_suffix(".json"), {**about, "sha256": sha256_of(target)})


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The .json beside a checkpoint; empty where there is none (a published file).

    Raises:
        UserError: it belongs to another file (sha256), or is not JSON.
    """
    beside = Path(path).with_suffix(".json")
    if not beside.exists():
        return {}
    about = read_json(beside)
    if not isinstance(about, dict) or about.get("sha256", "") != sha256_of(path):
        raise UserError(
            f"{beside}: describes another file than {path}; remove it or get both again"
        )
    return about


RESUME, PREVIOUS = "last.ckpt", "previous.ckpt"


def save_resume(folder: Path, key: dict[str, Any], content: dict[str, Any]) -> None:
    """Writes last.ckpt; the one before becomes previous.ckpt.

    Args:
        folder: of the training.
        key: what makes a training the same training.
        content: state dicts and plain values.
    """
    last = folder / RESUME
    with replacing(folder / f"{RESUME}.new", "wb") as file:
        torch.save({"key": key, **content}, file)
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(folder / f"{RESUME}.new", last)


def read_resume(folder: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """Reads what `save_resume` wrote; None where there is nothing to go on from.

    A damaged last.ckpt is passed over, with a line, for the one before.

    Raises:
        UserError: the folder holds another training; the message names a setting that differs.
    """
    for name in (RESUME, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise ValueError
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or not isinstance(content.get("key"), dict):
                raise ValueError
        except Exception:  # as in read_state
            note(f"{path}: is damaged; passed over")
            continue
        differing = [name for name in key if content["key"].get(name) != key[name]]
        if differing:
            first = differing[0]
            raise UserError(
                f"{path}: is of another training ({first} {content['key'].get(first)}, now "
                f"{key[first]}); choose another --checkpoints-name, or remove the folder"
            )
        return content
    return None


def _skeleton(backbone: str, recognition: bool) -> State:
    """Keys and shapes without memory."""
    with torch.device("meta"):
        return build_network(backbone, recognition=recognition).state_dict()


def _nearest(state: State, recognition: bool) -> str:
    return max(BACKBONES, key=lambda name: len(_skeleton(name, recognition).keys() & state.keys()))


def _differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What keeps `state` from fitting, in words; empty when it fits."""
    # Files saved by old releases of torch have no num_batches_tracked; nothing here depends on it.
    missing = [
        key for key in expected if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} in place of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)]
    return "; ".join(f"{word}: {_names(keys)}" for word, keys in parts if keys)


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
