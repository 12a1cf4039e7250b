"""Networks, checkpoints, recognisers; knows no file list and no image file.

from models import load_quality_model

    model = load_quality_model("best.pth")  # or "best.onnx": onnxruntime, and torch is not imported
    scores = model(faces)  # (N, 112, 112, 3) uint8 RGB -> (N,) float32 on 0..100
"""

from models.quality import QualityModel, load_quality_model

__all__ = ["QualityModel", "load_quality_model"]
