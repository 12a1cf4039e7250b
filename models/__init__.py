"""Networks, checkpoints, recognisers; knows no file list and no image file.

from models import load_quality_model, load_recogniser

    model = load_quality_model("best.pth")  # for "best.onnx", torch is not imported
    scores = model(faces)  # (N, 112, 112, 3) uint8 RGB -> (N,) float32 on 0..100
    embeddings = load_recogniser("sface").embed(faces)  # -> (N, 128) float32, not normalised
"""

import os

# The CPU threads of a layer wait for each other in a busy loop of some milliseconds before they
# sleep. If other programs use the cores too, these loops delay the very threads that they wait for.
# A loop a thirtieth as long costs 2 % of the speed on an idle machine, and is four times as fast
# next to two busy processes (2 cores). torch reads this once, when it is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from models.quality import load_quality_model
from models.recognisers import Recogniser, load_recogniser
from sdd_fiqa.quality_onnx import QualityModel

__all__ = ["QualityModel", "Recogniser", "load_quality_model", "load_recogniser"]
