"""Numbers, plots and pages about scores; knows no network and decodes no image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.edc.study import error_versus_discard

__all__ = ["error_versus_discard"]


def __getattr__(name: str) -> Any:
    # Late, since eval.py needs other parts alone, and starts sooner without it.
    if name == "error_versus_discard":
        from evaluation.edc import study

        return study.error_versus_discard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
