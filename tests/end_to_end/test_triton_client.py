"""The client on a real Triton: the same vectors as in process, and a server that is killed, stopped or wrong."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.arrays import noise_images
from support.triton_faults import FIXED_CANCELLATIONS, is_killed, version
from twinspire import Client, LocalTowers, TritonTowers
from twinspire.bundle import Tower
from twinspire.errors import ServerRefusedError, ServerUnavailableError, SpaceMismatchError, TwinspireError
from twinspire.towers.triton import ModelStatistics
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer

# The same engine runs on either side; only which rows share a batch differs.
TOLERANCE = 1e-6


@pytest.fixture(scope="module", params=["fp32", "int8"])
def precision(request: pytest.FixtureRequest) -> str:
    """The precision that is served."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(tiny: Any, precision: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Serve the tiny bundle at one precision."""
    repository = tmp_path_factory.mktemp("served") / precision
    build_repository([tiny.bundle.path], repository, precision=precision, threads=1)
    with TritonServer(repository) as started:
        yield started


@pytest.fixture
def own_server(tiny: Any, tmp_path: Path) -> Iterator[Callable[..., TritonServer]]:
    """Start servers that a test may kill: `own_server(grpc_port=...)`; they end with the test."""
    build_repository([tiny.bundle.path], tmp_path / "repository", precision="fp32", threads=1)
    started: list[TritonServer] = []

    def start(**options: Any) -> TritonServer:
        started.append(TritonServer(tmp_path / "repository", log_file=tmp_path / "log.txt", **options).start())
        return started[-1]

    yield start
    for each in started:
        each.stop()


