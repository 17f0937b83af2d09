"""Towers on a server that fails: errors within the deadline, with the address, and never a wrong or partial answer."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from support.arrays import noise_images
from twinspire import TritonTowers
from twinspire.bundle import Tower
from twinspire.errors import (
    EngineError,
    ServerError,
    ServerOverloadedError,
    ServerRefusedError,
    ServerUnavailableError,
    SpaceMismatchError,
    TwinspireError,
)
from twinspire.towers import TlsOptions
from twinspire.towers.triton import server as triton_server

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
OTHER_SPACE = "f" * 64


def _largest(tiny: Any, found: np.ndarray, images: np.ndarray) -> float:
    return float(np.abs(found - tiny.model.encode_images(images)).max())


def _abort_first(count: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Callable[..., None]:
    """Refuse the first `count` inferences."""
    left = list(range(count))

    def hook(server: Any, request: Any, context: Any) -> None:
        if left:
            left.pop()
            context.abort(code, "not now")

    return hook


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listen on a port, take connections and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """Find a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# Reaching the server


def test_an_absent_server_is_named(tiny: Any, free_port: int) -> None:
    """Where nobody listens, opening fails after the retries, before the deadline, and names the address."""
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError, match=rf"127\.0\.0\.1:{free_port}") as caught:
        TritonTowers(f"127.0.0.1:{free_port}", tiny.bundle, max_retries=2, deadline_s=20)
    assert time.monotonic() - start < 5
    assert "Attempts: 3" in str(caught.value)


def test_a_silent_server_is_given_up_at_the_deadline(tiny: Any, silent_port: int) -> None:
    """A server that takes the connection and says nothing costs the deadline and no more."""
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError, match=r"\b0\.5 s\b") as caught:
        TritonTowers(f"127.0.0.1:{silent_port}", tiny.bundle, deadline_s=0.5)
    assert 0.4 < time.monotonic() - start < 2
    assert f"127.0.0.1:{silent_port}" in str(caught.value)


def test_a_server_that_comes_late_is_waited_for(tiny: Any, start_fake: Start, free_port: int) -> None:
    """A server that starts listening seconds after the client has begun to try, as one that is restarted, is found."""
    timer = threading.Timer(2.5, lambda: start_fake(port=free_port))
    timer.start()
    with TritonTowers(f"127.0.0.1:{free_port}", tiny.bundle) as towers:
        assert towers.server_version == "2.51.0"
    timer.join()


# Deadlines


def test_the_deadline_is_of_the_whole_call(tiny: Any, start_fake: Start) -> None:
    """Requests that are each quick enough but together are not end at the deadline of the call."""
    server = start_fake(hook=lambda *_: time.sleep(0.3))
    with TritonTowers(server.url, tiny.bundle, deadline_s=1.0, in_flight=1) as towers:
        start = time.monotonic()
        with pytest.raises(ServerUnavailableError, match=r"\b1 s\b") as caught:
            towers.encode_images(noise_images(40))
        assert 0.9 < time.monotonic() - start < 2
        assert server.url in str(caught.value)
        assert len(server.requests) < 10
        assert towers.encode_images(noise_images(4)).shape == (4, 12)


def test_nothing_is_repeated_after_the_deadline(tiny: Any, start_fake: Start) -> None:
    """A server that is never available gets no request once the deadline has passed."""
    server = start_fake()
    with TritonTowers(server.url, tiny.bundle, deadline_s=0.8, max_retries=1000) as towers:
        server.hook = _abort_first(10**6)
        start = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="not now"):
            towers.encode_images(noise_images(1))
        assert time.monotonic() - start < 1.5
        sent = len(server.requests)
        time.sleep(0.5)
        assert len(server.requests) == sent


# Repeating


def test_what_was_not_available_is_repeated(tiny: Any, start_fake: Start) -> None:
    """Inferences that were refused as UNAVAILABLE are sent again, each row is right, and no other is repeated."""
    server = start_fake(hook=_abort_first(3))
    images = noise_images(20)
    with TritonTowers(server.url, tiny.bundle) as towers:
        difference = _largest(tiny, towers.encode_images(images), images)
    assert difference <= 1e-7, f"largest difference {difference:.2e}"
    assert server.rows() == [4] * 8  # five requests, three of them twice


def test_retries_are_counted(tiny: Any, start_fake: Start) -> None:
    """A server that is never available gets the request `max_retries` times more, then the error comes."""
    server = start_fake(hook=_abort_first(100))
    for retries in (0, 2):
        server.requests.clear()
        with (
            TritonTowers(server.url, tiny.bundle, max_retries=retries) as towers,
            pytest.raises(ServerUnavailableError, match=f"Attempts: {retries + 1}") as caught,
        ):
            towers.encode_images(noise_images(1))
        assert server.url in str(caught.value)
        assert len(server.requests) == retries + 1


