"""Checkpoint files: loading executes no code and matches keys; writing is all or nothing."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.cli import note
from models.backbones.layer_graph import graph_network
from models.backbones.layers import add_floor
from models.networks import build_network, quality_head
from models.state_dicts import (
    differences,
    explain_mismatch,
    identify,
    load_plain,
    read_state,
    skeleton,
)
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, replacing, sha256_of, write_json


def load_network(
    path: str | os.PathLike[str],
    *,
    recognition: bool,
    backbone: str | None = None,
    dropout: float = 0.5,
) -> tuple[str, nn.Module, dict[str, Any]]:
    """Makes the network that a checkpoint file holds; every key must match.

    The .json next to the file records whether the head has a floor. If the trunk came from an ONNX
    file, the .json also holds the list of its layers. `recognition`: which head is wanted. Without
    `backbone` its name is found from the keys. `dropout`: for training, as of `build_network`.

    Returns:
        The backbone's name; the network, in evaluation mode; and what `read_about` gives, for a
        quality network.

    Raises:
        UserError: unreadable, or the keys or shapes are not those of the wanted network.
    """
    state = read_state(path)
    wanted = "recognition" if recognition else "quality"
    graph = any(key.startswith("trunk.") for key in state)  # no other network has a `trunk`
    about = read_about(path) if graph or not recognition else {}
    found = (str(about.get("architecture")), "quality") if graph else identify(state)
    if found is None:
        part = f"{{}} with a {wanted} head"
        reason = explain_mismatch(
            state, backbone, part, lambda name: differences(skeleton(name, recognition), state)
        )
        raise UserError(f"{path}: {reason}")
    if found[1] != wanted:
        raise UserError(
            f"{path}: is a {found[0]} network with a {found[1]} head; a {wanted} head is needed"
        )
    if backbone not in (None, found[0]):
        raise UserError(f"{path}: is a {found[0]} network, not the {backbone} that was asked for")
    network: nn.Module
    if graph:
        network = graph_network(about, str(path), dropout)
        if unlike := differences(network.state_dict(), state):
            raise UserError(f"{path}: does not fit the .json next to it: {unlike}")
    else:
        network = build_network(found[0], recognition=recognition, dropout=dropout)
    network.load_state_dict(state, strict=True)
    if "floor" in about:
        floor = about["floor"]
        if not isinstance(floor, (int, float)) or not 0 < floor < math.inf:
            raise UserError(
                f"{path}: the .json next to it gives a floor of {floor!r}, not a number above 0; "
                "get both files again"
            )
        add_floor(quality_head(network), floor)
    return found[0], network.eval(), about


def save_network(path: str | os.PathLike[str], network: nn.Module, about: dict[str, Any]) -> None:
    """Writes the bare state_dict, and a .json next to it with `about` and the file's sha256."""
    target = Path(path)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with replacing(target, "wb") as file:
        torch.save(state, file)
    write_json(target.with_suffix(".json"), {**about, "sha256": sha256_of(target)})


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The .json next to a checkpoint; empty if there is none (a published file).

    Raises:
        UserError: it belongs to another file (sha256), or is not JSON.
    """
    beside = Path(path).with_suffix(".json")
    if not beside.exists():
        return {}
    about = read_json(beside)
    if not isinstance(about, dict) or about.get("sha256", "") != sha256_of(path):
        raise UserError(f"{beside}: describes another file than {path}; get both again")
    return about


RESUME, PREVIOUS = "last.ckpt", "previous.ckpt"
_PARTS = {"network", "optimiser", "schedule", "scaler", "state"}
_DIGEST = re.compile("[0-9a-f]{64}")
_OUTLINE = "outline"  # of a save: what it must hold to be resumed


def save_resume(folder: Path, key: dict[str, Any], content: dict[str, Any]) -> None:
    """Writes last.ckpt; the existing one becomes previous.ckpt.

    `key` holds the settings that a resume must not change, `content` state dicts and plain values.
    """
    last = folder / RESUME
    with replacing(folder / f"{RESUME}.new", "wb") as file:
        torch.save({"key": key, **content, _OUTLINE: _outline(content)}, file)
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(folder / f"{RESUME}.new", last)


def read_resume(folder: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """Reads what `save_resume` wrote; None if there is no save.

    If last.ckpt is damaged or lacks a part, a line says so, and previous.ckpt is read.

    Raises:
        UserError: the folder holds a run with other settings; the message names one.
    """
    for name in (RESUME, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            content: dict[str, Any] = load_plain(path)
            key_of_save, outline = content.pop("key"), content.pop(_OUTLINE, None)
            if outline is None and content.keys() >= _PARTS:  # of version 0.1.0
                outline = _outline(content)
            if outline != _outline(content) or not isinstance(key_of_save, dict):
                raise ValueError
        except Exception:  # as in read_state
            note(f"{path}: is damaged; skipped")
            continue
        for setting, now in key.items():
            if (before := key_of_save.get(setting)) != now:
                what = f"{setting} was {before}, is now {now}"
                if _DIGEST.fullmatch(str(now)):
                    what = f"it has other {setting}"
                raise UserError(
                    f"{path}: this folder holds a run with other settings: {what}; choose another "
                    "--checkpoints-name, or remove the folder"
                )
        return {"key": key_of_save, **content}
    return None


def _outline(value: object) -> Any:
    """The names in nested dicts and lists, and the types and shapes of their values."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {str(name): _outline(part) for name, part in value.items()}
    return f"{type(value).__name__} {list(getattr(value, 'shape', ()))}"
