"""The attributes of errors, and the status that each has outside of Python."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from twinspire import errors
from twinspire.error_status import STATUSES, error_status

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
# The canonical codes of gRPC (google.rpc.Code) that stand for a failure.
GRPC = {
    *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
}


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_class_has_a_status(error: type[errors.TwinspireError]) -> None:
    """Each class has an entry of its own, with an exit code, an HTTP failure and a canonical gRPC code."""
    status = STATUSES[error]
    assert 0 < status.exit_code < 126
    assert 400 <= status.http < 600
    assert status.grpc in GRPC


@pytest.mark.parametrize("error", CLASSES)
def test_the_caller_is_blamed_for_input_errors_alone(error: type[errors.TwinspireError]) -> None:
    """HTTP 400 and INVALID_ARGUMENT come together, for `InputError` and its subclasses and for no other class."""
    is_input = issubclass(error, errors.InputError)
    assert (STATUSES[error].http == 400, STATUSES[error].grpc == "INVALID_ARGUMENT") == (is_input, is_input)


def test_a_class_without_an_entry_has_its_bases_status() -> None:
    """A subclass outside of the table has the status of the nearest base class."""

    class FullError(errors.ServerOverloadedError):
        pass

    assert error_status(FullError("full")) == STATUSES[errors.ServerOverloadedError]
    assert error_status(errors.ImageError(0, "a.jpg", "broken")) == STATUSES[errors.ImageError]


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (
            errors.InputError("bad", option="k", path="a.txt", line=3, position=7),
            {"option": "k", "path": Path("a.txt"), "line": 3, "position": 7},
        ),
        (errors.EmbeddingError("bad", position=2), {"position": 2, "option": None, "path": None, "line": None}),
        (errors.SpaceMismatchError("two", expected="a", found="b"), {"expected": "a", "found": "b"}),
        (errors.ProviderError("no", provider="cuda", available=["cpu"]), {"provider": "cuda", "available": ("cpu",)}),
        (
            errors.EngineError("no", path="x.onnx", tower="text", row=1),
            {"path": Path("x.onnx"), "tower": "text", "row": 1},
        ),
        (
            errors.ServerOverloadedError(
                "full", address="h:1", model="m", code="UNAVAILABLE", attempts=3, deadline_s=2.5
            ),
            {"address": "h:1", "model": "m", "code": "UNAVAILABLE", "attempts": 3, "deadline_s": 2.5},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_carry_attributes(error: errors.TwinspireError, attributes: dict[str, object]) -> None:
    """What was passed can be read from the error, also after it was pickled; its text is the message."""
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert {name: getattr(same, name) for name in attributes} == attributes
        assert str(same) == str(error.args[0])


def test_an_image_error_says_which_image() -> None:
    """It has position, name and cause, and all three stand in the message."""
    error = errors.ImageError(4, "a.jpg", "no image")
    assert (error.position, error.name, error.cause) == (4, "a.jpg", "no image")
    assert all(part in str(error) for part in ("4", "a.jpg", "no image"))
