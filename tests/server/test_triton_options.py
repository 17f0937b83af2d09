"""The flags that `serve` passes on to Triton, and those that it keeps for itself."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from twinspire.errors import InputError
from twinspire_server.triton.options import check_open_http, flags, further_flags


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


def _restricted(given: list[str], protocol: str) -> set[str]:
    (flag,) = [flag for flag in given if flag.startswith(f"--{protocol}=")]
    return set(flag.partition("=")[2].partition(":")[0].split(","))


def test_open_http_opens_inference_and_nothing_else() -> None:
    """Of what needs the key over HTTP, inference alone is left out; HTTP stays on this machine."""
    closed, opened = (flags(PurePath("/models"), key="k", open_http=is_open) for is_open in (False, True))
    before, after = (_restricted(given, "http-restricted-api") for given in (closed, opened))
    assert before - after == {"inference"}
    assert not after - before
    assert "--http-address=127.0.0.1" in opened
    assert [flag for flag in opened if "http-restricted" not in flag] == [
        flag for flag in closed if "http-restricted" not in flag
    ]


@pytest.mark.parametrize("version", [(2, 51), (2, 60), (2, 68), (2, 72), (1, 99), None])
def test_http_is_not_opened_on_a_triton_with_faults(version: tuple[int, ...] | None) -> None:
    """A release before 26.09, and one that is not known, is refused with both versions and the gateway."""
    with pytest.raises(InputError, match=r"2\.73.*26\.09.*gateway") as caught:
        check_open_http(version, "/opt/tritonserver/bin/tritonserver")
    assert caught.value.option == "open_http"
    if version is not None:
        assert ".".join(map(str, version)) in str(caught.value)


@pytest.mark.parametrize("version", [(2, 73), (2, 74), (3, 0)])
def test_http_may_be_opened_on_later_ones(version: tuple[int, ...]) -> None:
    """26.09, which is 2.73, and later releases are accepted."""
    check_open_http(version, "/opt/tritonserver/bin/tritonserver")
