"""What `build` writes, served by a real Triton: right answers, and bad input sent straight to each model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from twinspire.bundle import Tower
from twinspire.errors import MissingDependencyError
from twinspire.towers.batching import padded
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer

TOGETHER = 8
"""How many requests the served models wait for, so that a test knows what is in a batch."""
DEADLINE_S = 60
TOLERANCE = 1e-6  # float32 against float64 over 768 products
CONTEXT, PAD = 20, 0
_INPUT = {Tower.IMAGE: "image", Tower.TEXT: "input_ids"}
_TYPES = {np.dtype(np.uint8): "UINT8", np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64"}
_TYPES[np.dtype(np.float32)] = "FP32"


@dataclass(frozen=True)
class Served:
    """The tiny bundle behind a real server; `at_first` is the statistics of each tower before any request."""

    channel: Any
    tiny: Any
    at_first: dict[Tower, Any]

    def ask(self, tower: Tower, array: np.ndarray) -> Future[np.ndarray]:
        """Send one request, whatever it holds."""
        given = grpc.InferInput(_INPUT[tower], array.shape, _TYPES[array.dtype])
        given.set_data_from_numpy(array)
        answer: Future[np.ndarray] = Future()

        def done(result: Any, error: Exception | None) -> None:
            if error is None:
                answer.set_result(result.as_numpy("embedding"))
            else:
                answer.set_exception(error)

        self.channel.async_infer(f"tiny_{tower}", [given], done, client_timeout=DEADLINE_S)
        return answer

    def encode(self, tower: Tower, array: np.ndarray) -> np.ndarray:
        """Send one request and wait for its answer."""
        return self.ask(tower, array).result(DEADLINE_S)

    def executions(self, tower: Tower) -> int:
        """Count the batches that the model has run, its warm-up included, when the count stands still.

        A batch is counted when the model has returned, which is after its answers were sent.
        """
        count = -1
        while count != (count := int(_statistics(self.channel, tower).execution_count)):
            time.sleep(0.05)
        return count

    def encode_together(self, tower: Tower, arrays: Sequence[np.ndarray]) -> list[np.ndarray | BaseException]:
        """Send `TOGETHER` requests until they were one batch, and give each one's answer or error.

        On a busy machine a batch may begin before the last of them is there.
        """
        assert len(arrays) == TOGETHER
        for _ in range(5):
            before = self.executions(tower)
            answers = [self.ask(tower, array) for array in arrays]
            found = [answer.exception(DEADLINE_S) or answer.result() for answer in answers]
            if self.executions(tower) == before + 1:
                return found
        raise AssertionError(f"{TOGETHER} requests were never one batch")


@pytest.fixture(scope="module")
def served(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the tiny bundle; the configs are as `build` writes them, except that a batch waits for eight requests."""
    folder = tmp_path_factory.mktemp("models")
    for model in build_repository([tiny.bundle.path], folder, precision="fp32", threads=1):
        config = model.folder / "config.pbtxt"
        waiting = f"dynamic_batching {{ preferred_batch_size: {TOGETHER} max_queue_delay_microseconds: 300000"
        text = config.read_text()
        assert text.count("dynamic_batching {") == 1
        config.write_text(text.replace("dynamic_batching {", waiting))
    try:
        server = TritonServer(folder).start()
    except MissingDependencyError as error:
        pytest.skip(f"no Triton here: {error}")
    try:
        with grpc.InferenceServerClient(server.grpc_url) as channel:
            yield Served(channel, tiny, {tower: _statistics(channel, tower) for tower in (Tower.IMAGE, Tower.TEXT)})
    finally:
        server.stop()


def _statistics(channel: Any, tower: Tower) -> Any:
    (model,) = channel.get_inference_statistics(f"tiny_{tower}").model_stats
    return model


def _images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def _rows(*texts: Sequence[int]) -> np.ndarray:
    """Pad texts to the context, (n, 20) int32."""
    return padded([np.array(text, np.int32) for text in texts], PAD, CONTEXT)


def _assert_close(found: Any, expected: np.ndarray) -> None:
    assert isinstance(found, np.ndarray), found
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    difference = np.abs(found - expected).max()
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"


@pytest.mark.parametrize("count", [1, 7, 32])
def test_images_are_encoded(served: Served, count: int) -> None:
    """A request of any number of images up to the largest batch gives what NumPy computes."""
    images = _images(count)
    _assert_close(served.encode(Tower.IMAGE, images), served.tiny.model.encode_images(images))


def test_texts_are_encoded(served: Served) -> None:
    """A request of texts of several lengths, padded to the context, gives what NumPy computes."""
    texts = [[1, 5, 7, 2], [1, 2], [1, *[6] * 18, 2]]
    expected = served.tiny.model.encode_texts([np.array(text, np.int32) for text in texts])
    _assert_close(served.encode(Tower.TEXT, _rows(*texts)), expected)


def test_texts_of_all_lengths_are_one_batch(served: Served) -> None:
    """Requests of different lengths are answered by one execution, each with its own embedding."""
    rows = [_rows([1, *[4 + place] * (2 * place), 2]) for place in range(TOGETHER)]
    for (text,), found in zip(rows, served.encode_together(Tower.TEXT, rows), strict=True):
        _assert_close(found, served.tiny.model.encode_texts([text]))


