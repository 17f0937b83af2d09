"""Choice of a precision by measurement: the fastest engines and runtime that keep recall become a bundle's `auto`.

Needs no torch. Engines are measured on this machine, through `LocalTowers`, as they are served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinspire_export.precision.run import PrecisionOptions, PrecisionResult, choose_precision

__all__ = ["PrecisionOptions", "PrecisionResult", "choose_precision"]


def __getattr__(name: str) -> object:
    """Import a public name at first use: the command line imports this package for every command."""
    if name in __all__:
        from twinspire_export.precision import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
