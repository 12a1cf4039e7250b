"""Imported before numpy and cv2: what a script of this project sets before it imports them."""

from dataset.threads import one_blas_thread

one_blas_thread()

import dataset.images  # noqa: E402, F401
