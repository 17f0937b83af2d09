"""Towers on a server that refuses, or whose model's process is gone: what is sent again, when, and how often."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import prometheus_client
import pytest
from PIL import Image

from support.arrays import noise_images
from twinspire import Client, Index, LocalTowers, TritonTowers
from twinspire.errors import ServerOverloadedError, ServerUnavailableError, SpaceMismatchError, TwinspireError
from twinspire.ingest import IngestOptions, add_images
from twinspire.metrics import enable_metrics

pytestmark = pytest.mark.slow

Start = Callable[..., Any]

# Triton 2.51's own words, see tests/end_to_end/test_triton_overload.py.
FULL = "[request id: <id_unknown>] Exceeds maximum queue size"
EXPIRED = "Request timeout expired"
DEAD = "Stub process 'tiny_image_0_0' is not healthy."


def _largest(tiny: Any, found: np.ndarray, images: np.ndarray) -> float:
    return float(np.abs(found - tiny.model.encode_images(images)).max())


class BoundedQueue:
    """A hook that answers one request at a time, lets `size` others wait and refuses the rest.

    `answered` counts how often each row was answered, by its bytes; `refused` are the times of refusals.
    """

    def __init__(self, size: int, *, service_s: float = 0.01) -> None:
        self._places = threading.Semaphore(size + 1)
        self._engine = threading.Lock()
        self._service_s = service_s
        self.answered: Counter[bytes] = Counter()
        self.refused: list[float] = []

    def __call__(self, server: Any, request: Any, context: Any) -> None:
        """Wait for the engine, or refuse."""
        if not self._places.acquire(blocking=False):
            self.refused.append(time.monotonic())
            context.abort(grpc.StatusCode.UNAVAILABLE, FULL)
        try:
            with self._engine:
                time.sleep(self._service_s)
                self.answered[request.raw_input_contents[0]] += 1
        finally:
            self._places.release()


def _always(code: grpc.StatusCode, details: str) -> Callable[..., None]:
    return lambda server, request, context: context.abort(code, details)


@pytest.mark.parametrize("text", [FULL, EXPIRED])
def test_an_overloaded_server_is_asked_until_the_deadline(tiny: Any, start_fake: Start, text: str) -> None:
    """Refusals for the whole deadline are a ServerOverloadedError; waits grow, and nothing is inspected for them."""
    server = start_fake()
    with TritonTowers(server.url, tiny.bundle, deadline_s=1.5) as towers:
        server.hook = _always(grpc.StatusCode.UNAVAILABLE, text)
        start = time.monotonic()
        with pytest.raises(ServerOverloadedError, match=server.url) as caught:
            towers.encode_images(noise_images(1))
        assert 1.0 < time.monotonic() - start < 2
    assert isinstance(caught.value, ServerUnavailableError)
    assert 4 <= len(server.requests) <= 12
    assert server.asked == ["ServerMetadata"]


def test_one_call_sends_no_more_than_an_overloaded_server_takes(tiny: Any, start_fake: Start) -> None:
    """A call of many requests gets all its rows from a short queue, each answered once, with few refusals."""
    queue = BoundedQueue(2)
    server = start_fake(hook=queue)
    images = noise_images(60)
    with TritonTowers(server.url, tiny.bundle, send_images_singly=True, in_flight=20) as towers:
        assert _largest(tiny, towers.encode_images(images), images) <= 1e-7
    assert queue.answered == Counter(image.tobytes() for image in images)
    print(f"{len(queue.refused)} refusals of {len(server.requests)} requests")
    assert 17 <= len(queue.refused) <= 60  # the first 20 fit 3; sending all of them again and again is 300 and more


def test_a_call_too_large_for_its_deadline_says_overloaded(tiny: Any, start_fake: Start) -> None:
    """A call of which some requests were refused and none was answered in time is a ServerOverloadedError."""
    server = start_fake(hook=BoundedQueue(2, service_s=0.6))
    with (
        TritonTowers(server.url, tiny.bundle, deadline_s=0.4, send_images_singly=True, in_flight=6) as towers,
        pytest.raises(ServerOverloadedError, match=server.url),
    ):
        towers.encode_images(noise_images(10))


def test_a_call_beside_others_waits_for_a_place(tiny: Any, start_fake: Start) -> None:
    """A call whose every request is refused for a while succeeds, after one inspection, once there is a place."""
    ready_at = time.monotonic() + 1.0

    def hook(server: Any, request: Any, context: Any) -> None:
        if time.monotonic() < ready_at:
            context.abort(grpc.StatusCode.UNAVAILABLE, FULL)

    server = start_fake(hook=hook)
    images = noise_images(12)
    with TritonTowers(server.url, tiny.bundle, in_flight=3) as towers:
        assert _largest(tiny, towers.encode_images(images), images) <= 1e-7
    assert len(server.requests) < 20
    assert server.asked == ["ServerMetadata"] * 2  # at opening, and since nothing was heard during a wait


def test_a_server_exchanged_during_a_wait_is_refused(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any]
) -> None:
    """Answers of a server that took an overloaded one's place during a wait are not used before it was inspected."""
    refused = threading.Event()

    def hook(server: Any, request: Any, context: Any) -> None:
        refused.set()
        context.abort(grpc.StatusCode.UNAVAILABLE, FULL)

    relay = relay_to(start_fake(hook=hook))
    other = start_fake(space="f" * 64)

    def exchange() -> None:
        assert refused.wait(5)
        relay.cut()
        relay.open(other)

    thread = threading.Thread(target=exchange)
    thread.start()
    with TritonTowers(relay.url, tiny.bundle, deadline_s=10) as towers, pytest.raises(SpaceMismatchError):
        towers.encode_images(noise_images(1))
    thread.join()


