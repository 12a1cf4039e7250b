"""Networks, checkpoints, recognisers; knows no file list and no image file.

from models import load_quality_model, load_recogniser

    model = load_quality_model("best.pth")  # for "best.onnx", torch is not imported
    scores = model(faces)  # (N, 112, 112, 3) uint8 RGB -> (N,) float32 on 0..100
    embeddings = load_recogniser("sface").embed(faces)  # -> (N, 128) float32, not normalised
"""

from models.quality import load_quality_model
from models.recognisers import Recogniser, load_recogniser
from sdd_fiqa.quality_onnx import QualityModel

__all__ = ["QualityModel", "Recogniser", "load_quality_model", "load_recogniser"]
