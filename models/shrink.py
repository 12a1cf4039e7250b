"""Writes a trained checkpoint at half its size, to ship it: the same keys, in float16.

    python -m models.shrink --model checkpoints/sdd_fiqa/best.pth --out small.pth

Only the file is in float16: scores are computed in float32 or bf16, as before.
"""

from __future__ import annotations

from pathlib import Path

import torch

from common.cli import EXIT_DONE, run_script
from models.checkpoints import load_network, save_network
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import sha256_of


def main(*, model: Path, out: Path) -> int:
    """Writes a quality checkpoint in float16, and its .json next to it.

    Args:
        model: a checkpoint of train.py, with its .json next to it.
        out: the file to write, .pth.
    """
    if not model.is_file():
        raise UserError(f"{model}: no such file")
    if out.suffix != ".pth":
        raise UserError(f"--out {out}: must end in .pth")
    if out.exists() and out.samefile(model):
        raise UserError(f"--out {out}: is the file of --model; name another")
    name, network, about = load_network(model, recognition=False)
    if not about:
        raise UserError(f"{model}: has no .json next to it; take a checkpoint of train.py")
    for key, value in network.half().state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"{model}: {key} does not fit float16; ship the checkpoint unchanged")
    save_network(out, network, about)
    print(f"{out}: {name}, {out.stat().st_size / 1e6:.1f} MB, sha256 {sha256_of(out)}")
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
