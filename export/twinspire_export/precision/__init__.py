"""The precision of a bundle, chosen by measuring: the fastest engine and runtime that keep recall become `auto`.

Needs no torch. Engines are measured on the machine that this runs on, through `LocalTowers`, as they are served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinspire_export.precision.run import PrecisionOptions, PrecisionResult, choose_precision

__all__ = ["PrecisionOptions", "PrecisionResult", "choose_precision"]


def __getattr__(name: str) -> object:
    """Import what is asked for: the command line imports this package before it is known what is wanted."""
    if name in __all__:
        from twinspire_export.precision import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