def test_retries_begin_anew_after_an_answer(tiny: Any, start_fake: Start) -> None:
    """`max_retries` counts failures in a row: a long call outlives more of them than that."""
    calls = iter(range(1000))

    def every_other(server: Any, request: Any, context: Any) -> None:
        if next(calls) % 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    server = start_fake(hook=every_other)
    images = noise_images(24)
    with TritonTowers(server.url, tiny.bundle, max_retries=1, in_flight=1) as towers:
        assert _largest(tiny, towers.encode_images(images), images) <= 1e-7


# Every other status


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_is_mapped(tiny: Any, start_fake: Start, code: grpc.StatusCode) -> None:
    """Each status of gRPC is a ServerError with address and cause; only what may succeed later is asked twice."""
    server = start_fake(hook=_abort_first(100, code))
    with TritonTowers(server.url, tiny.bundle, max_retries=1) as towers:
        with pytest.raises(ServerError, match=server.url) as caught:
            towers.encode_images(noise_images(1))
        server.hook = None
        assert towers.encode_images(noise_images(1)).shape == (1, 12)
    lost = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}  # a stopping Triton has no model any more
    given_up = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
    expected = dict.fromkeys({*lost, *given_up}, ServerUnavailableError)
    expected[grpc.StatusCode.RESOURCE_EXHAUSTED] = ServerOverloadedError
    assert type(caught.value) is expected.get(code, ServerRefusedError)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert len(server.requests) == (3 if code in {*lost, grpc.StatusCode.RESOURCE_EXHAUSTED} else 2)


def test_an_error_cancels_the_rest(tiny: Any, start_fake: Start) -> None:
    """When one request of a call is refused, the call ends at once and those under way are cancelled."""
    cancelled = threading.Semaphore(0)

    def hook(server: Any, request: Any, context: Any) -> None:
        if len(server.requests) == 4:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape")
        context.add_callback(cancelled.release)
        ended = time.monotonic() + 10
        while context.is_active() and time.monotonic() < ended:
            time.sleep(0.01)

    server = start_fake(hook=hook)
    with TritonTowers(server.url, tiny.bundle, in_flight=4) as towers:
        start = time.monotonic()
        with pytest.raises(ServerRefusedError, match="INVALID_ARGUMENT"):
            towers.encode_images(noise_images(40))
        assert time.monotonic() - start < 3
        assert all(cancelled.acquire(timeout=5) for _ in range(3))
    assert len(server.requests) == 4


# Answers that are none


def test_a_wrong_answer_is_an_error(tiny: Any, start_fake: Start, wrong_answers: dict[str, Any]) -> None:
    """An answer that is not one unit vector an image is an EngineError with the address, whatever is wrong."""
    server = start_fake()
    with TritonTowers(server.url, tiny.bundle) as towers:
        for what, answer in wrong_answers.items():
            server.hook = lambda server, request, context, answer=answer: answer(server, request)
            with pytest.raises(EngineError, match="tiny_image"):
                pytest.fail(f"{what} was taken: {towers.encode_images(noise_images(3))}")


def test_one_wrong_answer_of_many_spoils_the_call(tiny: Any, start_fake: Start, wrong_answers: dict[str, Any]) -> None:
    """A call of many requests gives nothing where one answer is wrong."""

    def hook(server: Any, request: Any, context: Any) -> Any:
        return wrong_answers["bytes missing"](server, request) if len(server.requests) == 5 else None

    server = start_fake(hook=hook)
    with TritonTowers(server.url, tiny.bundle) as towers, pytest.raises(EngineError):
        towers.encode_images(noise_images(40))


# The server's models


def test_another_space_is_refused(tiny: Any, start_fake: Start) -> None:
    """A server of another space is refused when the towers are opened; both spaces and the address are named."""
    server = start_fake(space=OTHER_SPACE)
    with pytest.raises(SpaceMismatchError, match=server.url) as caught:
        TritonTowers(server.url, tiny.bundle)
    assert str(tiny.bundle.path) in str(caught.value)


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize(
    ("change", "datum"),
    [
        (lambda config: config.parameters.clear(), "parameter 'space'"),
        (lambda config: setattr(config, "max_batch_size", 0), "max_batch_size"),
        (lambda config: setattr(config.output[0], "name", "logits"), "logits"),
        (lambda config: config.output[0].dims.append(1), "12, 1]"),
        (lambda config: setattr(config.output[0], "data_type", 12), "FP64"),
        (lambda config: setattr(config.input[0], "data_type", 11), "FP32"),
        (lambda config: config.input.add(name="mask"), "mask"),
        (lambda config: config.input[0].dims.append(3), "input"),
    ],
)
def test_models_off_the_contract_are_refused(
    tiny: Any, start_fake: Start, tower: str, change: Callable[[Any], Any], datum: str
) -> None:
    """A model without space, batches or the contract's tensors is a ServerError that says what is wrong."""
    server = start_fake()
    change(server.configs[f"tiny_{tower}"])
    with pytest.raises(ServerError) as caught:
        TritonTowers(server.url, tiny.bundle)
    assert (caught.value.address, caught.value.model) == (server.url, f"tiny_{tower}")
    assert datum in str(caught.value)