def test_a_request_names_the_rest_of_its_deadline(tiny: Any, start_fake: Start) -> None:
    """Triton's request parameter `timeout` is what is left of the call, in microseconds."""
    server = start_fake(hook=lambda *_: time.sleep(0.1))
    with TritonTowers(server.url, tiny.bundle, deadline_s=2, in_flight=1) as towers:
        towers.encode_images(noise_images(12))
    first, second, third = (request.parameters["timeout"].int64_param for request in server.requests)
    assert 2_000_000 >= first >= second + 100_000 >= third + 200_000 > 0
    with TritonTowers(server.url, tiny.bundle, deadline_s=1e9) as towers:
        towers.encode_images(noise_images(1))
    assert 0 < server.requests[-1].parameters["timeout"].int64_param < 2**63 // 1000


def test_a_dead_model_process_is_waited_for(tiny: Any, start_fake: Start) -> None:
    """A model whose process is dead is asked again until the server has restarted it."""
    back_at = time.monotonic() + 0.5

    def hook(server: Any, request: Any, context: Any) -> None:
        if time.monotonic() < back_at:
            context.abort(grpc.StatusCode.INTERNAL, DEAD)

    images = noise_images(9)
    with TritonTowers(start_fake(hook=hook).url, tiny.bundle) as towers:
        assert _largest(tiny, towers.encode_images(images), images) <= 1e-7


def test_a_model_process_that_stays_dead_is_said(tiny: Any, start_fake: Start) -> None:
    """A model whose process stays dead is a ServerUnavailableError that says so; other INTERNAL errors are not."""
    server = start_fake(hook=_always(grpc.StatusCode.INTERNAL, DEAD))
    with TritonTowers(server.url, tiny.bundle, deadline_s=0.5) as towers:
        with pytest.raises(ServerUnavailableError, match="hung"):
            towers.encode_images(noise_images(1))
        server.hook = _always(grpc.StatusCode.INTERNAL, "ValueError: the stub process raised")
        with pytest.raises(TwinspireError) as caught:
            towers.encode_images(noise_images(1))
    assert not isinstance(caught.value, ServerUnavailableError)


