"""What train.py is made of: its list, saves, layers and losses, against torch and laws."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.distributed import ProcessGroup
from dataset.loader import Batch
from models.backbones.layers import PReLU
from models.checkpoints import read_resume, save_resume
from models.networks import build_network
from sdd_fiqa.errors import UserError
from train import point_losses
from train_config import TrainConfig
from training.data import Unreadable, drawn_shares, epoch_flips, epoch_order, read_training_list
from training.log import Log
from training.sync_norm import with_shared_statistics


def test_labels_outside_their_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a/1.png\t5\na/2.png\t101\n")
    with pytest.raises(UserError, match=r"labels.txt:2: label 101 is outside 0..100"):
        read_training_list(path, 0, -2, 0)


def test_the_split_is_by_identity_and_seeded(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"r/{i % 10}/{i}.png\t{i}\n" for i in range(100)))
    data = read_training_list(path, 0.2, -2, seed=4)
    assert len(data.held_out) == 20 and len(data.train) == 80
    assert not set(data.identities[data.held_out]) & set(data.identities[data.train])
    again = read_training_list(path, 0.2, -2, seed=4)
    assert np.array_equal(again.held_out, data.held_out)
    others = [read_training_list(path, 0.2, -2, seed=s).held_out.tolist() for s in range(8)]
    assert any(rows != data.held_out.tolist() for rows in others)
    # A DATA.labelpath beside the labels decides, where it lists every path.
    (tmp_path / "DATA.labelpath").write_text(
        "".join(f"r/{i % 10}/{i}.png\t{i // 50}\n" for i in range(100))
    )
    data = read_training_list(path, 0.2, -2, seed=4)
    assert set(data.identities) == {0, 1} and data.listed is not None


def test_who_is_held_out_is_a_mark_of_a_training(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"r/{i % 10}/{i}.png\t{i}\n" for i in range(100)))

    def key(numbers: list[int], most: int = 0) -> str:
        lines = "".join(f"r/{i % 10}/{i}.png\t{numbers[i % 10]}\n" for i in range(100))
        (tmp_path / "DATA.labelpath").write_text(lines)
        return read_training_list(path, 0.2, -2, 4, most).split_key()

    numbers = list(range(10))
    assert key(numbers) == key([2 * number for number in numbers])
    assert key(numbers) != key(numbers[::-1])  # others are drawn
    assert key(numbers, 3) == key([2 * number for number in numbers], 3)
    assert key(numbers, 3) != key([*numbers[:9], 8], 3)


def test_unreadable_images_of_all_processes_count_together(tmp_path: Path) -> None:
    class Two(ProcessGroup):
        def total(self, count: int) -> int:
            return 2 * count

    path = tmp_path / "labels.txt"
    path.write_text("".join(f"r/{i}.png\t1\n" for i in range(100)))
    lost = Unreadable(read_training_list(path, 0, -2, 0), 0.05)
    batch = Batch(np.arange(10), np.zeros((10, 112, 112, 3), np.uint8), np.zeros((10, 2), np.int32))
    batch.failures.update({0: "is empty", 1: "is empty"})
    lost.check(batch)
    lost.check(batch)  # the same two
    assert lost.together(Two(0, 2)) == 4
    batch.failures[2] = "is empty"
    lost.check(batch)
    with pytest.raises(UserError, match=r"6 of 100 images cannot be read, more than .* 0\.05"):
        lost.together(Two(0, 2))
    lost.begin_epoch()
    assert lost.together(Two(0, 2)) == 0
    with pytest.raises(UserError, match="1 images of a batch of 10 can be read, fewer than the 2"):
        batch.failures.update(dict.fromkeys(range(9), "is empty"))
        Unreadable(lost.data, 1.0).check(batch)


def test_lines_that_are_not_ours_do_not_stop_a_training(tmp_path: Path) -> None:
    good = {"epoch": 1, "step": 2, "loss": 3.0}
    (tmp_path / "stats.jsonl").write_bytes(json.dumps(good).encode() + b"\n[1]\n\xff\n")
    Log(tmp_path, ProcessGroup(0, 1), 1, 2).close()
    assert [json.loads(line) for line in (tmp_path / "stats.jsonl").open()] == [good]


def test_epochs_are_keyed_and_balance_is_even(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    labels = [1.0] * 900 + [99.0] * 100
    path.write_text("".join(f"r/0/{i}.png\t{label}\n" for i, label in enumerate(labels)))
    data = read_training_list(path, 0, -2, 0)
    first = epoch_order(data, 0, 0)
    assert sorted(first) == list(range(1000))
    assert np.array_equal(first, epoch_order(data, 0, 0))
    assert not np.array_equal(first, epoch_order(data, 0, 1))
    high = (epoch_order(data, 0, 0, balanced=True) >= 900).mean()
    assert high == pytest.approx(0.5, abs=0.06)  # four standard deviations of 1,000 draws
    assert 0.4 < epoch_flips(1000, 0, 0).mean() < 0.6


@pytest.mark.parametrize("val_identities", [0, 0.3])
def test_large_identities_are_capped_and_get_all_their_turns(
    tmp_path: Path, val_identities: float
) -> None:
    path = tmp_path / "labels.txt"
    sizes = {"a": 40, "b": 3, "c": 12, "d": 10}
    names = [name for name, size in sizes.items() for _ in range(size)]
    path.write_text("".join(f"r/{name}/{i}.png\t{i % 90}\n" for i, name in enumerate(names)))
    data = read_training_list(path, val_identities, -2, seed=1, most=10)
    kept = set(np.asarray(names)[data.train].tolist())
    wanted = {name: min(10, sizes[name]) for name in kept}
    assert data.epoch_images == sum(wanted.values())
    shares = drawn_shares(data)
    for name, drawn in wanted.items():
        own = np.asarray(names)[data.train] == name
        assert shares[own].sum() == pytest.approx(drawn) and np.ptp(shares[own]) == 0
    seen: set[int] = set()
    for epoch in range(30):
        order = epoch_order(data, 0, epoch)
        assert len(set(order.tolist())) == len(order)
        assert Counter(names[row] for row in order) == wanted
        assert len(epoch_order(data, 0, epoch, balanced=True)) == data.epoch_images
        seen.update(order.tolist())
    assert seen == set(data.train.tolist())


def test_a_damaged_save_falls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save_resume(tmp_path, {"seed": 0}, {"state": {"step": step}, "w": torch.ones(999)})
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    for damage in (bytes(content), bytes(content[: len(content) // 2]), b""):
        last.write_bytes(damage)
        found = read_resume(tmp_path, {"seed": 0})
        assert found is not None and found["state"]["step"] == 1
        assert "last.ckpt: is damaged; skipped" in capsys.readouterr().err
    last.unlink()
    found = read_resume(tmp_path, {"seed": 0})
    assert found is not None and found["state"]["step"] == 1
    with pytest.raises(UserError, match="another training"):
        read_resume(tmp_path, {"seed": 1})
    assert read_resume(tmp_path / "none", {"seed": 1}) is None


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (7, 5)])
def test_prelu_is_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = PReLU(5).double(), nn.PReLU(5).double()
    with torch.no_grad():
        ours.weight.uniform_(-1, 1)
    theirs.load_state_dict(ours.state_dict())
    grad = torch.randn(shape, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    x[0] = 0
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, at in zip((ours, theirs), inputs, strict=True):
        module(at).backward(grad)
    assert torch.equal(ours(inputs[0]), theirs(inputs[1]))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_shared_statistics_are_batch_norms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    shared = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    shared.load_state_dict(plain.state_dict())
    with_shared_statistics(shared, torch.device("cpu"))
    shared.double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for module in (plain, shared):
            module(x).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for (name, ours), theirs in zip(shared.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name].to(value), value, rtol=1e-5, atol=1e-6)


def test_on_gpus_shared_statistics_are_torchs_own() -> None:
    plain = build_network("MFN")
    keys = list(plain.state_dict())
    shared = with_shared_statistics(plain, torch.device("cuda", 0))
    norms = [module for module in shared.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) > 40 and not any(type(m) is nn.BatchNorm2d for m in shared.modules())
    assert list(shared.state_dict()) == keys


def test_losses_are_their_formulas() -> None:
    scores, labels = torch.tensor([0.0, 10.0, 50.5]), torch.tensor([0.5, 14.0, 50.5])
    assert point_losses(TrainConfig(), scores, labels).tolist() == [0.125, 3.5, 0.0]
    assert point_losses(TrainConfig(huber_beta=8), scores, labels)[1].item() == 1.0
    assert point_losses(TrainConfig(loss="l1"), scores, labels).tolist() == [0.5, 4.0, 0.0]
    assert point_losses(TrainConfig(loss="l2"), scores, labels).tolist() == [0.25, 16.0, 0.0]
