"""onnxruntime: imported at first use, with its own log and its telemetry off."""

from __future__ import annotations

import functools
from typing import Any

from twinspire._dependencies import import_failure

ONLY_FATAL = 4
"""onnxruntime's severity of a log that stays empty: its errors come as exceptions, a log would say them twice."""
_PACKAGES = {"onnxruntime": "cpu", "onnxruntime-gpu": "gpu"}


def onnxruntime_library(purpose: str = "Running engines in this process") -> Any:  # noqa: ANN401  ships no types
    """Return the module.

    Raises `MissingDependencyError` where it is not installed, `BrokenDependencyError` where it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise import_failure(error, "onnxruntime", _PACKAGES, purpose) from error
    _silence()
    return onnxruntime


@functools.cache  # once: whoever turns the log up afterwards, to look for a fault, keeps it so
def _silence() -> None:
    """Switch the log of what belongs to no session off, and the telemetry.

    Without a GPU each session that is asked for CUDA logs "Failed to load library libonnxruntime_providers_cuda.so".
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(ONLY_FATAL)
    onnxruntime.disable_telemetry_events()
