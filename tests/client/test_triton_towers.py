"""Towers on a server, over a fake one that computes in NumPy: what is sent, and what comes back."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.arrays import noise_images
from twinspire import Client, TritonTowers
from twinspire.bundle import Padding, Tower
from twinspire.errors import EngineError, InputError
from twinspire.towers import ModelStatistics, TlsOptions, Towers

TOLERANCE = 1e-7  # both compute in float64, the answer is float32

Start = Callable[..., Any]


def _texts(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(len(lengths))
    return [np.array([1, *generator.integers(4, 18, length - 2), 2], np.int32) for length in lengths]


def _assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    difference = np.abs(found - expected).max(initial=0.0)
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"


def _dawdle(*_: Any) -> None:
    """Answer after a while that differs, so that answers come out of order."""
    time.sleep(random.uniform(0, 0.02))


@pytest.mark.parametrize("count", [1, 4, 5, 33])
def test_images_are_split_and_come_back_in_order(tiny: Any, start_fake: Start, count: int) -> None:
    """Images go in requests of the server's largest batch; answers out of order are put in order."""
    server = start_fake(hook=_dawdle)
    with TritonTowers(server.url, tiny.bundle) as towers:
        _assert_close(towers.encode_images(noise_images(count)), tiny.model.encode_images(noise_images(count)))
    full, rest = divmod(count, 4)
    assert sorted(server.rows(), reverse=True) == [4] * full + [rest] * bool(rest)


def test_images_can_be_sent_singly(tiny: Any, start_fake: Start) -> None:
    """`send_images_singly` makes a request of every image and keeps two largest batches of them under way."""
    server = start_fake(hook=_dawdle)
    with TritonTowers(server.url, tiny.bundle, send_images_singly=True) as towers:
        _assert_close(towers.encode_images(noise_images(40)), tiny.model.encode_images(noise_images(40)))
    assert server.rows() == [1] * 40
    assert 4 <= server.seen_at_once <= 8


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_are_under_way_than_were_allowed(tiny: Any, start_fake: Start, in_flight: int) -> None:
    """`in_flight` bounds the requests of one call that are under way."""
    server = start_fake(hook=lambda *_: time.sleep(0.01))
    with TritonTowers(server.url, tiny.bundle, in_flight=in_flight, send_images_singly=True) as towers:
        towers.encode_images(noise_images(20))
    assert server.seen_at_once == in_flight


def test_texts_are_padded_to_the_shortest_length_that_fits(tiny: Any, start_fake: Start) -> None:
    """A text is padded with `pad_id` to the shortest of the server's lengths that it fits."""
    texts = _texts(5, 2, 20, 8, 9, 3)
    server = start_fake(hook=_dawdle, text_lengths="20, 8")
    with TritonTowers(server.url, tiny.bundle) as towers:
        _assert_close(towers.encode_texts(texts), tiny.model.encode_texts(texts))
    assert sorted(tuple(request.inputs[0].shape) for request in server.requests) == [(2, 20), (4, 8)]


def test_max_length_texts_get_the_context(make_tiny: Callable[..., Any], start_fake: Start) -> None:
    """A server whose one length is the context gets every text at it."""
    tiny = make_tiny(padding=Padding.MAX_LENGTH)
    server = start_fake(tiny=tiny, text_lengths="20")
    with TritonTowers(server.url, tiny.bundle) as towers:
        _assert_close(towers.encode_texts(_texts(5, 2)), tiny.model.encode_texts(_texts(5, 2)))
    assert [tuple(request.inputs[0].shape) for request in server.requests] == [(2, 20)]


def test_nothing_gives_no_rows(tiny: Any, start_fake: Start) -> None:
    """No images and no texts give (0, D) float32 without a request."""
    server = start_fake()
    with TritonTowers(server.url, tiny.bundle) as towers:
        for embeddings in (towers.encode_images(noise_images(0)), towers.encode_texts([])):
            assert (embeddings.shape, embeddings.dtype) == ((0, 12), np.float32)
    assert not server.requests


