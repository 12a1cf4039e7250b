"""Face image quality for products: a photo in, scored faces out. torch is not needed.

The shipped model is for research: its training faces, and one of the recognisers that made its
labels, allow nothing else. `load(model="own.onnx")` takes a model that you trained on your own
faces (export_onnx.py writes the file). The code is under the Apache License 2.0.

    import sdd_fiqa

    scorer = sdd_fiqa.load()
    for face in scorer("photo.jpg"):  # path, bytes, PIL image or (H, W, 3) uint8 RGB array
        print(face.score, face.percentile, face.box, face.accepted(0.95))
    for faces in scorer.map(paths):  # many photos, on all cores
        ...
    scores = scorer.score(crops)  # (N, 112, 112, 3) uint8 RGB, aligned -> (N,) float32

Messages go to `logging.getLogger("sdd_fiqa")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdd_fiqa.scorer import Face, Scorer, load

__version__ = "0.2.0"
__all__ = ["Face", "Scorer", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Late, since scripts set the threads of numpy before they import it.
    if name in ("Face", "Scorer", "load"):
        from sdd_fiqa import scorer

        return getattr(scorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
