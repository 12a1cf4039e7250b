"""How fast faces are embedded on this device: our way against the published network as it stands.

python benchmarks/extraction.py

"plain" is the published definition, float32, NCHW, in batches. "ours" is what extract_feats runs:
channels_last and, where the device is fast at it, bf16. Decoding is left out; both see one set
of faces, and the cosine between their embeddings is printed. Weights are random, with BatchNorm's
statistics taken from the faces, so that signals neither die nor grow.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dataset.command_line import EXIT_DONE, run_script
from models.checkpoints import save_network
from models.device import choose_compute
from models.networks import FaceModel, build_network
from models.recognisers import load_recogniser

Array = npt.NDArray[Any]
Way = Callable[[Array], Array]


def main(*, faces: int = 64, batch_size: int = 16, repeats: int = 3, device: str = "auto") -> int:
    """Measures images per second of both ways, turn by turn.

    Args:
        faces: made-up faces a pass.
        batch_size: faces a call.
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
        plain = FaceModel(network).to(where).eval()

        ways: dict[str, Way] = {"plain": partial(plain_way, plain, where), "ours": ours.embed}
        rates = dict.fromkeys(ways, 0.0)
        found = {}
        for _ in range(repeats + 1):  # the first pass warms up
            for name, way in ways.items():
                found[name], rate = timed(way, images, batch_size)
                rates[name] = max(rates[name], rate)
        cosine = np.sum(unit(found["plain"]) * unit(found["ours"]), axis=1)
        print(
            f"{backbone}: plain {rates['plain']:.1f} images/s, ours {rates['ours']:.1f} images/s "
            f"({ours.about['precision']}), ratio {rates['ours'] / rates['plain']:.2f}, "
            f"cosine at least {cosine.min():.5f}"
        )
    return EXIT_DONE


def settled_network(backbone: str, faces: Array) -> nn.Module:
    """A recognition network of random weights whose BatchNorms know some faces."""
    torch.manual_seed(0)
    network = build_network(backbone, recognition=True, dropout=0.0)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    with torch.no_grad():
        FaceModel(network).train()(torch.from_numpy(faces))
    return network.eval()


def plain_way(model: nn.Module, device: torch.device, faces: Array) -> Array:
    """(B, 112, 112, 3) uint8 -> (B, 512), float32 and NCHW all the way."""
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
