"""The flags that `serve` passes on to Triton, and those that it keeps for itself."""

from __future__ import annotations

import pytest

from twinspire.errors import InputError
from twinspire_server.triton.options import further_flags


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("log-verbose=1", "--log-verbose=1"),
        ("--log-verbose=1", "--log-verbose=1"),
        ("metrics-config=summary_latencies=true", "--metrics-config=summary_latencies=true"),
        ("backend-config=onnxruntime,x=1", "--backend-config=onnxruntime,x=1"),
        ("allow-client-shm=true", "--allow-client-shm=true"),
    ],
)
def test_a_flag_is_passed_on(given: str, passed: str) -> None:
    """Further flags are passed on, with or without dashes."""
    assert further_flags([given]) == [passed]


@pytest.mark.parametrize(
    ("given", "owned"),
    [
        ("http-address=0.0.0.0", "http-address"),
        ("--http-addr=0.0.0.0", "http-address"),
        ("grpc-restricted=", "grpc-restricted-protocol"),
        ("model-control-mode=explicit", "model-control-mode"),
        ("model-store=/x", "model-store"),
        ("allow-http=false", "allow-http"),
        ("log-file=/x", "log-file"),
        ("id", "id"),
    ],
)
def test_twinspires_own_flags_are_refused(given: str, owned: str) -> None:
    """A flag that twinspire sets is refused by its name, abbreviated as Triton allows too."""
    with pytest.raises(InputError, match=owned):
        further_flags([given])


def test_the_prefix_of_shared_memory_is_refused() -> None:
    """Another prefix would let shared memory stay behind; other settings of backends are passed on."""
    with pytest.raises(InputError, match="shm-region-prefix-name"):
        further_flags(["backend-config=python,shm-region-prefix-name=mine"])
    assert further_flags(["backend-config=python,shm-default-byte-size=1"])


@pytest.mark.parametrize("given", ["", "--", "=1", "Log", "log verbose", "-l", "/x"])
def test_what_is_no_flag_is_refused(given: str) -> None:
    """What is no NAME or NAME=VALUE is refused."""
    with pytest.raises(InputError, match="NAME=VALUE"):
        further_flags([given])
