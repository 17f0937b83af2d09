"""What `build --runtime container` writes, on Triton's onnxruntime backend: right answers, bad input, kills."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from grpc import RpcError
from tritonclient.grpc import service_pb2

from support.data import PHOTOS
from support.rerankers import drawn_pairs, expected_scores, with_reranker
from twinspire import Client, LocalTowers, TritonTowers
from twinspire.bundle import Bundle, Precision
from twinspire.errors import ServerError
from twinspire_server.repository import RepositoryRuntime, build_repository
from twinspire_server.triton import TritonServer
from twinspire_server.triton.reaper import model_processes

if not os.environ.get("TWINSPIRE_TRITON_BACKENDS"):
    pytest.skip("Triton's onnxruntime backend is not built: run make test-container", allow_module_level=True)

PAD, START, END, VOCABULARY, CONTEXT = 0, 1, 3, 827, 64  # the sample's
TOLERANCE = 1e-6  # the same engine, other rows in its batch
INVALID = "StatusCode.INVALID_ARGUMENT"
TEXT, ENGINE, IMAGE = "scenes_text", "scenes_engine_text", "scenes_image"

BAD_TEXTS = {
    "above the vocabulary": [START, VOCABULARY, END],
    "far above the vocabulary": [START, 2**31 - 1, END],
    "negative": [START, -1, END],
    "the vocabulary's size below zero": [START, -VOCABULARY, END],
    "smallest": [START, -(2**31), END],
    "no end token": [START, 5, 6],
    "padding alone": [PAD, PAD],
    "ids behind the end token": [START, END, 5],
}


def _rows(*texts: Sequence[int], length: int = CONTEXT) -> np.ndarray:
    """Pad token ids on the right: (N, length) int32."""
    rows = np.full((len(texts), length), PAD, np.int32)
    for row, ids in zip(rows, texts, strict=True):
        row[: len(ids)] = ids
    return rows


def _texts(count: int) -> list[np.ndarray]:
    """Make texts of 2 to 64 token ids."""
    random = np.random.default_rng(0)
    return [
        np.array([START, *random.integers(4, VOCABULARY, random.integers(0, CONTEXT - 1)), END], np.int32)
        for _ in range(count)
    ]


def _images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP32])
def test_the_container_answers_as_in_process(
    request: pytest.FixtureRequest, sample: Bundle, precision: Precision
) -> None:
    """A row that is alone is bit-equal to `LocalTowers`; in batches the order of additions may differ."""
    served = request.getfixturevalue(precision)
    local = LocalTowers(sample, precision=precision, provider="cpu", threads=1)
    texts, images = _texts(100), _images(40, sample.image.size)
    with TritonTowers(served.server.grpc_url, sample) as remote:
        for text in texts[:10]:
            assert np.array_equal(remote.encode_texts([text]), local.encode_texts([text]))
        for place in range(5):
            one = images[place : place + 1]
            assert np.array_equal(remote.encode_images(one), local.encode_images(one))
        differences = [
            np.abs(remote.encode_texts(texts) - local.encode_texts(texts)).max(),
            np.abs(remote.encode_images(images) - local.encode_images(images)).max(),
        ]
    print(f"largest differences: {differences}")
    assert max(differences) <= TOLERANCE


@pytest.mark.parametrize(
    ("model", "name", "array"),
    [
        *((TEXT, "input_ids", _rows(ids)) for ids in BAD_TEXTS.values()),
        (TEXT, "input_ids", _rows([START, END], [START, VOCABULARY, END])),
        (TEXT, "input_ids", _rows([START, *[5] * CONTEXT, END], length=CONTEXT + 2)),
        (TEXT, "input_ids", _rows([START, 5, END], length=3)),
        (TEXT, "input_ids", np.zeros((1, 0), np.int32)),
        (TEXT, "input_ids", np.zeros((0, CONTEXT), np.int32)),
        (TEXT, "input_ids", np.array([START, END], np.int32)),
        (TEXT, "input_ids", np.zeros((1, 4, 4), np.int32)),
        (TEXT, "input_ids", _rows([START, 5, END]).astype(np.int64)),
        (TEXT, "input_ids", _rows(*[[START, END]] * 65)),
        (TEXT, "input_ids", _rows(*[[START, 5 + row, END] for row in range(64)])),
        (IMAGE, "image", np.zeros((1, 112, 112, 3), np.uint8)),
        (IMAGE, "image", np.zeros((1, 16, 112, 3), np.uint8)),
        (IMAGE, "image", np.zeros((1, 112, 112), np.uint8)),
        (IMAGE, "image", np.zeros((1, 112, 112, 3), np.int32)),
        (IMAGE, "input_ids", np.zeros((1, 112, 112, 3), np.uint8)),
    ],
)
def test_raw_clients_get_the_same_from_both_runtimes(
    int8: Any, wheel: Any, model: str, name: str, array: np.ndarray
) -> None:
    """A request straight to the model, good or bad, has the same answer or the same status and words of an error."""
    expected, found = wheel.ask(model, name, array), int8.ask(model, name, array)
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray), found
        assert np.abs(found - expected).max() <= TOLERANCE
    else:
        assert found == expected
        assert expected[0] == INVALID


def test_raw_inputs_get_the_clients_vectors(int8: Any) -> None:
    """Files and plain texts go through the container's engines, and a client needs no bundle there either."""
    files = [[file.read_bytes()] for file in sorted(PHOTOS.glob("*.jpg"))[:8]]
    texts = ["a red bus", "", "雪の上の家", "blue " * 100]
    with Client.connect(int8.server.grpc_url) as client:
        images = int8.ask("scenes_image_bytes", "image_bytes", np.array(files, np.object_))
        assert np.abs(images - client.encode_images([file for (file,) in files])).max() <= TOLERANCE
        encoded = int8.ask("scenes_text_raw", "text", np.array([[text.encode()] for text in texts], np.object_))
        assert np.abs(encoded - client.encode_texts(texts)).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("model", "name", "content", "word"),
    [("scenes_image_bytes", "image_bytes", b"no image", "image 0"), ("scenes_text_raw", "text", b"\xff", "UTF-8")],
)
def test_a_bad_raw_input_is_named(int8: Any, model: str, name: str, content: bytes, word: str) -> None:
    """A file that is no image and a text that is no UTF-8 are invalid arguments, as under the wheel."""
    status, message = int8.ask(model, name, np.array([[content]], np.object_))
    assert (status, word in message) == (INVALID, True)


