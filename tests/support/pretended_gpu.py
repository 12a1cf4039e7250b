"""A GPU that is not there, so that code for GPUs runs where there is none.

Its tensors say `cuda:0`, keep their numbers in the host's memory, and refuse what CUDA refuses: an
operation on numbers of two devices, and to become a numpy array. What it shows is that everything
is moved where it is used, and that results are right; not speed, and nothing of CUDA's own kernels.

(Types are ignored where torch's own bases have none, or others than what they call.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves, tree_map

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Lets torch find one GPU, in this thread and in those that it starts."""
    begin = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with _Everywhere():  # type: ignore[no-untyped-call]  # a mode holds for one thread
            begin(thread)

    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: (9, 0),
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: None,
        "Event": mock.MagicMock,
    }
    with ExitStack() as patches:
        for name, value in cuda.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, value))
        for owner, name, new in (
            (threading.Thread, "run", run),
            (torch, "autocast", _Autocast),
            (torch, "is_autocast_enabled", _is_autocast_enabled),
            (Tensor, "pin_memory", lambda tensor: tensor),
            (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None),
            (torch.optim.Optimizer, "_cuda_graph_capture_health_check", lambda _: None),  # before
        ):
            if hasattr(owner, name):
                patches.enter_context(mock.patch.object(owner, name, new))
        patches.enter_context(_Everywhere())  # type: ignore[no-untyped-call]
        yield


class OnGPU(Tensor):
    """A tensor of the pretended GPU. To torch's own code it is one of the host's."""

    device, is_cuda, is_cpu = GPU, True, False
    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> OnGPU:
        """Wraps a tensor of the host's."""
        made: OnGPU = Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), dtype=numbers.dtype
        )
        made.numbers = numbers
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """For failed tests."""
        return f"OnGPU({self.numbers})"

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        """The numbers, on the host."""
        return self.to(HOST)

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        """As torch's, which would take the host for where it is already."""
        device, dtype, _, form = torch._C._nn._parse_to(*args, **kwargs)
        given = {"dtype": dtype, "memory_format": form}
        new: Any = {name: value for name, value in given.items() if value is not None}
        moved: Tensor = super().to(copy=copy, **new) if new or copy else self
        leaves = device is not None and device.type == "cpu"
        return _Leave.apply(moved) if leaves else moved

    def numpy(self, **_: Any) -> Any:
        """Refuses, as CUDA does."""
        raise TypeError("a tensor of the GPU is no numpy array; use .cpu() first")

    __array__ = numpy  # type: ignore[assignment]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Says that it is a wrapper, whose parameters are swapped and not set when they move."""
        return ["numbers"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> OnGPU:
        """The other way round."""
        return OnGPU(inner["numbers"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every operation on such a tensor."""
        return _run(operation, args, kwargs or {})


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: OnGPU) -> Tensor:
        return tensor.numbers.detach().clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient.to(GPU)


class _Everywhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """For operations without such a tensor: they may make one."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in arg_tree_leaves(*args, **kwargs) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
    onto_gpu = torch.device(kwargs.get("device") or HOST).type == "cuda"
    if not ours and not onto_gpu:
        return operation(*args, **kwargs)
    if onto_gpu or "device" in kwargs:
        kwargs = {**kwargs, "device": HOST}
    done = operation(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
    name = operation._schema.name
    if name == "aten::copy_":  # between devices too; the first is what comes out
        return args[0]
    # As on CUDA, a number may come from the host, and so may what an index points at.
    others = [] if onto_gpu or (name in _INDEXED and isinstance(args[0], OnGPU)) else tensors
    if any(other.dim() for other in others if not isinstance(other, OnGPU)):
        raise RuntimeError(f"{operation}: tensors of two devices")

    def wrapped(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        same = [tensor for tensor in ours if tensor.numbers is result]  # worked on in place
        return same[0] if same else OnGPU(result)

    return tree_map(wrapped, done)


def _numbers(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, OnGPU) else leaf


_is_enabled: Callable[[str], bool] = torch.is_autocast_enabled


def _is_autocast_enabled(device_type: str = "cuda") -> bool:
    return _is_enabled("cpu" if device_type == "cuda" else device_type)


class _Autocast(torch.autocast):
    """The host's, where the GPU's is asked for."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)
