"""Exit code, HTTP status and gRPC status of each error.

One table for the command line and for every server. A subclass without an entry has its base class's status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from twinspire import errors


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """The status of one error class; `grpc` is the name of the gRPC status code."""

    exit_code: int
    http: int
    grpc: str


STATUSES: Mapping[type[errors.TwinspireError], ErrorStatus] = MappingProxyType(
    {
        errors.TwinspireError: ErrorStatus(2, 500, "INTERNAL"),
        errors.InputError: ErrorStatus(2, 400, "INVALID_ARGUMENT"),
        errors.ItemError: ErrorStatus(2, 400, "INVALID_ARGUMENT"),
        errors.ImageError: ErrorStatus(2, 400, "INVALID_ARGUMENT"),
        errors.AudioError: ErrorStatus(2, 400, "INVALID_ARGUMENT"),
        errors.TextLengthError: ErrorStatus(2, 400, "INVALID_ARGUMENT"),
        errors.EmbeddingError: ErrorStatus(2, 400, "INVALID_ARGUMENT"),
        errors.BundleError: ErrorStatus(2, 500, "INTERNAL"),
        errors.CheckpointError: ErrorStatus(2, 500, "INTERNAL"),
        errors.SpaceMismatchError: ErrorStatus(2, 409, "FAILED_PRECONDITION"),
        errors.IndexStoreError: ErrorStatus(2, 500, "INTERNAL"),
        errors.IndexLockedError: ErrorStatus(2, 503, "UNAVAILABLE"),  # until the other writer has finished
        errors.IndexReplacedError: ErrorStatus(2, 503, "UNAVAILABLE"),  # until the server has opened it again
        errors.IndexUncertainError: ErrorStatus(2, 500, "UNKNOWN"),
        errors.MissingDependencyError: ErrorStatus(2, 501, "UNIMPLEMENTED"),
        errors.BrokenDependencyError: ErrorStatus(2, 500, "INTERNAL"),
        errors.ProviderError: ErrorStatus(2, 500, "INTERNAL"),
        errors.EngineError: ErrorStatus(2, 500, "INTERNAL"),
        errors.ServerError: ErrorStatus(2, 502, "INTERNAL"),
        errors.ServerUnavailableError: ErrorStatus(2, 503, "UNAVAILABLE"),
        errors.ServerOverloadedError: ErrorStatus(2, 429, "RESOURCE_EXHAUSTED"),
        errors.ServerRefusedError: ErrorStatus(2, 502, "INTERNAL"),
    }
)


def error_status(error: errors.TwinspireError) -> ErrorStatus:
    """Return the status of an error: that of its class or of the nearest base class in the table."""
    return next(STATUSES[base] for base in type(error).__mro__ if base in STATUSES)