def test_a_view_is_encoded_as_what_it_shows(tiny: Any, start_fake: Start) -> None:
    """An array that is not contiguous gives the same as its copy."""
    images = noise_images(6)[::-2]
    with TritonTowers(start_fake().url, tiny.bundle) as towers:
        _assert_close(towers.encode_images(images), tiny.model.encode_images(images.copy()))


@pytest.mark.parametrize(("size", "dim"), [(40, 12), (16, 1100)], ids=["request", "answer"])
def test_messages_may_be_large(make_tiny: Callable[..., Any], start_fake: Start, size: int, dim: int) -> None:
    """Requests and answers beyond gRPC's 4 MiB go through; a request has 1,024 rows at most."""
    tiny = make_tiny(size=size, dim=dim)
    server = start_fake(tiny=tiny, max_batch=6000)
    with TritonTowers(server.url, tiny.bundle) as towers:
        embeddings = towers.encode_images(noise_images(1030, size))
    assert sorted(server.rows()) == [6, 1024]
    largest_request = max(request.ByteSize() for request in server.requests)
    assert max(largest_request, embeddings[:1024].nbytes) > 4 * 2**20


def test_wrong_input_is_not_sent(tiny: Any, start_fake: Start) -> None:
    """What `LocalTowers` refuses is an InputError here too, and no request goes out."""
    server = start_fake()
    with TritonTowers(server.url, tiny.bundle) as towers:
        pictures: list[Any] = [
            noise_images(2, size=15),
            noise_images(2).astype(np.float32),
            noise_images(2)[0],
            "cat.jpg",
        ]
        for images in pictures:
            with pytest.raises(InputError, match=r"\(N, 16, 16, 3\)"):
                towers.encode_images(images)
        empty, long, foreign, endless = [], [1, *[4] * 30, 2], [1, 99, 2], [1, 4]
        for ids in (empty, long, foreign, endless):
            with pytest.raises(InputError, match="text 1"):
                towers.encode_texts([*_texts(4), np.array(ids, np.int32)])
    assert not server.requests


def test_threads_share_the_towers(tiny: Any, start_fake: Start) -> None:
    """Calls of many threads at once each get their own rows."""
    server = start_fake(hook=_dawdle)
    with TritonTowers(server.url, tiny.bundle) as towers, ThreadPoolExecutor(8) as pool:
        counts = [1, 9, 2, 17, 4, 30, 3, 8] * 3
        for count, found in zip(counts, pool.map(lambda n: towers.encode_images(noise_images(n)), counts), strict=True):
            _assert_close(found, tiny.model.encode_images(noise_images(count)))


def test_what_the_towers_say_of_themselves(tiny: Any, start_fake: Start) -> None:
    """Dimension, space and context are the bundle's; address and version are the server's."""
    server = start_fake()
    with TritonTowers(server.url, tiny.bundle) as towers:
        as_protocol: Towers = towers
        assert (as_protocol.dim, as_protocol.context_length) == (12, 20)
        assert as_protocol.space == tiny.bundle.space
        assert (towers.address, towers.server_version) == (server.url, "2.51.0")
        assert towers.runtime == f"Triton 2.51.0 at {server.url}"


def test_statistics_are_summed_over_versions(tiny: Any, start_fake: Start) -> None:
    """Counters of all versions are added; the mean batch size is inferences over executions."""
    with TritonTowers(start_fake().url, tiny.bundle) as towers:
        statistics = towers.statistics(Tower.IMAGE)
    assert statistics == ModelStatistics(requests=12, inferences=24, executions=4)
    assert statistics.mean_batch_size == 6
    assert statistics.since(ModelStatistics(2, 4, 2)) == ModelStatistics(10, 20, 2)
    assert statistics.since(statistics).mean_batch_size is None


def test_models_may_have_another_name(tiny: Any, start_fake: Start) -> None:
    """`name` stands for the bundle's in the models' names."""
    server = start_fake()
    for tower in (Tower.IMAGE, Tower.TEXT):
        config = server.configs.pop(f"tiny_{tower}")
        config.name = f"other_{tower}"
        server.configs[config.name] = config
    with TritonTowers(server.url, tiny.bundle, name="other") as towers:
        towers.encode_images(noise_images(1))
    assert server.requests[0].model_name == "other_image"


