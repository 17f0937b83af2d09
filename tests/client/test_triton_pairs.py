"""Pairs of images and texts scored on a server, over a fake one that computes in NumPy, and in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from support.arrays import noise_images, png
from support.rerankers import NAME, drawn_pairs, expected_scores, with_reranker
from twinspire import AsyncClient, Client, LocalTowers, TritonTowers
from twinspire.bundle import Bundle, Precision
from twinspire.errors import (
    BundleError,
    EngineError,
    ImageError,
    InputError,
    ServerError,
    ServerRefusedError,
    SpaceMismatchError,
)
from twinspire.metrics import enable_metrics
from twinspire.towers import AsyncTritonTowers
from twinspire.towers.local_reranker import BATCH, LocalReranker

TOLERANCE = 1e-6  # float32 against float64 over 768 pixels
TEXTS = ["a red cat", "", "the blue boat on the snow"]
MODEL = f"tiny_{NAME}"

Start = Callable[..., Any]


@pytest.fixture
def start(rerank: Bundle, tiny: Any, start_fake: Start) -> Start:
    """Start fake servers of the bundle with a reranker."""
    return lambda **options: start_fake(tiny=SimpleNamespace(bundle=rerank, model=tiny.model), **options)


def _assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    difference = np.abs(found - expected).max(initial=0.0)
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"


@pytest.mark.parametrize("count", [1, 4, 11])
def test_pairs_are_split_and_come_back_in_order(rerank: Bundle, start: Start, count: int) -> None:
    """Pairs go in requests of the server's largest batch, every text padded to the context."""
    server, (images, texts) = start(), drawn_pairs(rerank, count)
    with TritonTowers(server.url, rerank) as towers:
        _assert_close(towers.score_pairs(images, texts), expected_scores(rerank, images, texts))
    full, rest = divmod(count, 4)
    assert sorted(server.rows(), reverse=True) == [4] * full + [rest] * bool(rest)
    assert {tuple(request.inputs[1].shape[1:]) for request in server.requests} == {(20,)}


def test_no_pairs_have_no_scores(rerank: Bundle, start: Start) -> None:
    """No pairs give (0,) float32, without a request and in this process."""
    server, local = start(), LocalTowers(rerank, precision="fp32", provider="cpu", threads=1)
    with TritonTowers(server.url, rerank) as remote:
        for towers in (remote, local):
            scores = towers.score_pairs(noise_images(0), [])
            assert (scores.shape, scores.dtype) == ((0,), np.float32)
    assert not server.requests
    local.close()


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_pairs_are_scored_in_this_process(rerank: Bundle, precision: Precision) -> None:
    """`LocalTowers` scores more pairs than a batch with the engine of its precision."""
    images, texts = drawn_pairs(rerank, BATCH + 3)
    towers = LocalTowers(rerank, precision=precision, provider="cpu", threads=1)
    _assert_close(towers.score_pairs(images, texts), expected_scores(rerank, images, texts, precision=precision))
    towers.close()
    with pytest.raises(EngineError, match="closed"):
        towers.score_pairs(images, texts)


def test_a_reranker_is_opened_without_towers(rerank: Bundle, tiny: Any, tmp_path: Path) -> None:
    """Alone it computes at the precision that was named, or else at the first that it has, until it is closed."""
    images, texts = drawn_pairs(rerank, 3)
    only_fp32 = with_reranker(tiny.bundle, tmp_path / "tiny", precisions=[Precision.FP32])
    for bundle, used in ((rerank, Precision.INT8), (only_fp32, Precision.FP32)):
        reranker = LocalReranker.open(bundle, precision="int8", provider="cpu", threads=1)
        assert reranker.runtime.precision is used
        _assert_close(reranker.score(images, texts), expected_scores(bundle, images, texts, precision=used))
        reranker.close()
        with pytest.raises(EngineError, match="closed"):
            reranker.score(images, texts)
    with pytest.raises(InputError, match="provider"):
        LocalReranker.open(rerank, provider="abacus")


def test_wrong_pairs_are_not_sent(rerank: Bundle, start: Start) -> None:
    """Images and texts that a tower refuses, and other than one text an image, are an InputError and no request."""
    server, (images, texts) = start(), drawn_pairs(rerank, 2)
    wrong: list[tuple[Any, Any, str]] = [
        (images[:1], texts, "1 images and 2 texts"),
        (noise_images(2, size=15), texts, "16, 16, 3"),
        (images.astype(np.float32), texts, "uint8"),
        (images, [texts[0], np.array([1, 99, 2], np.int32)], "text 1"),
    ]
    with TritonTowers(server.url, rerank) as towers:
        for pixels, sequences, message in wrong:
            with pytest.raises(InputError, match=message):
                towers.score_pairs(pixels, sequences)
    assert not server.requests


