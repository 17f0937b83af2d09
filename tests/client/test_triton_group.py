"""Several servers behind one client, and a fallback in this process: where calls go, and what never falls back."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from support.arrays import noise_images
from twinspire import Client, LocalTowers, TritonTowers
from twinspire.errors import (
    BundleError,
    EngineError,
    InputError,
    ServerOverloadedError,
    ServerRefusedError,
    ServerUnavailableError,
    SpaceMismatchError,
    TwinspireError,
)
from twinspire.towers import ClientCounters

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
FULL = "Exceeds maximum queue size"
IMAGES = noise_images(3)


@pytest.fixture
def free_port() -> int:
    """Find a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    ended = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ended, "the condition did not come true in time"
        time.sleep(0.01)


def _hanging(release: threading.Event) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        release.wait(20)

    return hook


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _fallback(tiny: Any) -> LocalTowers:
    """The reference engines, whose embeddings are the fake servers'."""
    return LocalTowers(tiny.bundle, precision="fp32")


def _assert_right(tiny: Any, found: np.ndarray, images: np.ndarray = IMAGES) -> None:
    difference = float(np.abs(found - tiny.model.encode_images(images)).max())
    assert difference <= 1e-6, f"largest difference {difference:.2e}"


@contextmanager
def _load(tiny: Any, towers: Any, threads: int = 4) -> Iterator[list[TwinspireError | None]]:
    """Encode in several threads for as long as the block runs; list how each call ended."""
    ended: list[TwinspireError | None] = []
    stop = threading.Event()

    def encode() -> None:
        while not stop.is_set():
            try:
                _assert_right(tiny, towers.encode_images(IMAGES))
                ended.append(None)
            except TwinspireError as error:
                ended.append(error)

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(encode) for _ in range(threads)]
        try:
            yield ended
        finally:
            stop.set()
        for future in futures:
            future.result()


# Several servers


def test_calls_are_spread(tiny: Any, start_fake: Start) -> None:
    """Calls of several threads, and of one after the other, go to each of two equal servers about equally often."""
    servers = [start_fake(hook=lambda *_: time.sleep(0.002)) for _ in range(2)]
    with TritonTowers([server.url for server in servers], tiny.bundle) as towers:
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: towers.encode_images(IMAGES), range(200)):
                _assert_right(tiny, found)
        many = [len(server.requests) for server in servers]
        for _ in range(20):
            towers.encode_images(IMAGES)
        one = [len(server.requests) - before for server, before in zip(servers, many, strict=True)]
    print(f"{many} of 200, {one} of 20")
    assert max(many) <= 1.5 * min(many)
    assert one == [10, 10]


def test_the_least_busy_server_is_chosen(tiny: Any, start_fake: Start) -> None:
    """While calls are pending on one server, the others go elsewhere."""
    release = threading.Event()
    slow = start_fake(hook=_hanging(release))
    fast = start_fake()
    with TritonTowers([slow.url, fast.url], tiny.bundle) as towers, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(towers.encode_images, IMAGES)
        _wait_for(lambda: len(slow.requests) == 1)
        for _ in range(10):
            towers.encode_images(IMAGES)
        assert (len(slow.requests), len(fast.requests)) == (1, 10)
        assert [server.pending for server in towers.counters.servers] == [1, 0]
        release.set()
        _assert_right(tiny, pending.result())


