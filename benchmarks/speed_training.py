"""How fast training is: the step alone, the loader alone, both, and a plain loop.

    python benchmarks/speed_training.py --backbone MFN --images 320
    python benchmarks/speed_training.py --backbone R_50 --images 8192 --batch-size 512     on a GPU

Everything runs on synthetic JPEGs in a temporary folder. "plain" is a loop like the published code:
PIL in one worker thread, float32, NCHW, nn.PReLU, Adam without fusing. The step is compared with
the limit of the device (benchmarks/limits.py).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2

from models.backbones import Backbone

# isort: split
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.limits import limit_of, wait_for
from common.cli import EXIT_DONE, run_script
from common.device import Compute, choose_compute
from dataset.lists import ImageList, read_table
from dataset.loader import batches
from models.backbones.layers import PReLU
from models.networks import FaceModel, build_network
from train_config import TrainConfig


def main(
    *,
    backbone: Backbone = "MFN",
    images: int = 320,
    batch_size: int = 32,
    repeats: int = 3,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> int:
    """Measures training on synthetic faces.

    Args:
        backbone: the network.
        images: synthetic JPEGs; each measurement is one pass over them.
        batch_size: images per step.
        repeats: passes; the best counts.
        device: auto, cpu, cuda or cuda:i.
        precision: that of our step; the plain loop is float32.
    """
    compute = choose_compute(device, precision)
    print(f"{backbone}, {images} images, batches of {batch_size}, {compute}")
    with tempfile.TemporaryDirectory() as folder:
        table = make_images(Path(folder), images)
        ours = Trainer(backbone, compute)
        made_up = torch.randint(0, 255, (batch_size, 112, 112, 3), dtype=torch.uint8)
        made_up = made_up.to(compute.device)
        steps = images // batch_size
        rates = {
            "step alone": best(repeats, images, lambda: ours.run([made_up] * steps)),
            "loader alone": best(
                repeats, images, lambda: len(list(loaded(table, batch_size, compute)))
            ),
            "real loop": best(
                repeats,
                images,
                lambda: ours.run(loaded(table, batch_size, compute)),
            ),
        }
        limit = limit_of(lambda: ours.run([made_up]), compute)
        plain = Plain(backbone, compute)
        rates["plain"] = best(repeats, images, lambda: plain.epoch(table, batch_size))
    for name, rate in rates.items():
        print(f"{name:<14}{rate:>10.1f} images/s")
    print(f"step alone: {limit.compared_with(batch_size / rates['step alone'])}")
    slower = min(rates["step alone"], rates["loader alone"])
    print(f"real loop / the slower of its parts: {rates['real loop'] / slower:.2f}")
    print(f"real loop / plain: {rates['real loop'] / rates['plain']:.2f}")
    return EXIT_DONE


class Trainer:
    """The training step of train.py."""

    def __init__(self, backbone: str, compute: Compute) -> None:
        """Makes network and optimiser."""
        self.compute, settings = compute, TrainConfig()
        model = FaceModel(build_network(backbone)).to(memory_format=torch.channels_last)
        self.model = model.to(compute.device).train()
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), settings.lr, settings.betas, settings.eps, fused=True
        )

    def run(self, batches_of_faces: Iterable[Tensor]) -> None:
        """A step for each (B, 112, 112, 3) uint8 on the device."""
        for faces in batches_of_faces:
            with self.compute.autocast():
                scores = self.model(faces)[:, 0]
            finish_step(scores, self.optimiser)
        wait_for(self.compute)


class Plain:
    """The published loop: one image at a time through PIL, float32, NCHW."""

    def __init__(self, backbone: str, compute: Compute) -> None:
        """Makes network and optimiser."""
        network = build_network(backbone)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, PReLU):
                    setattr(module, name, nn.PReLU(child.num_parameters))
        self.network, self.compute = network.to(compute.device).train(), compute
        self.optimiser = torch.optim.Adam(network.parameters(), 1e-4, (0.9, 0.99), 1e-6)

    def epoch(self, table: ImageList, batch_size: int) -> None:
        """One pass; a worker reads the next batch meanwhile."""
        paths = list(table.paths())
        parts = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
        with ThreadPoolExecutor(1) as worker:
            for faces in worker.map(read_with_pil, parts):
                scores = self.network(faces.to(self.compute.device))[:, 0]
                finish_step(scores, self.optimiser)
        wait_for(self.compute)


def finish_step(scores: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Loss against constant labels, gradient, update."""
    labels = torch.full_like(scores, 50.0)
    loss = nn.functional.smooth_l1_loss(scores, labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def read_with_pil(paths: list[str]) -> Tensor:
    """(B, 3, 112, 112) float32."""
    faces = [
        np.asarray(Image.open(path).convert("RGB").resize((112, 112)), np.float32) for path in paths
    ]
    stacked = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).contiguous()
    return (stacked / 255 - 0.5) / 0.5


def loaded(table: ImageList, batch_size: int, compute: Compute) -> Iterator[Tensor]:
    """Yields the images from our loader, on the device."""
    for batch in batches(table, np.arange(len(table)), batch_size):
        yield compute.put(batch.faces)


def make_images(folder: Path, count: int) -> ImageList:
    """Synthetic JPEGs of 112x112 and their list."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 255, (14, 14, 3), dtype=np.uint8)
        face = cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number}.jpg"), face)
    names = "".join(f"{folder}/{number}.jpg\n" for number in range(count))
    (folder / "list.txt").write_text(names)
    return read_table(folder / "list.txt")


def best(repeats: int, images: int, work: Callable[[], object]) -> float:
    """Images per second of the fastest pass, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return images / min(times)


if __name__ == "__main__":
    run_script(main)
