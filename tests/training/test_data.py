"""The list, the split, the order of epochs, and unreadable images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from common.distributed import ProcessGroup
from dataset.loader import Batch
from sdd_fiqa.errors import UserError
from train_config import TrainConfig
from training.data import (
    TrainingList,
    Unreadable,
    epoch_flips,
    epoch_order,
    held_out_features,
    read_training_list,
    sampling_weights,
)


def read(
    path: Path, val_identities: float = 0, seed: int = 0, max_per_identity: int = 0
) -> TrainingList:
    return read_training_list(
        TrainConfig(
            img_list=path,
            val_identities=val_identities,
            seed=seed,
            max_per_identity=max_per_identity,
        )
    )


def test_the_split_is_by_identity_and_seeded(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"r/{i % 10}/{i}.png\t{i}\n" for i in range(100)))
    data = read(path, 0.2, 4)
    assert len(data.held_out) == 20 and len(data.train) == 80
    assert not set(data.identities[data.held_out]) & set(data.identities[data.train])
    again = read(path, 0.2, 4)
    assert np.array_equal(again.held_out, data.held_out)
    others = [read(path, 0.2, s).held_out.tolist() for s in range(8)]
    assert any(rows != data.held_out.tolist() for rows in others)
    # A DATA.labelpath beside the labels decides, where it lists every path.
    (tmp_path / "DATA.labelpath").write_text(
        "".join(f"r/{i % 10}/{i}.png\t{i // 50}\n" for i in range(100))
    )
    data = read(path, 0.2, 4)
    assert set(data.identities) == {0, 1} and data.listed is not None


def test_too_few_people_to_hold_out(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"r/{i % 3}/{i}.png\t{i}\n" for i in range(9)))
    with pytest.raises(UserError, match="has 3 identities, too few to hold out 3; ") as error:
        read(path, 0.95)
    lower, _, zero = str(error.value).rpartition("; lower --val-identities, or set it to ")
    assert lower and len(read(path, 0.5).held_out) == 6
    assert len(read(path, float(zero)).held_out) == 0


def test_embeddings_need_the_list_that_they_are_of(tmp_path: Path) -> None:
    path, feats = tmp_path / "labels.txt", tmp_path / "feats.npy"
    names = [f"r/{i % 3}/{i}.png" for i in range(9)]
    path.write_text("".join(f"{name}\t{i}\n" for i, name in enumerate(names[2:])))
    np.save(feats, np.arange(9.0)[:, None])
    with pytest.raises(UserError, match=r"put the (\S+) that it was made from next to \S+labels.t"):
        held_out_features(read(path, 0.5), feats)
    (tmp_path / "DATA.labelpath").write_text("".join(f"{name}\t1\n" for name in names[:4]))
    with pytest.raises(UserError, match="next to"):  # it lacks images
        held_out_features(read(path, 0.5), feats)
    (tmp_path / "DATA.labelpath").write_text(
        "".join(f"{name}\t{i % 3}\n" for i, name in enumerate(names))
    )
    data = read(path, 0.5)
    assert np.array_equal(held_out_features(data, feats)[0][:, 0], data.held_out + 2)


def test_who_is_held_out_is_a_mark_of_a_training(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"r/{i % 10}/{i}.png\t{i}\n" for i in range(100)))

    def key(numbers: list[int], max_per_identity: int = 0) -> str:
        lines = "".join(f"r/{i % 10}/{i}.png\t{numbers[i % 10]}\n" for i in range(100))
        (tmp_path / "DATA.labelpath").write_text(lines)
        return read(path, 0.2, 4, max_per_identity).split_key()

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
    lost = Unreadable(read(path), 0.05)
    batch = Batch(np.arange(10), np.zeros((10, 112, 112, 3), np.uint8))
    batch.failures.update({0: "is empty", 1: "is empty"})
    lost.check(batch)
    lost.check(batch)  # the same two
    assert lost.total_over_processes(Two(0, 2)) == 4
    batch.failures[2] = "is empty"
    lost.check(batch)
    with pytest.raises(UserError, match=r"unreadable: 6 of 100 images, more than .* 0\.05"):
        lost.total_over_processes(Two(0, 2))
    lost.begin_epoch()
    assert lost.total_over_processes(Two(0, 2)) == 0
    with pytest.raises(UserError, match="a batch of 10 has only 1 readable image"):
        batch.failures.update(dict.fromkeys(range(9), "is empty"))
        Unreadable(lost.data, 1.0).check(batch)


def test_epochs_are_keyed_and_balance_is_even(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    labels = [1.0] * 900 + [99.0] * 100
    path.write_text("".join(f"r/0/{i}.png\t{label}\n" for i, label in enumerate(labels)))
    data = read(path)
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
    data = read(path, val_identities, 1, 10)
    kept = set(np.asarray(names)[data.train].tolist())
    wanted = {name: min(10, sizes[name]) for name in kept}
    assert data.epoch_images == sum(wanted.values())
    shares = sampling_weights(data)
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


def test_paths_of_the_settings_may_be_strings_or_paths() -> None:
    # People edit the defaults, which no type checker sees; here it would object.
    edited = TrainConfig(img_list="a.txt", finetuning_model=Path("b.pth"))  # type: ignore[arg-type]
    assert edited == TrainConfig(img_list=Path("a.txt"), finetuning_model="b.pth")
