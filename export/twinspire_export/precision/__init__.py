"""Choice of a precision by measurement: the fastest engines and runtime that keep recall become a bundle's `auto`.

Needs no torch. Engines are measured on this machine, through `LocalTowers`, as they are served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinspire._lazy import lazy_names

if TYPE_CHECKING:
    from twinspire_export.precision.options import PrecisionOptions
    from twinspire_export.precision.run import PrecisionResult, choose_precision

__all__ = ["PrecisionOptions", "PrecisionResult", "choose_precision"]

# At first use: the command line imports this package for every command.
__getattr__ = lazy_names(__name__, {"options": ["PrecisionOptions"], "run": ["PrecisionResult", "choose_precision"]})
