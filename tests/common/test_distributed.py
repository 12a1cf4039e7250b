"""Joining torchrun's processes on GPUs, which are pretended, and leaving them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from common.distributed import join_process_group
from sdd_fiqa.errors import UserError

Calls = list[tuple[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is asked of torch by process 3 of torchrun's 4, on a machine of 4 GPUs."""
    calls: Calls = []
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda on: calls.append(("device", str(on))))

    def joined(backend: str, **options: Any) -> None:
        calls.append((backend, options.get("device_id")))

    monkeypatch.setattr(dist, "init_process_group", joined)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append(("left", None)))
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    return calls


def test_each_process_takes_its_gpu_before_it_joins(calls: Calls) -> None:
    with join_process_group("auto") as world:
        assert (world.rank, world.size) == (3, 4)
    assert calls == [("device", "cuda:3"), ("nccl", torch.device("cuda", 3)), ("left", None)]


def test_after_an_error_nobody_is_waited_for(calls: Calls) -> None:
    with pytest.raises(UserError, match="mine alone"), join_process_group("cpu"):
        raise UserError("mine alone")
    assert calls == [("gloo", None)]


def test_one_gpu_for_several_processes_is_refused(calls: Calls) -> None:
    message = "--device cuda:0: every process needs a GPU of its own; use cuda"
    with pytest.raises(UserError, match=message), join_process_group("cuda:0"):
        pass
    assert calls == [("device", "cuda:0")]


def test_label_processes_wait_for_one_that_gathers_for_hours(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def joined(backend: str, timeout: timedelta, device_id: object) -> None:
        calls.append((backend, timeout >= timedelta(hours=12) and device_id is None))

    monkeypatch.setattr(dist, "init_process_group", joined)
    with join_process_group("auto", host_arrays=True) as processes:
        assert (processes.size, processes.local_size) == (4, 4)
    assert calls == [("gloo", True), ("left", None)]