def test_a_server_that_went_away_is_waited_for_until_the_deadline(
    tiny: Any, start_fake: Start, relay_to: Callable[..., Any]
) -> None:
    """By default a call outlives an outage longer than a few retries take."""
    server = start_fake()
    relay = relay_to(server)
    with TritonTowers(relay.url, tiny.bundle, deadline_s=20) as towers:
        relay.cut()
        timer = threading.Timer(1.8, relay.open, [server])
        timer.start()
        assert towers.encode_images(noise_images(3)).shape == (3, 12)
        timer.join()


def test_images_added_before_an_overload_stay(tiny: Any, start_fake: Start, tmp_path: Path) -> None:
    """An index keeps the batches that were encoded before a server refused; the same call then adds the rest."""
    files = [tmp_path / f"{number:02}.png" for number in range(20)]
    for file, picture in zip(files, noise_images(20), strict=True):
        Image.fromarray(picture).save(file)
    server = start_fake()

    def hook(server: Any, request: Any, context: Any) -> None:
        if len(server.requests) > 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, FULL)

    server.hook = hook
    with (
        Client.connect(server.url, tiny.bundle, deadline_s=0.5) as client,
        Index.create(tmp_path / "index", dim=client.dim, space=client.space) as index,
    ):
        with pytest.raises(ServerOverloadedError):
            add_images(index, client, files, IngestOptions(batch=4))
        assert 0 < len(index) <= 12
        server.hook = None
        add_images(index, client, files, IngestOptions(batch=4))
        assert len(index) == 20


def test_refusals_and_retries_are_counted_and_the_error_names_the_requests(tiny: Any, start_fake: Start) -> None:
    """Each refused request counts once, each repetition once; `request_id` begins the ids of all that were sent."""
    registry, server, ids = prometheus_client.CollectorRegistry(), start_fake(), list[str]()

    def refuse(server: Any, request: Any, context: Any) -> None:
        ids.append(request.id)
        context.abort(grpc.StatusCode.UNAVAILABLE, FULL)

    metrics = enable_metrics(registry)
    try:
        with TritonTowers(server.url, tiny.bundle, max_retries=2) as towers:
            server.hook = refuse
            with pytest.raises(ServerOverloadedError) as caught:
                towers.encode_images(noise_images(1))
        refused = registry.get_sample_value("twinspire_client_failed_requests_total", {"reason": "overloaded"})
        assert refused == 3
        assert registry.get_sample_value("twinspire_client_retries_total") == 2
    finally:
        metrics.disable()
    assert len(set(ids)) == len(ids) == 3
    assert caught.value.request_id is not None
    assert all(one.startswith(f"{caught.value.request_id}-") for one in ids)
    assert caught.value.request_id in str(caught.value)


def test_changes_to_the_fallback_and_back_are_counted(tiny: Any, start_fake: Start) -> None:
    """A server that goes away is one fallback to `local`, its return one to `server`, each counted once."""
    registry, server = prometheus_client.CollectorRegistry(), start_fake()
    metrics = enable_metrics(registry)

    def count(to: str) -> float | None:
        return registry.get_sample_value("twinspire_client_fallbacks_total", {"to": to})

    try:
        fallback = LocalTowers(tiny.bundle, precision="fp32", provider="cpu", threads=1)
        with TritonTowers(server.url, tiny.bundle, fallback=fallback) as towers:
            assert (count("local"), count("server")) == (0, 0)
            server.hook = _always(grpc.StatusCode.UNAVAILABLE, DEAD)
            for _ in range(3):
                towers.encode_images(noise_images(1))
            assert count("local") == 1
            server.hook = None
            deadline_s = time.monotonic() + 30
            while count("server") != 1:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            towers.encode_images(noise_images(1))
            assert (count("local"), count("server")) == (1, 1)
    finally:
        metrics.disable()
