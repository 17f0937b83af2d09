"""The client for asyncio: the same vectors and errors as `Client`, a free event loop, and cancellation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from support.arrays import noise_images
from support.clap import sounds
from twinspire import AsyncClient, Client, LocalTowers
from twinspire.bundle import Tower
from twinspire.errors import (
    AudioError,
    BundleError,
    EngineError,
    ImageError,
    InputError,
    ServerError,
    ServerOverloadedError,
    ServerRefusedError,
    ServerUnavailableError,
    SpaceMismatchError,
    TwinspireError,
)
from twinspire.towers import AsyncTritonTowers

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
TEXTS = ["a red cat", "", "the blue boat on the snow"] * 30
IMAGES = list(noise_images(70))


@pytest.fixture(autouse=True)
def nothing_unread(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail where asyncio logs an error that nobody read, or a task that was left."""
    yield
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def _wait_for(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    ended = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ended, "the condition did not come true in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def _ticking() -> AsyncIterator[list[float]]:
    """List the times at which the event loop came round, every 10 ms at most."""
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    task = asyncio.create_task(tick())
    yield ticks
    task.cancel()


def _closing_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]  # searchers of tests before these may be among them
    return [name for name in names if name.startswith("twinspire") and not name.startswith("twinspire-search")]


@pytest.mark.parametrize("is_local", [False, True])
def test_texts_and_images_are_encoded_as_by_the_client(tiny: Any, start_fake: Start, is_local: bool) -> None:
    """Texts and images give the vectors of `Client`, in the order given; so do none of them."""
    with Client.local(tiny.bundle, precision="fp32") as client:
        texts, images, pixels = client.encode_texts(TEXTS), client.encode_images(IMAGES), client.preprocess(IMAGES)
    url = start_fake().url

    async def run() -> None:
        opening = (
            AsyncClient.local(tiny.bundle, precision="fp32") if is_local else AsyncClient.connect(url, tiny.bundle)
        )
        async with await opening as encoding:
            assert (encoding.dim, encoding.space) == (client.dim, client.space)
            for found, expected in (
                (await encoding.encode_texts(TEXTS), texts),
                (await encoding.encode_texts(TEXTS[:2]), texts[:2]),
                (await encoding.encode_images(iter(IMAGES)), images),
            ):
                assert (found.dtype, found.shape) == (np.float32, expected.shape)
                assert np.abs(found - expected).max() <= 1e-6
            assert np.array_equal(await encoding.preprocess(IMAGES), pixels)
            assert (
                (await encoding.encode_texts([])).shape == (await encoding.encode_images([])).shape == (0, client.dim)
            )

    asyncio.run(run())


def test_sounds_are_encoded_as_by_the_client(make_tiny: Callable[..., Any]) -> None:
    """Sounds give the vectors and spectrograms of `Client`, and its errors; absent towers are BundleErrors."""
    heard = make_tiny("heard", towers=(Tower.TEXT, Tower.AUDIO))
    made = [(samples, 8_000) for samples in sounds(8_000, 1.0).values()]
    with Client.local(heard.bundle) as client:
        expected, spectrograms = client.encode_audio(made), client.preprocess_audio(made)

    async def run() -> None:
        async with await AsyncClient.local(heard.bundle) as encoding:
            assert np.abs(await encoding.encode_audio(made) - expected).max() <= 1e-6
            assert np.array_equal(await encoding.preprocess_audio(made), spectrograms)
            some, skipped = await encoding.encode_audio([b"none", made[0]], on_error="skip")
            assert (len(some), skipped[0].position) == (1, 0)
            with pytest.raises(AudioError):
                await encoding.preprocess_audio([b"none"])
            with pytest.raises(BundleError):
                await encoding.encode_images(IMAGES[:1])

    asyncio.run(run())


