"""Which precision a device gets, and how its results come back; GPUs are pretended."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.device import Compute, choose_compute


@pytest.mark.parametrize(
    ("capability", "name"), [((6, 1), "fp32"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_takes_what_the_gpu_is_fast_at(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert str(choose_compute("cuda:1")) == f"cuda:1 {name}"
    assert choose_compute("cuda:1", "fp32").name == "fp32"
    assert not torch.backends.cudnn.allow_tf32  # float32 means all of its digits


def test_results_are_waited_for_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking  # the cores are for decoding

        def record(self, stream: object) -> None:
            done.append(stream)

        def synchronize(self) -> None:
            done.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", str)
    compute = Compute(torch.device("cuda", 1), torch.float32)
    fetched = compute.fetch(torch.arange(3))
    assert done == ["cuda:1"]  # the stream of this device, not of the first
    assert np.array_equal(fetched(), [0, 1, 2])
    assert done == ["cuda:1", "waited"]
