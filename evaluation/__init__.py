"""Numbers, plots and pages about scores; knows no network and decodes no image."""

from evaluation.edc.study import error_versus_discard

__all__ = ["error_versus_discard"]