def test_bad_items_are_raised_or_skipped(tiny: Any, start_fake: Start, tmp_path: Path) -> None:
    """`on_error` does what it does in `Client`, and wrong arguments are its InputErrors."""
    items = [*IMAGES[:40], tmp_path / "none.png", *IMAGES[40:45], b"none"]
    url = start_fake().url

    async def run() -> None:
        async with await AsyncClient.connect(url, tiny.bundle) as client:
            for method in (client.encode_images, client.preprocess):
                with pytest.raises(ImageError) as caught:
                    await method(items)
                assert caught.value.position == 40
                rows, errors = await method(items, on_error="skip")
                assert (len(rows), [error.position for error in errors]) == (45, [40, 46])
                with pytest.raises(InputError):
                    await method(items, on_error="ignore")  # type: ignore[call-overload]
                with pytest.raises(InputError):
                    await method(IMAGES[0])
            with pytest.raises(InputError):
                await client.encode_texts("a cat")

    asyncio.run(run())
    assert _closing_threads() == []


def test_the_event_loop_goes_on(tiny: Any, start_fake: Start) -> None:
    """While images come slowly and are decoded, and texts tokenized, other tasks run."""
    url = start_fake().url

    def slowly() -> Iterator[np.ndarray]:
        for image in IMAGES[:5]:
            time.sleep(0.1)
            yield image

    async def run() -> None:
        async with await AsyncClient.connect(url, tiny.bundle) as client, _ticking() as ticks:
            await client.encode_images(slowly())
            assert len(ticks) >= 10

    asyncio.run(run())


