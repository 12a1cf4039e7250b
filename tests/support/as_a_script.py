"""Imported before numpy and cv2: what a script of this project sets before it imports them."""

from common.cli import show_messages
from common.cpu import one_blas_thread

one_blas_thread()
show_messages()

import dataset.images  # noqa: E402, F401  (OpenCV's settings)
