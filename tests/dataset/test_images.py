"""What is made of images that are shown or copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dataset.images import thumbnail
from sdd_fiqa.images import decode_image


@pytest.mark.parametrize("shape", [(112, 112), (1, 1), (2000, 3), (50, 300)])
def test_thumbnails_keep_proportions(shape: Any) -> None:
    small = decode_image(thumbnail(np.full((*shape, 3), (200, 30, 90), np.uint8), side=96))
    height, width = small.shape[:2]
    assert max(height, width) == min(96, max(shape))
    assert min(height, width) == max(1, round(min(shape) * min(1, 96 / max(shape))))
    assert np.abs(small.mean(axis=(0, 1)) - (200, 30, 90)).max() < 4