def test_no_call_fails_while_one_of_two_dies_and_returns(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One of two servers is cut off under load: no call fails, it is ejected, and gets calls again once it is back."""
    caplog.set_level(logging.INFO, logger="twinspire")
    dying, other = start_fake(hook=lambda *_: time.sleep(0.002)), start_fake(hook=lambda *_: time.sleep(0.002))
    relay = relay_to(dying)
    with TritonTowers([relay.url, other.url], tiny.bundle) as towers, _load(tiny, towers) as ended:

        def first() -> Any:
            return towers.counters.servers[0]

        _wait_for(lambda: len(dying.requests) > 50)
        relay.cut()
        _wait_for(lambda: not first().is_available)
        before, done = len(dying.requests), len(ended)
        _wait_for(lambda: len(ended) > done + 50)
        assert len(dying.requests) == before
        relay.open(dying)
        _wait_for(lambda: bool(first().is_available and len(dying.requests) > before + 50))
    assert [error for error in ended if error is not None] == []
    counters = towers.counters
    assert counters.servers[0].ejections == counters.servers[0].returns >= 1
    assert counters.servers[1].ejections == counters.fallbacks == counters.local_calls == 0
    messages = [record.getMessage() for record in caplog.records if relay.url in record.getMessage()]
    assert len(messages) == 2 * counters.servers[0].ejections


def test_an_overloaded_server_is_passed_over(tiny: Any, start_fake: Start) -> None:
    """A call that one server refuses for its full queue goes to the other; the first is not ejected."""
    full = start_fake(hook=lambda server, request, context: context.abort(grpc.StatusCode.UNAVAILABLE, FULL))
    free = start_fake()
    with TritonTowers([full.url, free.url], tiny.bundle) as towers:
        for _ in range(10):
            _assert_right(tiny, towers.encode_images(IMAGES))
        assert [server.ejections for server in towers.counters.servers] == [0, 0]
        assert len(free.requests) == 10
        free.hook = full.hook
        towers._deadline_s = 0.5
        with pytest.raises(ServerOverloadedError):
            towers.encode_images(IMAGES)


def test_a_silent_server_is_passed_over(tiny: Any, start_fake: Start) -> None:
    """A server that does not answer for half of the deadline is ejected, and the call succeeds on the other."""
    release = threading.Event()
    silent = start_fake(hook=_hanging(release))
    with TritonTowers([silent.url, start_fake().url], tiny.bundle, deadline_s=1) as towers:
        _assert_right(tiny, towers.encode_images(IMAGES))
        assert towers.counters.servers[0].ejections == 1
        release.set()


def test_calls_wait_while_every_server_is_away(tiny: Any, start_fake: Start, relay_to: Callable[..., Any]) -> None:
    """With all servers away a call waits for one until the deadline; the error is of a server that was asked."""
    servers = [start_fake(), start_fake()]
    relays = [relay_to(server) for server in servers]
    with TritonTowers([relay.url for relay in relays], tiny.bundle, deadline_s=10) as towers:
        for relay in relays:
            relay.cut()
        timer = threading.Timer(1.0, relays[1].open, [servers[1]])
        timer.start()
        _assert_right(tiny, towers.encode_images(IMAGES))
        timer.join()
        relays[1].cut()
        towers._deadline_s = 0.5
        with pytest.raises(ServerUnavailableError) as caught:
            towers.encode_images(IMAGES)
        assert caught.value.address in [relay.url for relay in relays]
        assert not any(server.is_available for server in towers.counters.servers)


def test_servers_that_are_away_at_opening(tiny: Any, start_fake: Start, free_port: int) -> None:
    """One server is enough to open; the others get calls once they are there. Without any, opening fails."""
    url = f"127.0.0.1:{free_port}"
    with TritonTowers([url, start_fake().url], tiny.bundle) as towers:
        _assert_right(tiny, towers.encode_images(IMAGES))
        late = start_fake(port=free_port)
        _wait_for(lambda: towers.counters.servers[0].is_available)
        for _ in range(4):
            towers.encode_images(IMAGES)
        assert len(late.requests) == 2
        late.stop()
    with pytest.raises(ServerUnavailableError):
        TritonTowers([url, "127.0.0.1:1"], tiny.bundle, max_retries=1)


@pytest.mark.parametrize("has_fallback", [False, True])
def test_servers_of_two_spaces_are_refused(tiny: Any, start_fake: Start, has_fallback: bool) -> None:
    """A server of another space is an error at opening, whatever else could be used."""
    fallback = LocalTowers(tiny.bundle) if has_fallback else None
    with pytest.raises(SpaceMismatchError):
        TritonTowers([start_fake().url, start_fake(space="f" * 64).url], tiny.bundle, fallback=fallback)


@pytest.mark.parametrize("url", [[], ["127.0.0.1:1", "127.0.0.1:1"], ["127.0.0.1:1", "http://a:1"], None, 8001])
def test_unusable_addresses_are_refused(tiny: Any, url: Any) -> None:
    """No address, one twice, and one that is none are InputErrors of `url`."""
    with pytest.raises(InputError) as caught:
        TritonTowers(url, tiny.bundle)
    assert caught.value.option == "url"


# A fallback in this process


def test_no_call_fails_while_the_server_is_away(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Under load the server is cut off and returns: no call fails, all are right, both changes are logged, counted."""
    caplog.set_level(logging.INFO, logger="twinspire")
    server = start_fake(hook=lambda *_: time.sleep(0.002))
    relay = relay_to(server)
    with (
        Client.connect(relay.url, tiny.bundle, fallback=_fallback(tiny)) as client,
        _load(tiny, client.towers) as ended,
    ):

        def counters() -> ClientCounters:
            assert client.counters is not None
            return client.counters

        _wait_for(lambda: len(server.requests) > 50)
        assert counters().local_calls == 0
        relay.cut()
        _wait_for(lambda: counters().local_calls > 50)
        assert counters().is_falling_back
        relay.open(server)
        _wait_for(lambda: counters().returns == counters().fallbacks >= 1)
        before = len(server.requests)
        _wait_for(lambda: len(server.requests) > before + 50)
    assert [error for error in ended if error is not None] == []
    assert not counters().is_falling_back
    messages = [record.getMessage() for record in caplog.records if relay.url in record.getMessage()]
    assert len(messages) == counters().fallbacks + counters().returns


def test_a_server_may_be_away_at_opening(tiny: Any, start_fake: Start, free_port: int) -> None:
    """With a fallback a client opens and encodes before its server is there, and uses it afterwards."""
    start = time.monotonic()
    with Client.connect(f"127.0.0.1:{free_port}", tiny.bundle, fallback=_fallback(tiny)) as client:
        _assert_right(tiny, client.towers.encode_images(IMAGES))
        assert time.monotonic() - start < 8  # not the 10 s of opening
        server = start_fake(port=free_port)
        _wait_for(lambda: client.counters is not None and client.counters.returns == 1)
        _assert_right(tiny, client.towers.encode_images(IMAGES))
        assert len(server.requests) == 1
        server.stop()


@pytest.mark.parametrize(
    ("code", "error"), [("INVALID_ARGUMENT", ServerRefusedError), ("NOT_FOUND", None), ("UNAVAILABLE", None)]
)
def test_a_refusal_does_not_fall_back(tiny: Any, start_fake: Start, code: str, error: type[Exception] | None) -> None:
    """A server that refuses a request is an error; one that is not available is not."""
    server = start_fake(hook=lambda server, request, context: context.abort(grpc.StatusCode[code], "no"))
    with Client.connect(server.url, tiny.bundle, fallback=_fallback(tiny)) as client:
        if error is None:
            _assert_right(tiny, client.towers.encode_images(IMAGES))
        else:
            with pytest.raises(error):
                client.towers.encode_images(IMAGES)
        assert client.counters is not None
        assert client.counters.local_calls == (error is None)


def test_wrong_answers_do_not_fall_back(tiny: Any, start_fake: Start, wrong_answers: dict[str, Any]) -> None:
    """Answers that are not N unit vectors are EngineErrors also where a fallback would be right."""
    server = start_fake()
    with Client.connect(server.url, tiny.bundle, fallback=_fallback(tiny)) as client:
        for answer in wrong_answers.values():
            server.hook = lambda server, request, context, answer=answer: answer(server, request)
            with pytest.raises(EngineError):
                client.towers.encode_images(IMAGES)
        with pytest.raises(InputError):
            client.towers.encode_images(IMAGES.astype(np.float32))
        assert client.counters is not None
        assert client.counters.local_calls == client.counters.fallbacks == 0


def test_a_server_that_returns_with_another_space_is_an_error(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Calls do not fall back for ever when another space is served: they fail, and the log says why."""
    relay = relay_to(start_fake())
    other = start_fake(space="f" * 64)
    with Client.connect(relay.url, tiny.bundle, fallback=_fallback(tiny)) as client:
        relay.cut()
        _assert_right(tiny, client.towers.encode_images(IMAGES))
        relay.open(other)
        _wait_for(lambda: client.counters is not None and client.counters.returns == 1)
        with pytest.raises(SpaceMismatchError):
            client.towers.encode_images(IMAGES)
    assert not other.requests
    assert any(record.levelno == logging.ERROR for record in caplog.records)


@pytest.mark.parametrize("what", ["overloaded", "silent", "silent about its models"])
def test_an_overloaded_or_silent_server_has_half_of_the_deadline(tiny: Any, start_fake: Start, what: str) -> None:
    """The fallback computes after half of the deadline at the latest; only a silent server counts as away."""
    release = threading.Event()

    server = start_fake()
    with Client.connect(server.url, tiny.bundle, fallback=_fallback(tiny), deadline_s=2) as client:
        if what == "overloaded":
            server.hook = lambda server, request, context: context.abort(grpc.StatusCode.UNAVAILABLE, FULL)
        elif what == "silent":
            server.hook = _hanging(release)
        else:
            server.config_hook = _hanging(release)
            time.sleep(0.3)  # the last answer is no longer trusted
        start = time.monotonic()
        found = client.towers.encode_images(IMAGES)
        took_s = time.monotonic() - start
        release.set()
        _assert_right(tiny, found)
        assert 0.3 < took_s < 1.9
        assert client.counters is not None
        assert client.counters.local_calls == 1
        assert client.counters.fallbacks == (what != "overloaded")


def test_a_long_call_is_not_taken_for_a_silent_server(tiny: Any, start_fake: Start) -> None:
    """A call that takes more than half of its deadline, with answers all the time, stays on the server."""
    server = start_fake(hook=lambda *_: time.sleep(0.1))
    images = noise_images(64)
    with Client.connect(server.url, tiny.bundle, fallback=_fallback(tiny), deadline_s=2.4, in_flight=1) as client:
        _assert_right(tiny, client.towers.encode_images(images), images)  # 16 requests
        assert client.counters is not None
        assert client.counters.local_calls == 0


def test_an_unusable_fallback_is_an_error_at_connect(
    tiny: Any, start_fake: Start, tmp_path: Path, make_tiny: Callable[..., Any]
) -> None:
    """What is no bundle, a bundle of another space and one without engines fail when the client connects."""
    url = start_fake().url
    with Client.connect(url, fallback=tiny.bundle.path) as client:
        _assert_right(tiny, client.towers.encode_images(IMAGES))
    for fallback, error in (
        (tmp_path, BundleError),
        (3, InputError),
        (make_tiny("other", seed=9).bundle, SpaceMismatchError),
    ):
        with pytest.raises(error):
            Client.connect(url, tiny.bundle, fallback=fallback)  # type: ignore[arg-type]


def test_nothing_falls_back_unasked(tiny: Any, start_fake: Start) -> None:
    """Without a fallback a server that is away is an error."""
    server = start_fake()
    with Client.connect(server.url, tiny.bundle, deadline_s=0.5) as client:
        server.hook = lambda server, request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(ServerUnavailableError):
            client.towers.encode_images(IMAGES)


def test_closing_ends_probes_and_the_fallback(tiny: Any, free_port: int) -> None:
    """Closing while a server is away ends the thread that asks for it, and the fallback."""
    client = Client.connect(f"127.0.0.1:{free_port}", tiny.bundle, fallback=_fallback(tiny))
    assert [thread for thread in threading.enumerate() if thread.name == "twinspire-probe"]
    client.close()
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "twinspire-probe"]
    with pytest.raises(EngineError):
        client.towers.encode_images(IMAGES)


def test_nothing_is_left_of_many_clients(tiny: Any, start_fake: Start, free_port: int) -> None:
    """200 clients that were opened, used with one server away, and closed leave no threads and no files open."""
    server = start_fake()

    def use() -> None:
        with TritonTowers([server.url, f"127.0.0.1:{free_port}"], tiny.bundle) as towers:
            towers.encode_images(IMAGES)

    for _ in range(5):
        use()
    before = threading.active_count(), _open_files()
    for _ in range(200):
        use()
    _wait_for(lambda: threading.active_count() <= before[0] + 2)
    _wait_for(lambda: _open_files() <= before[1] + 8)
