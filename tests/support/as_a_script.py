"""Imported before numpy and cv2: what a script of this project sets before it imports them."""

from common.cpu import one_blas_thread

one_blas_thread()

import sdd_fiqa.images  # noqa: E402, F401
