"""Reads checkpoint files of any make into {key: tensor}, running none of their code."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdd_fiqa.errors import UserError

State = dict[str, Tensor]
# Where trainers keep the network: most others, and arcface_torch in checkpoint_gpu_<rank>.pt.
_INSIDE = ("state_dict", "model", "state_dict_backbone")
# What Lightning leaves beside the weights: callbacks and settings. They are of no use here, and
# are read as objects that hold nothing and do nothing.
_BESIDE = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "argparse.")


def read_state(path: str | os.PathLike[str]) -> State:
    """Reads a checkpoint file into {key: tensor}, on the CPU.

    Files that hold the state_dict under `state_dict`, `model` or `state_dict_backbone` are opened
    up. A `module.` prefix is taken off every key. Of a Lightning file (AdaFace's) only what stands
    under `model.` is kept: the rest is the classifier over the identities it was trained on.

    Raises:
        UserError: missing, damaged, not a checkpoint, or one that needs code to be read.
    """
    content = _load(path)
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no state_dict; save the network's state_dict")
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: holds more than tensors; save the network's bare state_dict")
    if not all(map(_is_plain, content.values())):
        raise UserError(f"{path}: holds tensors that are not plain numbers; save a bare state_dict")
    state = {str(key): value for key, value in content.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("model.") for key in state):
        state = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    return state


def _load(path: str | os.PathLike[str]) -> Any:
    try:
        if zipfile.is_zipfile(path):  # torch itself does not look at the sums of the parts
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickles; what is wrong is said below
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            names = _needs(path)
            if not names or not all(name.startswith(_BESIDE) for name in names):
                raise
            stand_ins: list[Any] = [(_stand_in(), name) for name in names]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        needs = _needs(path)
        wanted = f" (it asks for {', '.join(needs[:3])})" if needs else ""
        raise UserError(
            f"{path}: is no checkpoint of plain tensors, and nothing else is loaded from a file"
            f"{wanted}; save the network's state_dict"
        ) from error
    except Exception as error:  # damaged bytes end in any of a dozen kinds
        raise UserError(f"{path}: is damaged or not a torch checkpoint; get it again") from error


def _is_plain(tensor: Tensor) -> bool:
    odd = tensor.is_quantized or tensor.is_complex() or tensor.is_meta
    return tensor.layout == torch.strided and not odd


def _stand_in() -> type:
    """A class of its own whose objects take anything and hold nothing."""

    class Ignored:
        def __new__(cls, *values: object) -> Ignored:
            return super().__new__(cls)

        def __init__(self, *values: object) -> None:
            pass

        def __setstate__(self, state: object) -> None:
            pass

        def __setitem__(self, key: object, value: object) -> None:
            pass

    return Ignored


def _needs(path: str | os.PathLike[str]) -> list[str]:
    """What a file asks for besides tensors, by name; empty where that cannot be seen."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(os.fspath(path)))
    except Exception:  # a file of the old format, or none at all
        return []