@pytest.mark.parametrize("lengths", ["", "8", "8,40", "0,20", "8;20", "ragged"])
def test_unusable_text_lengths_are_refused(tiny: Any, start_fake: Start, lengths: str) -> None:
    """Text lengths that do not end with the bundle's context are a ServerError."""
    server = start_fake(text_lengths=lengths)
    with pytest.raises(ServerError, match="text_lengths"):
        TritonTowers(server.url, tiny.bundle)


def test_a_server_without_the_models_is_refused(tiny: Any, start_fake: Start) -> None:
    """A server that does not know the model is a ServerRefusedError that names it."""
    server = start_fake()
    with pytest.raises(ServerRefusedError, match="nobody_image") as caught:
        TritonTowers(server.url, tiny.bundle, name="nobody")
    assert server.url in str(caught.value)


# Death and return


def test_models_that_are_gone_for_a_while_are_waited_for(tiny: Any, start_fake: Start) -> None:
    """Models that were there, are not for a moment and come back, as at a restart, cost a call only time."""
    server = start_fake()
    images = noise_images(40)
    with TritonTowers(server.url, tiny.bundle, max_retries=20) as towers:
        configs, server.configs = server.configs, {}
        server.hook = lambda server, request, context: context.abort(grpc.StatusCode.NOT_FOUND, "no available versions")

        def come_back() -> None:
            server.configs, server.hook = configs, None

        timer = threading.Timer(0.4, come_back)
        timer.start()
        assert _largest(tiny, towers.encode_images(images), images) <= 1e-7
        timer.join()


def test_models_that_are_being_unloaded_are_waited_for_at_opening(tiny: Any, start_fake: Start) -> None:
    """Opening while a server is exchanged, its models unloaded but known, is repeated."""
    server = start_fake()
    left = [1, 2]

    def unloaded(server: Any, request: Any, context: Any) -> None:
        if left:
            left.pop()
            text = f"Request for unknown model: '{request.name}' has no available versions"
            context.abort(grpc.StatusCode.NOT_FOUND, text)

    server.config_hook = unloaded
    with TritonTowers(server.url, tiny.bundle) as towers:
        assert towers.encode_images(noise_images(1)).shape == (1, 12)
    assert not left


class Held:
    """A hook that holds each inference for a while and says when four, a whole window, are under way."""

    def __init__(self) -> None:
        self.under_way = threading.Event()

    def __call__(self, server: Any, request: Any, context: Any) -> None:
        """Hold one."""
        if server.under_way == 4:
            self.under_way.set()
        time.sleep(0.2)


def test_a_death_under_load_gives_errors_and_the_client_works_again(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any]
) -> None:
    """Threads whose server dies get an error in time or the whole right answer; then the same towers work."""
    server = start_fake(hook=lambda *_: time.sleep(0.02))
    relay = relay_to(server)
    images = noise_images(40)
    with TritonTowers(relay.url, tiny.bundle, deadline_s=3) as towers:

        def load(_: int) -> list[str]:
            ended = []
            while "ServerUnavailableError" not in ended and len(ended) < 200:
                start = time.monotonic()
                try:
                    ended.append("right" if _largest(tiny, towers.encode_images(images), images) <= 1e-7 else "wrong")
                except TwinspireError as error:
                    ended.append(type(error).__name__)
                assert time.monotonic() - start < 4
            return ended

        with ThreadPoolExecutor(4) as pool:
            runs = pool.map(load, range(4))
            time.sleep(0.5)
            relay.cut()
            outcomes = [outcome for run in runs for outcome in run]
        assert set(outcomes) == {"right", "ServerUnavailableError"}
        relay.open(server)
        assert _largest(tiny, towers.encode_images(images), images) <= 1e-7


def test_a_restart_within_the_retries_is_not_seen(tiny: Any, start_fake: Start, relay_to: Callable[..., Any]) -> None:
    """A call whose server dies and returns while it waits gives the whole right answer."""
    held = Held()
    server = start_fake(hook=held)
    relay = relay_to(server)
    images = noise_images(40)
    with TritonTowers(relay.url, tiny.bundle, max_retries=20) as towers, ThreadPoolExecutor(1) as pool:
        call = pool.submit(towers.encode_images, images)
        assert held.under_way.wait(5)
        relay.cut()
        relay.open(server)
        assert _largest(tiny, call.result(20), images) <= 1e-7
    assert len(server.requests) > 10