def _texts(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(count)
    return [np.array([1, *generator.integers(4, 18, generator.integers(0, 19)), 2], np.int32) for _ in range(count)]


def _counted(towers: TritonTowers, before: ModelStatistics, requests: int) -> ModelStatistics:
    """Return what came after `before` once `requests` are counted: a batch is, a little after its answers went out."""
    deadline = time.monotonic() + 10
    while True:
        came = towers.statistics(Tower.IMAGE).since(before)
        if came.requests >= requests or time.monotonic() > deadline:
            return came
        time.sleep(0.01)


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("singly", [False, True])
def test_vectors_are_those_of_the_same_engine_in_process(
    tiny: Any, server: TritonServer, precision: str, singly: bool
) -> None:
    """Images and texts of several batches come back as `LocalTowers` encodes them, in order."""
    local = LocalTowers(tiny.bundle, precision=precision, provider="cpu", threads=1)
    with TritonTowers(server.grpc_url, tiny.bundle, send_images_singly=singly) as towers:
        images = _largest(towers.encode_images(noise_images(100)), local.encode_images(noise_images(100)))
        texts = _largest(towers.encode_texts(_texts(200)), local.encode_texts(_texts(200)))
    local.close()
    print(f"largest differences at {precision}: images {images:.1e}, texts {texts:.1e}")
    assert max(images, texts) <= TOLERANCE, f"largest differences: images {images:.2e}, texts {texts:.2e}"


def test_single_images_are_batched_by_the_server(tiny: Any, server: TritonServer) -> None:
    """Images sent one a request share executions: the statistics say how many did."""
    with TritonTowers(server.grpc_url, tiny.bundle, send_images_singly=True) as towers:
        for _ in range(10):  # on a busy machine so small a model may keep up with its requests
            before = towers.statistics(Tower.IMAGE)
            towers.encode_images(noise_images(400))
            came = _counted(towers, before, 400)
            if came.executions < came.requests:
                break
    assert (came.requests, came.inferences) == (400, 400)
    assert came.mean_batch_size is not None
    print(f"mean batch size {came.mean_batch_size:.1f}")  # so small a model hardly lets any wait
    assert 1 < came.mean_batch_size <= 32


def test_a_client_of_files_and_words(tiny: Any, server: TritonServer, precision: str) -> None:
    """`Client.connect` gives what `Client.local` gives, and names the server's version."""
    texts, pictures = ["a red cat on the snow", "", "the blue boat"], list(noise_images(40))
    with (
        Client.connect(server.grpc_url, tiny.bundle.path, threads=1) as served,
        Client.local(tiny.bundle, precision=precision, provider="cpu", threads=1) as local,
    ):
        assert _largest(served.encode_texts(texts), local.encode_texts(texts)) <= TOLERANCE
        assert _largest(served.encode_images(pictures), local.encode_images(pictures)) <= TOLERANCE
        assert isinstance(served.towers, TritonTowers)
        assert served.towers.server_version == server.version


def test_a_bundle_of_another_space_is_refused(make_tiny: Callable[..., Any], server: TritonServer) -> None:
    """A bundle of the served one's name but another space is refused before anything is encoded."""
    other = make_tiny(seed=1)
    with pytest.raises(SpaceMismatchError, match="'tiny_image'"):
        Client.connect(server.grpc_url, other.bundle)


def test_a_server_without_the_model_says_so(tiny: Any, server: TritonServer) -> None:
    """Models that the server has not are a ServerRefusedError with the server's own words."""
    with pytest.raises(ServerRefusedError, match="nobody_image"):
        TritonTowers(server.grpc_url, tiny.bundle, name="nobody")


def test_the_http_port_is_not_the_grpc_port(tiny: Any, server: TritonServer) -> None:
    """The address of the HTTP service gives an error in time."""
    address = server.http_url.removeprefix("http://")
    with pytest.raises(ServerUnavailableError, match=address):
        TritonTowers(address, tiny.bundle, deadline_s=3)


def test_an_absent_server_is_named(tiny: Any) -> None:
    """Where no server is, opening fails with the address after 10 s, long before the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError, match=address):
        TritonTowers(address, tiny.bundle)
    assert 5 < time.monotonic() - start < 15


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_under_load_gives_errors_and_nothing_wrong(
    tiny: Any, own_server: Callable[..., TritonServer], ending: signal.Signals
) -> None:
    """Killed or ended under load: each call gives all its right rows or an error in time; restarted, it works again."""
    server = own_server()
    images, texts = noise_images(300), _texts(300)
    local = LocalTowers(tiny.bundle, precision="fp32", provider="cpu", threads=1)
    expected = {Tower.IMAGE: local.encode_images(images), Tower.TEXT: local.encode_texts(texts)}
    local.close()
    deadline_s = 5.0
    outcomes: Counter[str] = Counter()

    def call(towers: TritonTowers, tower: Tower) -> str:
        start = time.monotonic()
        try:
            found = towers.encode_images(images) if tower is Tower.IMAGE else towers.encode_texts(texts)
            outcome = "right" if _largest(found, expected[tower]) <= TOLERANCE else "wrong"
        except TwinspireError as error:
            outcome = type(error).__name__ if server.grpc_url in str(error) else f"without address: {error}"
        assert time.monotonic() - start < deadline_s + 1
        outcomes[outcome] += 1
        return outcome

    with (
        TritonTowers(server.grpc_url, tiny.bundle, deadline_s=deadline_s, send_images_singly=True) as towers,
        ThreadPoolExecutor(4) as pool,
    ):

        def load(tower: Tower) -> None:
            while call(towers, tower) == "right":
                pass

        loads = [pool.submit(load, tower) for tower in 2 * (Tower.IMAGE, Tower.TEXT)]
        time.sleep(1)
        os.kill(server.pid, ending)
        for each in loads:
            each.result(60)
        print(f"{ending.name}: {dict(outcomes)}")
        assert set(outcomes) == {"right", "ServerUnavailableError"}
        server.wait(30)
        own_server(grpc_port=server.ports.grpc)
        assert {call(towers, tower) for tower in (Tower.IMAGE, Tower.TEXT)} == {"right"}


def test_a_call_outlives_a_restart(tiny: Any, own_server: Callable[..., TritonServer]) -> None:
    """A call during which the server is killed and restarted succeeds."""
    server = own_server()
    images = noise_images(20_000)
    local = LocalTowers(tiny.bundle, precision="fp32", provider="cpu", threads=1)
    expected = local.encode_images(images)
    local.close()
    with (
        TritonTowers(server.grpc_url, tiny.bundle, deadline_s=60, send_images_singly=True) as towers,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(towers.encode_images, images)
        time.sleep(0.5)
        os.kill(server.pid, signal.SIGKILL)
        server.wait(30)
        assert not call.done()
        own_server(grpc_port=server.ports.grpc)
        assert _largest(call.result(60), expected) <= TOLERANCE


def test_a_server_that_hangs_is_given_up_at_the_deadline(tiny: Any, own_server: Callable[..., TritonServer]) -> None:
    """A server that is halted costs a call its deadline; when it goes on, the same towers work.

    The deadline cancels the call, which now and then kills 2.51 (SECURITY.md): then they work with the next server.
    """
    server = own_server()
    with TritonTowers(server.grpc_url, tiny.bundle, deadline_s=1.0) as towers:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(ServerUnavailableError, match=server.grpc_url):
                towers.encode_images(noise_images(100))
            assert 0.9 < time.monotonic() - start < 2
        finally:
            os.kill(server.pid, signal.SIGCONT)
        try:
            vectors = towers.encode_images(noise_images(100))
        except ServerUnavailableError:
            if version(server) >= FIXED_CANCELLATIONS or not is_killed(server):
                raise
            own_server(grpc_port=server.ports.grpc)
            vectors = towers.encode_images(noise_images(100))
        assert vectors.shape == (100, 12)