def test_a_bundle_without_reranker_says_so(tiny: Any, start_fake: Start) -> None:
    """Scoring pairs with a bundle that has no reranker is a BundleError, on a server and here."""
    local = LocalTowers(tiny.bundle, precision="fp32", provider="cpu", threads=1)
    with TritonTowers(start_fake().url, tiny.bundle) as remote:
        for towers in (local, remote):
            with pytest.raises(BundleError, match="reranker"):
                towers.score_pairs(noise_images(0), [])
    local.close()


def test_a_server_without_the_reranker_serves_the_towers(rerank: Bundle, tiny: Any, start: Start) -> None:
    """A server that an older version built opens and encodes; scoring pairs is refused at once, with the remedy."""
    server = start()
    del server.configs[MODEL]
    with TritonTowers(server.url, rerank, max_retries=0) as towers:
        _assert_close(towers.encode_images(noise_images(2)), tiny.model.encode_images(noise_images(2)))
        with pytest.raises(ServerRefusedError, match="build") as caught:
            towers.score_pairs(*drawn_pairs(rerank, 2))
        assert (caught.value.model, caught.value.address, caught.value.code) == (MODEL, server.url, "NOT_FOUND")
        _assert_close(towers.encode_images(noise_images(2)), tiny.model.encode_images(noise_images(2)))


def test_a_reranker_that_is_being_unloaded_is_waited_for(rerank: Bundle, start: Start) -> None:
    """A server that has just unloaded the reranker is one that stops: the call goes on when it is back."""
    server, asked = start(), []

    def unloaded(_: Any, request: Any, context: Any) -> None:
        if request.name == MODEL and len(asked) < 2:
            asked.append(request.name)
            details = f"Request for unknown model: '{MODEL}' has no available versions"
            context.abort(grpc.StatusCode.NOT_FOUND, details)

    server.config_hook = unloaded
    images, texts = drawn_pairs(rerank, 2)
    with TritonTowers(server.url, rerank) as towers:
        _assert_close(towers.score_pairs(images, texts), expected_scores(rerank, images, texts))
    assert len(asked) == 2


def test_a_reranker_that_goes_during_a_call_ends_it(rerank: Bundle, start: Start) -> None:
    """Where the server restarts without the reranker, the call in progress is refused, not repeated for ever."""
    server = start()

    def gone(_: Any, __: Any, context: Any) -> None:
        server.configs.pop(MODEL, None)
        context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{MODEL}' is not found")

    server.hook = gone
    with TritonTowers(server.url, rerank) as towers, pytest.raises(ServerRefusedError, match=MODEL):
        towers.score_pairs(*drawn_pairs(rerank, 2))


def test_a_reranker_of_another_space_is_refused(rerank: Bundle, start: Start) -> None:
    """A server whose reranker is of another space than the bundle is not opened."""
    server = start()
    server.configs[MODEL].parameters["space"].string_value = "f" * 64
    with pytest.raises(SpaceMismatchError, match=MODEL) as caught:
        TritonTowers(server.url, rerank)
    assert (caught.value.expected, caught.value.found) == (rerank.space, "f" * 64)


@pytest.mark.parametrize("change", ["no text", "another length", "another output", "no batches"])
def test_a_reranker_with_other_tensors_is_refused(rerank: Bundle, start: Start, change: str) -> None:
    """A reranker whose inputs, output or batches violate the contract is a ServerError that says what it has."""
    server = start()
    config = server.configs[MODEL]
    if change == "no text":
        del config.input[1]
    elif change == "another length":
        config.input[1].dims[0] = 21
    elif change == "another output":
        config.output[0].name = "logit"
    else:
        config.max_batch_size = 0
    with pytest.raises(ServerError, match=f"{MODEL}.*is not the reranker") as caught:
        TritonTowers(server.url, rerank)
    assert caught.value.model == MODEL


@pytest.mark.parametrize("rows", [[[0.5, 0.5]], [[0.5]] * 3, [[1.5]] * 2, [[np.nan]] * 2])
def test_what_is_no_probability_is_an_error(rerank: Bundle, start: Start, rows: list[list[float]]) -> None:
    """Answers of another shape, above 1 and not a number raise EngineError."""
    server = start()

    def answer(_: Any, request: Any, __: Any) -> Any:
        response = server.answer(request)
        response.outputs[0].shape[:] = np.shape(rows)
        response.raw_output_contents[0] = np.array(rows, np.float32).tobytes()
        return response

    server.hook = answer
    with TritonTowers(server.url, rerank) as towers, pytest.raises(EngineError, match="reranker"):
        towers.score_pairs(*drawn_pairs(rerank, 2))


def test_pairs_are_sent_again(rerank: Bundle, start: Start) -> None:
    """Refusals for a full queue are retried, each request of a call for itself."""
    server, refused = start(), []

    def busy(_: Any, __: Any, context: Any) -> None:
        if len(refused) < 3:
            refused.append(1)
            context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    server.hook = busy
    images, texts = drawn_pairs(rerank, 11)
    with TritonTowers(server.url, rerank) as towers:
        _assert_close(towers.score_pairs(images, texts), expected_scores(rerank, images, texts))
    assert len(server.requests) == 3 + len(refused)


