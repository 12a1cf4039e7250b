"""Networks, checkpoints, recognisers; knows no file list and no image file.

from models import load_quality_model

    model = load_quality_model("best.pth")  # or "best.onnx": onnxruntime, and torch is not imported
    scores = model(faces)  # (N, 112, 112, 3) uint8 RGB -> (N,) float32 on 0..100
"""

import os

# Threads of a layer on a CPU wait for each other in a busy loop, milliseconds long, before they
# sleep. Where other work wants the cores too, those loops keep the very threads that they wait for
# from running. Looping a thirtieth as long costs 2 % of the speed on a machine of one's own, and is
# four times as fast beside two busy processes (2 cores). Read once, by torch's import.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from models.quality import QualityModel, load_quality_model

__all__ = ["QualityModel", "load_quality_model"]