@pytest.mark.parametrize(
    ("tower", "array", "message"),
    [
        (Tower.IMAGE, np.zeros((1, 8, 16, 3), np.uint8), "shape"),
        (Tower.IMAGE, np.zeros((16, 16, 3), np.uint8), "shape"),
        (Tower.IMAGE, np.zeros((1, 16, 16, 3), np.float32), "UINT8"),
        (Tower.IMAGE, np.zeros((33, 16, 16, 3), np.uint8), "32"),
        (Tower.IMAGE, np.zeros((0, 16, 16, 3), np.uint8), "mismatch"),
        (Tower.TEXT, np.zeros((1, 4, 4), np.int32), "shape"),
        (Tower.TEXT, np.array([1, 2], np.int32), "shape"),
        (Tower.TEXT, np.array([[1, 2]], np.int64), "INT32"),
        (Tower.TEXT, np.full((65, 20), 2, np.int32), "64"),
        (Tower.TEXT, np.zeros((0, 20), np.int32), "mismatch"),
        (Tower.TEXT, np.zeros((1, 0), np.int32), "shape"),
        (Tower.TEXT, np.full((1, 19), 2, np.int32), "shape"),
        (Tower.TEXT, np.full((1, 21), 2, np.int32), "shape"),
        (Tower.TEXT, _rows([0, 0]), "20"),
        (Tower.TEXT, _rows([1, 18, 2]), "18"),
        (Tower.TEXT, _rows([1, 2**31 - 1, 2]), "2147483647"),
        (Tower.TEXT, _rows([1, -1, 2]), "-1"),
        (Tower.TEXT, _rows([1, *[5] * 19]), "end"),
        (Tower.TEXT, _rows([1, 5, 2], [1, 5, 5]), "text 1"),
    ],
)
def test_bad_input_is_an_error_and_the_server_stays(
    served: Served, tower: Tower, array: np.ndarray, message: str
) -> None:
    """Whatever is wrong with a request, it is an invalid argument that says what; the next one is answered."""
    with pytest.raises(grpc.InferenceServerException) as caught:
        served.encode(tower, array)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in caught.value.message()
    images, rows = _images(TOGETHER), np.tile(_rows([1, 5, 2]), (TOGETHER, 1))
    _assert_close(served.encode(Tower.IMAGE, images), served.tiny.model.encode_images(images))
    _assert_close(served.encode(Tower.TEXT, rows), served.tiny.model.encode_texts(list(rows)))


@pytest.mark.parametrize("bad", [[], [1, 18, 2], [1, -7, 2], [0, 0, 0], [1, 5, 5], [1, *[5] * 19]])
@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_bad_text_harms_no_neighbour(served: Served, bad: list[int], place: int) -> None:
    """In one batch with seven good texts, the bad one alone is an error."""
    rows = [_rows([1, *[4 + number] * number, 2]) for number in range(TOGETHER)]
    expected = [served.tiny.model.encode_texts(list(row)) for row in rows]
    rows[place] = _rows(bad)
    answers = served.encode_together(Tower.TEXT, rows)
    assert isinstance(answers.pop(place), grpc.InferenceServerException)
    expected.pop(place)
    for found, right in zip(answers, expected, strict=True):
        _assert_close(found, right)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((1, 8, 16, 3), np.uint8), np.zeros((1, 16, 16, 3), np.float32), np.zeros((33, 16, 16, 3), np.uint8)],
)
def test_a_bad_image_harms_no_neighbour(served: Served, bad: np.ndarray) -> None:
    """Sent among eight good images, the bad one alone is an error; the eight are one batch."""
    images = [_images(1, seed) for seed in range(TOGETHER)]
    refused = served.ask(Tower.IMAGE, bad)
    answers = served.encode_together(Tower.IMAGE, images)
    assert isinstance(refused.exception(DEADLINE_S), grpc.InferenceServerException)
    for image, found in zip(images, answers, strict=True):
        _assert_close(found, served.tiny.model.encode_images(image))


@pytest.mark.parametrize("tower", [Tower.IMAGE, Tower.TEXT])
def test_the_server_tells_what_the_client_needs(served: Served, tower: Tower) -> None:
    """The running model's config has the batch size, the space, the precision and the lengths of texts."""
    config = served.channel.get_model_config(f"tiny_{tower}").config
    facts = {name: value.string_value for name, value in config.parameters.items()}
    assert config.max_batch_size == {Tower.IMAGE: 32, Tower.TEXT: 64}[tower]
    assert facts["space"] == served.tiny.bundle.space
    assert (facts["precision"], facts["tower"]) == ("fp32", tower)
    assert facts.get("text_lengths") == {Tower.IMAGE: None, Tower.TEXT: "20"}[tower]


def test_warm_up_is_not_presented_as_traffic(served: Served) -> None:
    """Before any request Triton's statistics count a single one of each model, its own."""
    counts = {tower: (found.inference_count, found.execution_count) for tower, found in served.at_first.items()}
    assert counts == {Tower.IMAGE: (1, 1), Tower.TEXT: (1, 1)}