def test_cancelling_a_task_cancels_its_requests(tiny: Any, start_fake: Start) -> None:
    """A cancelled task's requests end on the server as cancelled, and the client goes on."""
    cancelled, held = threading.Semaphore(0), threading.Event()

    def hook(server: Any, request: Any, context: Any) -> None:
        ended = time.monotonic() + 60
        while context.is_active() and not held.is_set() and time.monotonic() < ended:
            time.sleep(0.01)
        if not context.is_active():
            cancelled.release()

    server = start_fake(hook=hook)

    async def run() -> None:
        async with await AsyncClient.connect(server.url, tiny.bundle) as client:
            task = asyncio.create_task(client.encode_images(IMAGES[:16]))
            await _wait_for(lambda: server.under_way == 4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await _wait_for(lambda: server.under_way == 0)
            held.set()
            assert (await client.encode_images(IMAGES[:4])).shape == (4, client.dim)

    asyncio.run(run())
    assert all(cancelled.acquire(timeout=5) for _ in range(4))
    assert len(server.requests) == 5
    assert _closing_threads() == []


def test_cancelling_while_images_are_decoded_ends_their_threads(tiny: Any, start_fake: Start) -> None:
    """A task that is cancelled while its images come leaves no thread and takes no further image."""
    url = start_fake().url
    taken: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(1)
            time.sleep(0.01)
            yield IMAGES[0]

    async def run() -> None:
        async with await AsyncClient.connect(url, tiny.bundle) as client:
            task = asyncio.create_task(client.encode_images(endless()))
            await _wait_for(lambda: len(taken) > 50)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:  # its traceback keeps the call's variables alive
                await task
            await _wait_for(lambda: not _closing_threads())
            before = len(taken)
            await asyncio.sleep(0.1)
            assert len(taken) == before
            assert caught.value is not None

    asyncio.run(run())


def test_requests_in_flight_are_bounded_over_all_calls(tiny: Any, start_fake: Start) -> None:
    """`in_flight` bounds the inferences of many tasks together, and they are all answered."""
    server = start_fake(hook=lambda *_: time.sleep(0.002))

    async def run() -> None:
        async with await AsyncClient.connect(server.url, tiny.bundle, in_flight=3) as client:
            found = await asyncio.gather(*(client.encode_texts([text]) for text in TEXTS))
        assert np.abs(np.concatenate(found) - tiny.model.encode_texts(client.tokenize(TEXTS))).max() <= 1e-6

    asyncio.run(run())
    assert server.seen_at_once == 3


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_is_mapped(tiny: Any, start_fake: Start, code: grpc.StatusCode) -> None:
    """Each status is the error that it is in `TritonTowers`; what may succeed later is repeated, and then does."""
    server = start_fake()
    left: list[int] = []

    def hook(server: Any, request: Any, context: Any) -> None:
        if left:
            left.pop()
            context.abort(code, "not now")

    server.hook = hook

    async def run() -> None:
        async with await AsyncClient.connect(server.url, tiny.bundle, max_retries=1) as client:
            left[:] = [1, 2]
            with pytest.raises(ServerError) as caught:
                await client.encode_images(IMAGES[:1])
            left[:] = [1]
            if isinstance(caught.value, ServerUnavailableError) and caught.value.attempts == 2:
                await client.encode_images(IMAGES[:1])
            assert caught.value.address == server.url
            assert type(caught.value) is expected

    unavailable = {"UNAVAILABLE", "NOT_FOUND", "DEADLINE_EXCEEDED", "CANCELLED"}
    expected = ServerUnavailableError if code.name in unavailable else ServerRefusedError
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        expected = ServerOverloadedError
    asyncio.run(run())


def test_wrong_answers_and_another_space_are_errors(
    tiny: Any, start_fake: Start, wrong_answers: dict[str, Any]
) -> None:
    """Answers are checked as `TritonTowers` does."""
    server, other = start_fake(), start_fake(space="f" * 64)

    async def run() -> None:
        async with await AsyncClient.connect(server.url, tiny.bundle) as client:
            for answer in wrong_answers.values():
                server.hook = lambda server, request, context, answer=answer: answer(server, request)
                with pytest.raises(EngineError):
                    await client.encode_images(IMAGES[:3])
        with pytest.raises(SpaceMismatchError):
            await AsyncClient.connect(other.url, tiny.bundle)
        with pytest.raises(InputError):
            await AsyncClient.connect("http://a:1", tiny.bundle)

    asyncio.run(run())


def test_the_deadline_is_of_the_whole_call(tiny: Any, start_fake: Start) -> None:
    """A call that is too long ends at its deadline, and sends nothing afterwards."""
    server = start_fake(hook=lambda *_: time.sleep(0.3))

    async def run() -> None:
        async with await AsyncClient.connect(server.url, tiny.bundle, deadline_s=1, in_flight=1) as client:
            start = time.monotonic()
            with pytest.raises(ServerUnavailableError) as caught:
                await client.encode_images(IMAGES)
            assert 0.9 < time.monotonic() - start < 3
            assert caught.value.deadline_s == 1
            sent = len(server.requests)
            await asyncio.sleep(0.4)
            assert len(server.requests) == sent < 10

    asyncio.run(run())


def test_closing_ends_the_calls(tiny: Any, start_fake: Start) -> None:
    """Calls under way when the client is closed, and later ones, are EngineErrors; closing twice does nothing."""
    release = threading.Event()

    def hook(*_: Any) -> None:
        release.wait(20)

    server = start_fake(hook=hook)

    async def run() -> None:
        client = await AsyncClient.connect(server.url, tiny.bundle)
        tasks = [asyncio.create_task(client.encode_images(IMAGES[:8])) for _ in range(3)]
        await _wait_for(lambda: server.under_way >= 3)
        await client.close()
        await client.close()
        for task in (*tasks, client.encode_images(IMAGES[:1])):
            with pytest.raises(EngineError):
                await task
        release.set()

    asyncio.run(run())


def test_another_event_loop_is_refused(tiny: Any, start_fake: Start) -> None:
    """Using a client in another event loop than its own is an EngineError."""
    url = start_fake().url
    client = asyncio.run(AsyncClient.connect(url, tiny.bundle))
    with pytest.raises(EngineError):
        asyncio.run(client.encode_texts(["a cat"]))


@pytest.mark.parametrize("has_fallback", [False, True])
def test_no_call_fails_while_a_server_is_away(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any], has_fallback: bool
) -> None:
    """A server is cut off under load and returns; a second one, or the fallback, takes over: no call fails."""
    server = start_fake()
    relay = relay_to(server)
    urls = [relay.url] if has_fallback else [relay.url, start_fake().url]
    expected = tiny.model.encode_images(np.stack(IMAGES[:2]))

    async def run() -> None:
        fallback = LocalTowers(tiny.bundle, precision="fp32") if has_fallback else None
        failures: list[TwinspireError] = []
        ended = 0

        async def load() -> None:
            nonlocal ended
            while not stop:
                try:
                    assert np.abs(await client.encode_images(IMAGES[:2]) - expected).max() <= 1e-6
                except TwinspireError as error:
                    failures.append(error)
                ended += 1

        async with await AsyncClient.connect(urls, tiny.bundle, fallback=fallback) as client:
            stop = False
            tasks = [asyncio.create_task(load()) for _ in range(4)]
            await _wait_for(lambda: len(server.requests) > 30)
            relay.cut()
            before = ended
            await _wait_for(lambda: ended > before + 50)
            relay.open(server)
            counters = client.counters
            assert counters is not None
            assert not counters.servers[0].is_available
            assert counters.is_falling_back == has_fallback
            served = len(server.requests)
            await _wait_for(lambda: len(server.requests) > served + 30)
            stop = True
            await asyncio.gather(*tasks)
            assert failures == []
            assert client.counters is not None
            assert client.counters.servers[0].returns >= 1

    asyncio.run(run())


