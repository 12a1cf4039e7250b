"""How fast faces are embedded on this device: our way against the plain one.

    python benchmarks/speed_extraction.py

"ours" is what extract_feats runs: channels_last, and bf16 if the device is fast at it. "plain" for
R_50 and MFN is the published network in float32 and NCHW, in batches. Their weights are random;
their BatchNorm statistics come from the faces, so that signals keep their size. "plain" for the
recognisers known by name (downloaded once) is onnxruntime: one face per run, one thread per core.

Decoding is not included. Both ways embed the same faces, and the cosine between their embeddings is
printed. If ours runs in torch, its rate is compared with the limit of the device
(benchmarks/limits.py).
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from models.checkpoints import save_network

# isort: split
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.limits import limit_of
from common.cli import EXIT_DONE, run_script
from common.device import choose_compute
from models.inference import Forward
from models.networks import FaceModel, build_network
from models.onnx_import import read_embedder
from models.recognisers import ONNX_RECOGNISERS, Recogniser, load_recogniser
from sdd_fiqa.assets import fetch

Array = npt.NDArray[Any]
Way = Callable[[Array], Array]


def main(*, faces: int = 128, batch_size: int = 16, repeats: int = 3, device: str = "auto") -> int:
    """Measures images per second of both ways, in turns.

    Args:
        faces: synthetic faces per pass.
        batch_size: faces per call of the plain way; ours chooses its own.
        repeats: passes; the best counts.
        device: auto, cpu, cuda or cuda:i.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (faces, 14, 14, 3), dtype=np.uint8)
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)  # (N, 112, 112, 3)
    for backbone in ("R_50", "MFN"):
        network = settled_network(backbone, images[:8])
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "recogniser.pth"
            save_network(weights, network, {})
            ours = load_recogniser(str(weights), backbone, device, "auto", images[:8])
        where = choose_compute(device).device
        plain = partial(plain_way, FaceModel(network).to(where).eval(), where)
        rate = compare(backbone, plain, ours, images, batch_size, repeats)
        report_limit(backbone, copy.deepcopy(network), ours, rate)
    for name in ONNX_RECOGNISERS:
        ours = load_recogniser(name, None, device, "auto", images[:8])
        one_by_one = load_recogniser(name, None, "cpu", "fp32")
        rate = compare(name, one_by_one.embed, ours, images, batch_size, repeats)
        report_limit(name, read_embedder(fetch(name))[0], ours, rate)
    return EXIT_DONE


def compare(
    name: str, plain: Way, ours: Recogniser, images: Array, batch_size: int, repeats: int
) -> float:
    """Prints both rates, their ratio and the smallest cosine; returns our rate."""
    ways = {"plain": plain, "ours": ours.embed}
    rates = dict.fromkeys(ways, 0.0)
    found = {}
    for _ in range(repeats + 1):  # the first pass warms up
        for way, embed in ways.items():
            size = ours.batch_size if way == "ours" else batch_size
            found[way], rate = timed(embed, images, size)
            rates[way] = max(rates[way], rate)
    cosine = np.sum(unit(found["plain"]) * unit(found["ours"]), axis=1)
    print(
        f"{name}: plain {rates['plain']:.1f} images/s, ours {rates['ours']:.1f} images/s "
        f"({ours.about['precision']}), ratio {rates['ours'] / rates['plain']:.2f}, "
        f"cosine at least {cosine.min():.5f}"
    )
    return rates["ours"]


def report_limit(name: str, network: nn.Module, ours: Recogniser, rate: float) -> None:
    """Compares our rate with the limit of the device, if ours runs in torch."""
    device, *precision = ours.about["precision"].split()
    if precision[0] not in ("fp32", "bf16"):  # this one runs in onnxruntime
        return
    fold = precision[0] == "fp32"  # as the recognisers have it
    forward = Forward(network, choose_compute(device, precision[0]), fold)
    batch = np.zeros((ours.batch_size, 112, 112, 3), np.uint8)
    limit = limit_of(lambda: forward.run(batch)(), forward.compute)
    print(f"{name}: {limit.compared_with(len(batch) / rate)}")


def settled_network(backbone: str, faces: Array) -> nn.Module:
    """A recognition network of random weights; its BatchNorm statistics come from the faces."""
    torch.manual_seed(0)
    network = build_network(backbone, recognition=True, dropout=0.0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    with torch.no_grad():
        FaceModel(network).train()(torch.from_numpy(faces))
    return network.eval()


def plain_way(model: nn.Module, device: torch.device, faces: Array) -> Array:
    """(B, 112, 112, 3) uint8 -> (B, 512); float32 and NCHW throughout."""
    with torch.inference_mode():
        nchw = torch.from_numpy(faces).permute(0, 3, 1, 2).contiguous().to(device)
        out: Array = model(nchw).cpu().numpy()
    return out


def timed(way: Way, images: Array, batch_size: int) -> tuple[Array, float]:
    """Embeddings of all images, and images per second."""
    started = time.perf_counter()
    parts = [way(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    return np.concatenate(parts), len(images) / (time.perf_counter() - started)


def unit(rows: Array) -> Array:
    """Rows divided by their lengths."""
    out: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


if __name__ == "__main__":
    run_script(main)