@pytest.mark.parametrize("when", ["during a call", "after a failed call", "while idle"])
def test_a_server_of_another_space_in_its_place_is_refused(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whenever the server is exchanged for one of another space, that is refused and nothing is sent to it."""
    held = Held()
    relay = relay_to(start_fake(hook=held))
    other = start_fake(space=OTHER_SPACE)
    with TritonTowers(relay.url, tiny.bundle, max_retries=20, deadline_s=5) as towers, ThreadPoolExecutor(1) as pool:
        towers.encode_images(noise_images(1))
        if when == "during a call":
            call = pool.submit(towers.encode_images, noise_images(40))
            assert held.under_way.wait(5)
        relay.cut()
        if when == "after a failed call":
            monkeypatch.setattr(towers._group, "_max_retries", 0)
            with pytest.raises(ServerUnavailableError):
                towers.encode_images(noise_images(1))
            monkeypatch.setattr(towers._group, "_max_retries", 20)
        elif when == "while idle":
            monkeypatch.setattr(triton_server, "_TRUSTED_S", 0.0)
        relay.open(other)
        if when != "during a call":
            call = pool.submit(towers.encode_images, noise_images(1))
        with pytest.raises(SpaceMismatchError, match=relay.url):
            call.result(20)
    assert not other.requests


def test_other_settings_after_a_restart_end_the_call(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any]
) -> None:
    """A server that returns during a call with other settings ends it with a ServerError; the next call takes them."""
    held = Held()
    relay = relay_to(start_fake(hook=held))
    other = start_fake(max_batch=3)
    images = noise_images(40)
    with TritonTowers(relay.url, tiny.bundle, max_retries=20) as towers, ThreadPoolExecutor(1) as pool:
        call = pool.submit(towers.encode_images, images)
        assert held.under_way.wait(5)
        relay.cut()
        relay.open(other)
        with pytest.raises(ServerError, match=r"other settings.*max_batch=3"):
            call.result(20)
        assert _largest(tiny, towers.encode_images(images), images) <= 1e-7
    assert max(other.rows()) == 3


def test_looking_again_costs_nothing_while_the_server_answers(tiny: Any, start_fake: Start) -> None:
    """Calls in a row look at the server's models once."""
    server = start_fake()
    with TritonTowers(server.url, tiny.bundle) as towers:
        for _ in range(20):
            towers.encode_images(noise_images(1))
    assert server.asked == ["ServerMetadata"]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a key and a certificate for 127.0.0.1, signed with itself."""
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    subprocess.run([*command, *name, "-keyout", key, "-out", chain], check=True, capture_output=True)
    return key, chain


def test_tls_with_both_sides_certificates(tiny: Any, start_fake: Start, certificate: tuple[Path, Path]) -> None:
    """With the right certificates calls work; without a client's, without trust or without TLS they do not."""
    key, chain = certificate
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), chain.read_bytes())], root_certificates=chain.read_bytes(), require_client_auth=True
    )
    server = start_fake(credentials=credentials)
    right = TlsOptions(root_certificates=chain, client_key=key, client_certificate=chain)
    with TritonTowers(server.url, tiny.bundle, tls=right) as towers:
        assert towers.encode_images(noise_images(3)).shape == (3, 12)
        assert towers.statistics(Tower.IMAGE).requests == 12
    for wrong in (TlsOptions(root_certificates=chain), TlsOptions(client_key=key, client_certificate=chain), None):
        with pytest.raises(ServerUnavailableError, match=server.url):
            TritonTowers(server.url, tiny.bundle, tls=wrong, max_retries=0, deadline_s=5)


# Attributes


def test_an_unavailable_server_is_described(tiny: Any, start_fake: Start, free_port: int) -> None:
    """Address, gRPC status, attempts and deadline of a failed call are attributes of its error."""
    address = f"127.0.0.1:{free_port}"
    with pytest.raises(ServerUnavailableError) as caught:
        TritonTowers(address, tiny.bundle, max_retries=2, deadline_s=8)
    error = caught.value
    assert (error.address, error.code, error.attempts, error.deadline_s) == (address, "UNAVAILABLE", 3, 8)


def test_a_refusal_is_described(tiny: Any, start_fake: Start) -> None:
    """The status of a refusal is an attribute of its error, and both spaces of a mismatch are."""
    server = start_fake()
    with pytest.raises(ServerRefusedError) as caught:
        TritonTowers(server.url, tiny.bundle, name="other")
    assert (caught.value.address, caught.value.code) == (server.url, "NOT_FOUND")
    with pytest.raises(SpaceMismatchError) as mismatch:
        TritonTowers(start_fake(space="f" * 64).url, tiny.bundle)
    assert (mismatch.value.expected, mismatch.value.found) == (tiny.bundle.space, "f" * 64)