def test_towers_are_opened_by_async_with(tiny: Any, start_fake: Start) -> None:
    """`AsyncTritonTowers` connects where it is entered, has statistics and counters, and its errors close it."""
    server = start_fake()

    async def run() -> None:
        async with AsyncTritonTowers([server.url, start_fake().url], tiny.bundle) as towers:
            assert (await towers.statistics("image")).inferences == 48  # of two servers
            assert towers.server_version == "2.51.0"
            assert [each.is_available for each in towers.counters.servers] == [True, True]
        with pytest.raises(ServerUnavailableError):
            await AsyncTritonTowers("127.0.0.1:1", tiny.bundle, max_retries=1).open()

    asyncio.run(run())


def test_nothing_is_left_of_many_clients(tiny: Any, start_fake: Start) -> None:
    """200 clients that were opened, used and closed leave no threads and no files open."""
    url = start_fake().url

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def use(count: int) -> None:
        for _ in range(count):
            async with await AsyncClient.connect([url, "127.0.0.1:1"], tiny.bundle) as client:
                await client.encode_images(IMAGES[:2])

    async def run() -> None:
        await use(10)
        before = threading.active_count(), open_files()
        await use(200)
        await _wait_for(lambda: threading.active_count() <= before[0] + 4)
        await _wait_for(lambda: open_files() <= before[1] + 8)

    asyncio.run(run())


def test_tasks_that_wait_for_their_turn_are_not_given_up(tiny: Any, start_fake: Start) -> None:
    """Many tasks at once inspect the server once, and those that wait longer than an answer takes do not fall back."""
    server = start_fake(hook=lambda *_: time.sleep(0.2))

    async def run() -> None:
        fallback = LocalTowers(tiny.bundle, precision="fp32")
        connected = AsyncClient.connect(server.url, tiny.bundle, fallback=fallback, in_flight=2, deadline_s=3)
        async with await connected as client:
            await asyncio.sleep(0.3)  # the inspection of opening is old
            server.asked.clear()
            tasks = [asyncio.create_task(client.encode_images(IMAGES[:1])) for _ in range(20)]
            await _wait_for(lambda: server.under_way > 0)
            assert len(server.asked) == 1
            await asyncio.gather(*tasks)
            assert client.counters is not None
            assert client.counters.local_calls == client.counters.fallbacks == 0

    asyncio.run(run())
    assert len(server.requests) == 20