@pytest.mark.parametrize("bad", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_bad_text_harms_no_neighbour(int8: Any, bad: list[int]) -> None:
    """Of 200 requests at once every fourth is bad: these alone are invalid arguments, the rest get their vectors."""
    good = [[START, 4 + place, END] for place in range(200)]
    expected = np.concatenate(
        [int8.ask(TEXT, "input_ids", _rows(*good[start : start + 50])) for start in (0, 50, 100, 150)]
    )
    answers = [int8.send(TEXT, "input_ids", _rows(good[place] if place % 4 else bad)) for place in range(200)]
    for place, answer in enumerate(answers):
        error = answer.exception(60)
        if place % 4:
            assert error is None, error
            assert np.abs(answer.result()[0] - expected[place]).max() <= TOLERANCE
        else:
            assert isinstance(error, grpc.InferenceServerException)
            assert error.status() == INVALID


def test_whoever_calls_the_engine_harms_no_neighbour(int8: Any) -> None:
    """Bad texts straight to the engine behind the text model fail alone: it forms no batches of requests."""
    bad = _rows(BAD_TEXTS["above the vocabulary"])
    expected = int8.ask(TEXT, "input_ids", _rows([START, 5, END]))
    answers = [int8.send(ENGINE, "input_ids", _rows([START, 5, END]) if turn % 4 else bad) for turn in range(100)]
    answers += [int8.send(TEXT, "input_ids", _rows([START, 5, END])) for _ in range(20)]
    for turn, answer in enumerate(answers):
        if turn < 100 and turn % 4 == 0:
            assert isinstance(answer.exception(60), grpc.InferenceServerException)
        else:
            assert np.abs(answer.result(60) - expected).max() <= TOLERANCE


def test_single_texts_are_computed_together(int8: Any, sample: Bundle) -> None:
    """Requests of one text each are gathered, and the statistics say so, as under the wheel."""
    with TritonTowers(int8.server.grpc_url, sample, in_flight=16) as remote:
        before = remote.statistics("text")
        answers = [int8.send(TEXT, "input_ids", _rows([START, 5 + place, END])) for place in range(200)]
        assert all(answer.exception(60) is None for answer in answers)
        time.sleep(0.2)  # a batch is counted after it was answered
        counted = remote.statistics("text").since(before)
    assert counted.requests == 200
    assert counted.executions < 180


def test_streams_are_instances(int8: Any) -> None:
    """The two streams that were asked for are two instances of each engine."""
    log = int8.server.log_file.read_text(errors="replace")
    for name in (IMAGE, ENGINE):
        assert [f"ModelInstanceInitialize: {name}_0_{number} (CPU" in log for number in range(3)] == [True, True, False]


def test_killed_processes(backends: Path, sample: Bundle, tmp_path: Path) -> None:
    """A server that was killed answers as before when it is started again; with its text model's process it ends."""
    build_repository(
        [sample.path], tmp_path / "models", precision="int8", runtime=RepositoryRuntime.CONTAINER, threads=1
    )
    text = [np.array([START, 5, END], np.int32)]
    server = TritonServer(tmp_path / "models", backend_directory=backends, log_file=tmp_path / "triton.log")
    try:
        server.start()
        with TritonTowers(server.grpc_url, sample, deadline_s=20) as remote:
            expected = remote.encode_texts(text)
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait(20) == 128 + signal.SIGKILL
        server.start()
        with TritonTowers(server.grpc_url, sample, deadline_s=3) as remote:
            assert np.array_equal(remote.encode_texts(text), expected)
            for process in model_processes(server.pid):
                os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(ServerError):
                remote.encode_texts(text)
        assert server.wait(5) == 128 + signal.SIGKILL
    finally:
        server.stop()


@pytest.mark.parametrize("model", [TEXT, ENGINE])
def test_a_shape_that_overflows_harms_nobody(int8: Any, model: str) -> None:
    """A shape whose size in bytes overflows to 0 is an error; the next request is answered, again and again."""
    for _ in range(3):
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="input_ids", datatype="INT32", shape=[1, 1 << 62])
        request.raw_input_contents.append(b"")
        with pytest.raises(RpcError):
            int8.channel._client_stub.ModelInfer(request, timeout=60)
        for _ in range(4):
            assert isinstance(int8.ask(TEXT, "input_ids", _rows([START, 5, END])), np.ndarray)


def test_pairs_are_scored_by_the_rerankers_engine(backends: Path, sample: Bundle, tmp_path: Path) -> None:
    """A reranker on the onnxruntime backend gives NumPy's probabilities, to one caller and to many at once."""
    bundle = with_reranker(sample, tmp_path / "scenes")
    build_repository(
        [bundle.path], tmp_path / "models", precision="int8", runtime=RepositoryRuntime.CONTAINER, threads=1
    )
    images, texts = drawn_pairs(bundle, 40)
    expected = expected_scores(bundle, images, texts, precision=Precision.INT8)
    server = TritonServer(tmp_path / "models", backend_directory=backends, log_file=tmp_path / "triton.log")
    with server, TritonTowers(server.grpc_url, bundle) as towers, ThreadPoolExecutor(16) as threads:
        difference = np.abs(towers.score_pairs(images, texts) - expected).max()
        assert difference <= TOLERANCE, f"largest difference {difference:.2e}"
        single = threads.map(lambda at: towers.score_pairs(images[at : at + 1], texts[at : at + 1]), range(40))
        difference = np.abs(np.concatenate(list(single)) - expected).max()
        assert difference <= TOLERANCE, f"largest difference {difference:.2e}"