def test_a_client_connects(tiny: Any, start_fake: Start) -> None:
    """`Client.connect` takes a bundle or its path and encodes texts and images on the server."""
    server = start_fake()
    for bundle in (tiny.bundle, tiny.bundle.path):
        with Client.connect(server.url, bundle, deadline_s=10, in_flight=2, threads=1) as client:
            tokens = client.tokenize(["a red cat", ""])
            _assert_close(client.encode_texts(["a red cat", ""]), tiny.model.encode_texts(tokens))
            pictures = list(noise_images(3))
            _assert_close(client.encode_images(pictures), tiny.model.encode_images(np.stack(pictures)))


def test_closed_towers_say_so(tiny: Any, start_fake: Start) -> None:
    """After `close`, which may come twice, every call raises EngineError; a `with` block closes."""
    with TritonTowers(start_fake().url, tiny.bundle) as towers:
        pass
    towers.close()
    calls: list[Callable[[], Any]] = [
        lambda: towers.encode_images(noise_images(0)),
        lambda: towers.encode_images(noise_images(2)),
        lambda: towers.encode_texts(_texts(3)),
        lambda: towers.statistics(Tower.TEXT),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="closed"):
            call()


def test_closing_ends_what_is_under_way(tiny: Any, start_fake: Start) -> None:
    """A call that waits for its answer while another thread closes the towers raises EngineError at once."""
    waiting, release = threading.Event(), threading.Event()

    def hook(*_: Any) -> None:
        waiting.set()
        release.wait(20)

    server = start_fake(hook=hook)
    towers = TritonTowers(server.url, tiny.bundle)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(towers.encode_images, noise_images(9))
        assert waiting.wait(5)
        towers.close()
        with pytest.raises(EngineError, match="closed"):
            call.result(5)
    release.set()


def test_a_forked_child_is_told(tiny: Any, start_fake: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process than the one that opened them the towers raise EngineError instead of hanging."""
    with TritonTowers(start_fake().url, tiny.bundle) as towers:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(EngineError, match="fork"):
            towers.encode_images(noise_images(1))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://localhost:8001",
        "localhost:",
        ":8001",
        "localhost:0",
        "localhost:99999",
        "a b:1",
        "::1:8",
        8001,
        None,
    ],
)
def test_an_address_is_host_and_port(tiny: Any, url: Any) -> None:
    """An address that is no host:port is an InputError that says what one looks like."""
    with pytest.raises(InputError, match="host:port"):
        TritonTowers(url, tiny.bundle)


@pytest.mark.parametrize(
    "options",
    [
        {"deadline_s": 0},
        {"deadline_s": -1.0},
        {"deadline_s": 1e10},
        {"deadline_s": float("inf")},
        {"deadline_s": float("nan")},
        {"deadline_s": "30"},
        {"deadline_s": True},
        {"in_flight": 0},
        {"in_flight": 2.0},
        {"max_retries": -1},
        {"max_retries": 1.5},
    ],
)
def test_options_out_of_range_are_refused(tiny: Any, options: dict[str, Any]) -> None:
    """An option out of its range is an InputError that names it."""
    with pytest.raises(InputError, match="expected") as caught:
        TritonTowers("127.0.0.1:8001", tiny.bundle, **options)
    assert caught.value.option == next(iter(options))


def test_tls_options_are_checked(tiny: Any, tmp_path: Path) -> None:
    """A key without its certificate, a file that is missing and one that is no PEM are InputErrors."""
    with pytest.raises(InputError, match="client_certificate"):
        TlsOptions(client_key="key.pem")
    (tmp_path / "ca.pem").write_text("no certificate")
    for name, word in (("none.pem", "read"), ("ca.pem", "PEM")):
        with pytest.raises(InputError, match=word) as caught:
            TritonTowers("127.0.0.1:8001", tiny.bundle, tls=TlsOptions(root_certificates=tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
