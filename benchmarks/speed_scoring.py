"""How fast eval.py scores: against the published way, and against the network alone.

    python -m benchmarks.speed_scoring                           synthetic JPEGs, R_50 and MFN
    python -m benchmarks.speed_scoring --images faces/ --count 10000 --repeats 3

The published way scores one image at a time: Pillow, torchvision's transforms, float32. Ours is
what eval.py runs, decoding included, at the default precision. "network alone" is the batched
forward pass over decoded faces. All run in turns, several times. The best of each counts, because
other programs can only slow it down. Weights are random, which does not change the time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.cli import EXIT_DONE, note, run_script
from dataset.faces import Faces
from dataset.find import find_images
from dataset.images import read_face
from dataset.left_out import Skipped
from dataset.lists import ImageList, table_of
from evaluation.scoring import score
from models import QualityModel, load_quality_model
from sdd_fiqa.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"R_50": 2.3, "MFN": 2.5}  # times the published way
OF_ALONE = 0.8  # of the network's own rate


def main(
    *,
    images: Path | None = None,
    count: int = 512,
    repeats: int = 3,
    published_count: int = 64,
    device: str = "auto",
) -> int:
    """Measures rates of scoring, and the time from the shell to the first score.

    Args:
        images: a folder of aligned faces; without it, synthetic JPEGs are made.
        count: how many images.
        repeats: rounds; the best of each counts.
        published_count: images per round for the published way; its rate needs no more.
        device: auto, cpu, cuda or cuda:i.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = images or make_faces(folder / "faces", count)
        paths = islice(find_images([str(source)], Skipped()), count)
        table = table_of(paths, folder / "list.txt")
        for backbone in GOALS:
            checkpoint = make_models(folder, backbone)
            best = rates(checkpoint, table, repeats, published_count, device)
            report_rates(backbone, best)
            report_limit(backbone, checkpoint, best["eval.py"], device)
            for suffix in (".pth", ".onnx"):
                model = checkpoint.with_suffix(suffix)
                seconds = min(first_score(model, table.path(0)) for _ in range(repeats))
                print(f"{backbone}{suffix}: from the shell to the first score {seconds:.2f} s")
    return EXIT_DONE


def rates(
    checkpoint: Path, table: ImageList, repeats: int, published_count: int, device: str
) -> dict[str, float]:
    """{way: images per second, the best of all rounds}."""
    ours = load_quality_model(checkpoint, device=device)
    onnx = load_quality_model(checkpoint.with_suffix(".onnx"), device="cpu")
    faces = np.stack([read_face(path) for path in table.paths_at(range(min(len(table), 512)))])
    few = min(len(table), published_count)
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "published": (few, published_way(checkpoint, table, few, device)),
        "eval.py": (len(table), lambda: run_pipeline(table, ours)),
        "network alone": (len(faces), lambda: run_alone(faces, ours)),
        "eval.py, ONNX": (len(table), lambda: run_pipeline(table, onnx)),
        "ONNX alone": (len(faces), lambda: run_alone(faces, onnx)),
    }
    best = dict.fromkeys(ways, 0.0)
    for model in (ours, onnx):
        model(faces[: model.batch_size])  # the first call chooses kernels
    for _ in range(repeats):
        for name, (images, way) in ways.items():
            start = time.perf_counter()
            way()
            best[name] = max(best[name], images / (time.perf_counter() - start))
    return best


def published_way(
    checkpoint: Path, table: ImageList, count: int, device: str
) -> Callable[[], None]:
    """The published eval.py's steps, for `count` images instead of one."""
    import torch
    from PIL import Image
    from torchvision import transforms  # type: ignore[import-untyped]

    from common.device import choose_compute
    from models.checkpoints import load_network

    where = choose_compute(device, "fp32").device
    network = load_network(checkpoint, recognition=False)[1].to(where)
    prepare = transforms.Compose(
        [
            transforms.Resize((112, 112)),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )

    def run() -> None:
        with torch.no_grad():
            for path in islice(table.paths(), count):
                with Image.open(path) as image:
                    face = prepare(image.convert("RGB"))
                network(face.unsqueeze(0).to(where))[0].cpu().numpy()

    return run


def run_pipeline(table: ImageList, model: QualityModel) -> None:
    """Scores a list as eval.py does, without reading arguments or writing files."""
    scores, _ = score(Faces(table, model.batch_size), len(table), model)
    if scores.reasons:
        raise UserError(f"{table.path(min(scores.reasons))}: cannot be scored; choose others")


def run_alone(faces: Any, model: QualityModel) -> None:
    """The batched forward pass over (N, 112, 112, 3) uint8 faces, one batch ahead."""
    last: Callable[[], Any] | None = None
    for start in range(0, len(faces), model.batch_size):
        scores = model.begin(faces[start : start + model.batch_size])
        if last is not None:
            last()
        last = scores
    if last is not None:
        last()


def first_score(model: Path, image: str) -> float:
    """Seconds of `python eval.py IMAGE --model MODEL`, the whole process."""
    command = [sys.executable, str(ROOT / "eval.py"), image, "--model", str(model), "--out", "-"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"eval.py: {done.stderr}")
    return seconds


def report_rates(backbone: str, best: dict[str, float]) -> None:
    """Prints rates, ratios and the goals."""
    for name, rate in best.items():
        print(f"{backbone}: {name:<14} {rate:8.1f} images/s")
    against = best["eval.py"] / best["published"]
    share = best["eval.py"] / best["network alone"]
    print(
        f"{backbone}: {against:.2f} times the published way (goal {GOALS[backbone]}), "
        f"{share:.0%} of the network alone (goal {OF_ALONE:.0%})"
    )


def report_limit(backbone: str, checkpoint: Path, rate: float, device: str) -> None:
    """Compares the rate with the limit of the device for the network alone."""
    from benchmarks.limits import limit_of
    from common.device import choose_compute
    from models.checkpoints import load_network
    from models.inference import Forward

    forward = Forward(load_network(checkpoint, recognition=False)[1], choose_compute(device))
    batch = np.zeros((forward.batch_size, 112, 112, 3), np.uint8)
    limit = limit_of(lambda: forward.run(batch)(), forward.compute)
    print(f"{backbone}: {limit.compared_with(len(batch) / rate)}")


def make_models(folder: Path, backbone: str) -> Path:
    """A checkpoint of random weights, with its ONNX export next to it."""
    import torch

    from models.networks import build_network
    from models.onnx_export import onnx_bytes

    torch.manual_seed(0)
    network = build_network(backbone).eval()
    path = folder / f"{backbone}.pth"
    torch.save(network.state_dict(), path)
    path.with_suffix(".onnx").write_bytes(onnx_bytes(network, {"model": backbone}))
    return path


def make_faces(folder: Path, count: int) -> Path:
    """JPEGs of 112x112 that decode about as fast as faces."""
    folder.mkdir()
    note(f"making {count} JPEGs")
    for row, pixels in enumerate(islice(_patterns(), count)):
        cv2.imwrite(str(folder / f"{row:06}.jpg"), pixels)
    return folder


def _patterns() -> Iterator[Any]:
    rng = np.random.default_rng(0)
    while True:
        coarse = rng.uniform(0, 255, (14, 14, 3)).astype(np.float32)
        fine = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)
        yield np.clip(fine + rng.normal(0, 6, fine.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    run_script(main)
