"""The face detector YuNet in onnxruntime: half the time of OpenCV's own runner, the same rows."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.cores import own_cores
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import reading
from sdd_fiqa.images import Image, cv2

_STRIDES = (8, 16, 32)  # pixels from one place where a face may be to the next
_PARTS = ("cls", "obj", "bbox", "kps")
_OUTPUTS = [f"{part}_{stride}" for stride in _STRIDES for part in _PARTS]
_OVERLAP = 0.3  # of two boxes, intersection over union: above, they are of one face
_MOST = 5000  # candidates, before overlapping boxes are removed

_KEPT = 3 * 1280 * 1280  # values of the largest picture whose memory is kept for the next one

# The shape (1, 3, height, width) of its input, as ONNX writes it. Names that take the place of the
# numbers have the same length, so that no other byte changes.
_SIDE = rb"\n\x03\x08[\x80-\xff]."
_SHAPE = re.compile(rb"(\n\x02\x08\x01\n\x02\x08\x03)%b%b" % (_SIDE, _SIDE), re.DOTALL)
_NAMES = rb"\1" + b"\n\3\x12\1y\n\3\x12\1x"

Rows = npt.NDArray[np.float32]


class YuNet:
    """Finds faces in a picture. Threads may share it; the file is loaded at the first picture."""

    def __init__(self, path: str | os.PathLike[str], least: float) -> None:
        """Nothing is read yet.

        Args:
            path: an .onnx file with the outputs of YuNet of March 2023.
            least: faces with a lower score are left out; in (0, 1).
        """
        self.path, self.least = Path(path), least
        self._session: Any = None
        self._lock = threading.Lock()

    def rows(self, seen: Image) -> Rows:
        """(H, W, 3) uint8 RGB -> (F, 15): box (x, y, width, height), five landmarks, score.

        Raises:
            UserError: the file is no such detector.
        """
        with self._lock:
            if self._session is None:
                self._session = _load(self.path)
        height, width = seen.shape[:2]
        below, right = -height % _STRIDES[-1], -width % _STRIDES[-1]
        if below or right:
            seen = np.asarray(cv2.copyMakeBorder(seen, 0, below, 0, right, cv2.BORDER_CONSTANT))
        # It expects BGR, and misses small faces in RGB.
        values = cv2.dnn.blobFromImage(seen, swapRB=True)
        given = {self._session.get_inputs()[0].name: values}
        found = self._session.run(_OUTPUTS, given, _run_options(values.size))
        some = [
            self._decoded(stride, seen.shape[1] // stride, found[4 * i : 4 * i + 4])
            for i, stride in enumerate(_STRIDES)
        ]
        rows = np.concatenate(some)
        if len(rows) > 1:
            boxes, scores = np.trunc(rows[:, :4]).tolist(), rows[:, 14].tolist()
            kept = cv2.dnn.NMSBoxes(boxes, scores, self.least, _OVERLAP, 1.0, _MOST)
            rows = rows[np.asarray(kept, np.intp).ravel()]
        return rows

    def _decoded(self, stride: int, columns: int, parts: list[Any]) -> Rows:
        """The rows of the places of one stride where the score is high enough."""
        cls, obj, box, points = parts
        scores = np.sqrt(cls.clip(0, 1) * obj.clip(0, 1)).ravel()
        places = np.flatnonzero(scores >= self.least)
        corner = np.stack([places % columns, places // columns], axis=1).astype(np.float32)
        middle = (box[0, places, :2] + corner) * stride
        size = np.exp(box[0, places, 2:]) * stride
        landmarks = (points[0, places] + np.tile(corner, 5)) * stride
        return np.concatenate(
            [middle - size / 2, size, landmarks, scores[places, None]], axis=1, dtype=np.float32
        )


def _run_options(size: int) -> Any:
    """Frees the memory of a large picture after the run; a small one would become slower."""
    from onnxruntime import RunOptions

    options = RunOptions()
    if size > _KEPT:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _load(path: Path) -> Any:
    """A session that takes pictures of any size, on as many threads as OpenCV uses."""
    import onnxruntime  # late: it takes a tenth of a second

    with reading(path):
        content = _SHAPE.sub(_NAMES, path.read_bytes())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the error below reports what it would log
    options.intra_op_num_threads = min(max(1, cv2.getNumThreads()), own_cores())
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # pictures have many sizes
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        fixed = any(isinstance(side, int) for side in session.get_inputs()[0].shape[2:])
        if fixed or not {output.name for output in session.get_outputs()} >= set(_OUTPUTS):
            raise ValueError("it has other inputs or outputs")
    except Exception as error:  # onnxruntime's errors have no common base class
        raise UserError(f"{path}: is not a YuNet model of March 2023") from error
    return session