def test_the_fallback_scores_while_the_server_is_away(rerank: Bundle, start: Start) -> None:
    """With a fallback, calls after the server's end are computed in this process."""
    server, (images, texts) = start(), drawn_pairs(rerank, 6)
    fallback = LocalTowers(rerank, precision="fp32", provider="cpu", threads=1)
    with TritonTowers(server.url, rerank, fallback=fallback) as towers:
        towers.score_pairs(images, texts)
        server.stop()
        _assert_close(towers.score_pairs(images, texts), expected_scores(rerank, images, texts))
        assert towers.counters.local_calls == 1


def test_threads_get_their_own_scores(rerank: Bundle, start: Start) -> None:
    """Calls of many threads at once each get the scores of their pairs."""
    server = start()
    calls = [drawn_pairs(rerank, count, seed=count) for count in range(1, 17)]
    with TritonTowers(server.url, rerank) as towers, ThreadPoolExecutor(16) as threads:
        for found, pairs in zip(threads.map(lambda pairs: towers.score_pairs(*pairs), calls), calls, strict=True):
            _assert_close(found, expected_scores(rerank, *pairs))


@pytest.mark.parametrize("is_local", [False, True])
def test_async_clients_score_as_clients_do(rerank: Bundle, start: Start, tmp_path: Path, is_local: bool) -> None:
    """`AsyncClient` gives the scores of `Client`, NaN for an image that cannot be opened."""
    images = [*noise_images(3), png(noise_images(1)[0]), tmp_path / "none.jpg"]
    texts = [*TEXTS, "a dog", "a house"]
    server = start()
    with Client.local(rerank, precision="fp32", provider="cpu") as client:
        expected, errors = client.score_pairs(images, texts, on_error="skip")
    assert np.isnan(expected).tolist() == [False] * 4 + [True]
    assert [error.position for error in errors] == [4]

    async def score() -> None:
        opening = (
            AsyncClient.local(rerank, precision="fp32", provider="cpu")
            if is_local
            else AsyncClient.connect(server.url, rerank)
        )
        async with await opening as client:
            found, skipped = await client.score_pairs(iter(images), texts, on_error="skip")
            assert [error.position for error in skipped] == [4]
            _assert_close(found[:4], expected[:4])
            assert np.isnan(found[4])
            _assert_close(await client.score_pairs([], []), expected[:0])
            with pytest.raises(ImageError, match="image 4"):
                await client.score_pairs(images, texts)
            with pytest.raises(InputError, match="5 images and 3 texts"):
                await client.score_pairs(images, TEXTS)

    asyncio.run(score())


def test_async_towers_refuse_what_the_server_lacks(rerank: Bundle, start: Start) -> None:
    """`AsyncTritonTowers` opens on a server without the reranker, and refuses pairs alone."""
    server = start()
    del server.configs[MODEL]

    async def run() -> None:
        async with AsyncTritonTowers(server.url, rerank) as towers:
            assert (await towers.encode_images(noise_images(2))).shape == (2, 12)
            with pytest.raises(ServerRefusedError, match=MODEL):
                await towers.score_pairs(*drawn_pairs(rerank, 2))

    asyncio.run(run())


def test_reranking_is_in_the_metrics(rerank: Bundle, start: Start) -> None:
    """A client's metrics have the whole call and its requests under the tower `reranker`, and count its errors."""
    registry = CollectorRegistry()
    metrics, server = enable_metrics(registry), start()

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    try:
        with Client.connect(server.url, rerank) as client:
            client.score_pairs(list(noise_images(6)), ["a cat"] * 6)
            with pytest.raises(ImageError):
                client.score_pairs([b"none"], ["a cat"])
        counts = [
            sample("twinspire_client_phase_seconds_count", phase=phase, tower="reranker")
            for phase in ("rerank", "request")
        ]
        assert counts == [1, 2]
        assert sample("twinspire_client_errors_total", error="ImageError") == 1
    finally:
        metrics.disable()


def test_clients_of_cut_embeddings_score_the_same(
    make_tiny: Callable[..., Any], start_fake: Start, tmp_path: Path
) -> None:
    """A client of shortened embeddings, also for asyncio, gives the probabilities of one of whole embeddings."""
    tiny = make_tiny("cut", dims=(4, 12))
    bundle = with_reranker(tiny.bundle, tmp_path / "tiny")
    server = start_fake(tiny=SimpleNamespace(bundle=bundle, model=tiny.model))
    images = list(noise_images(3))

    async def scores() -> np.ndarray:
        async with await AsyncClient.connect(server.url, bundle, dim=4) as client:
            return await client.score_pairs(images, TEXTS)

    with Client.connect(server.url, bundle) as whole, Client.connect(server.url, bundle, dim=4) as cut:
        expected = whole.score_pairs(images, TEXTS)
        assert np.array_equal(cut.score_pairs(images, TEXTS), expected)
    assert np.array_equal(asyncio.run(scores()), expected)
