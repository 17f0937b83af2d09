"""preprocess_model.py without Triton: errors of one request among others, refusals, expiry, and failures of a batch."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from support.arrays import noise_images, png
from twinspire import Client
from twinspire.errors import ImageError
from twinspire.images import Preprocessor
from twinspire_server import repository
from twinspire_server.repository import build_repository
from twinspire_server.repository.config import read_config

MODEL_FILE = Path(repository.__file__).with_name("preprocess_model.py")


class _TritonError(Exception):
    INVALID_ARG, INTERNAL, UNAVAILABLE = "invalid", "internal", "unavailable"

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Request:
    """One request with its items; keeps what is sent for it."""

    def __init__(self, items: Sequence[bytes], *, timeout_us: int = 0, cancelled: bool = False) -> None:
        self.array = np.array([[item] for item in items], np.object_)
        self.sent: list[Any] = []
        self.timeout, self.is_cancelled = (lambda: timeout_us), (lambda: cancelled)

    def request_id(self) -> str:
        return "id"

    def as_numpy(self) -> np.ndarray:
        return self.array

    def get_response_sender(self) -> Any:
        return SimpleNamespace(send=lambda response, flags: self.sent.append(response))

    @property
    def answer(self) -> Any:
        """The rows or the error that was sent, once."""
        (response,) = self.sent
        return response.error or response.rows


class _MetricFamily:
    """Triton's metrics: every value that was given, by the family's name and the last label."""

    COUNTER, HISTOGRAM = "counter", "histogram"
    values: ClassVar[dict[tuple[str, str], list[float]]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str], buckets: Sequence[float] = ()) -> Any:  # noqa: N802 - Triton's name
        kept = self.values.setdefault((self.name, list(labels.values())[-1]), [])
        return SimpleNamespace(increment=kept.append, observe=kept.append)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the file as Triton does, with a stand-in for what Triton brings."""
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.TritonError, backend.MetricFamily = _TritonError, _MetricFamily
    monkeypatch.setattr(_MetricFamily, "values", {})
    backend.Tensor = lambda name, array: array
    backend.InferenceResponse = lambda tensors=(None,), error=None: SimpleNamespace(rows=tensors[0], error=error)
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    backend.get_input_tensor_by_name = lambda request, name: request
    backend.Logger = SimpleNamespace(log_error=lambda message: None)
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    spec = importlib.util.spec_from_file_location("preprocess", MODEL_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.os, "nice", lambda _: 0)  # not this process
    return module


@pytest.fixture
def decode() -> str:
    """Decode exactly, unless a test says otherwise."""
    return "exact"


@pytest.fixture
def model(module: ModuleType, tiny: Any, tmp_path: Path, decode: str) -> Iterator[Any]:
    """Initialize the model that decodes images, as `build` writes it."""
    build_repository([tiny.bundle.path], tmp_path, raw_inputs=True, decode=decode)
    built = read_config(tmp_path / "tiny_decode").parameters
    config = {
        "max_batch_size": 4,
        "input": [{"name": "image_bytes"}],
        "output": [{"name": "image"}],
        "parameters": {name: {"string_value": built[name].string_value} for name in built},
    }
    made = module.TritonPythonModel()
    folder = {"model_repository": str(tmp_path / "tiny_decode"), "model_version": "1", "model_name": "tiny_decode"}
    made.initialize({"model_config": json.dumps(config), **folder})
    yield made
    made.finalize()


def _execute(model: Any, requests: list[_Request]) -> None:
    model.execute(requests)
    model._backlog.wait_until_idle(60)


def test_each_request_gets_its_own_answer(model: Any, tiny: Any) -> None:
    """Rows are those of `Client.preprocess`; a bad image fails its own request, with its place in it."""
    files = [png(image) for image in noise_images(4, size=24)]
    with Client.local(tiny.bundle, provider="cpu") as client:
        expected = client.preprocess(files)
    requests = [_Request(files[:2]), _Request([files[0], b"no image"]), _Request([b""]), _Request(files[2:])]
    _execute(model, requests)
    first, bad, empty, last = (request.answer for request in requests)
    assert np.array_equal(np.concatenate([first, last]), expected)
    assert (bad.kind, "image 1 (bytes): not an image" in str(bad)) == ("invalid", True)
    assert (empty.kind, "image 0 (bytes): empty" in str(empty)) == ("invalid", True)


@pytest.mark.parametrize("decode", ["exact", "scaled"])
def test_images_are_decoded_as_the_repository_was_built(model: Any, tiny: Any, decode: str) -> None:
    """A JPEG comes out as from a client of the mode that the repository was built with."""
    file = io.BytesIO()
    Image.fromarray(noise_images(1, size=200)[0]).save(file, "JPEG")
    request = _Request([file.getvalue()])
    _execute(model, [request])
    assert np.array_equal(request.answer, Preprocessor(tiny.bundle.image, decode=decode).many([file.getvalue()]))
    other = "exact" if decode == "scaled" else "scaled"
    assert (request.answer != Preprocessor(tiny.bundle.image, decode=other).many([file.getvalue()])).any()


def test_answers_are_counted_by_status_and_times_by_phase(model: Any) -> None:
    """An answered request, a bad one and a cancelled one count each; the time of decoding is a phase."""
    good, bad, gone = _Request([png(noise_images(1)[0])]), _Request([b"no image"]), _Request([b"x"], cancelled=True)
    _execute(model, [good, bad, gone])
    values = _MetricFamily.values
    counted = {status: len(kept) for (name, status), kept in values.items() if name.endswith("requests_total")}
    assert counted == {"ok": 1, "invalid": 1, "overloaded": 0, "expired": 1, "error": 0}
    assert len(values["twinspire_server_phase_seconds", "preprocess"]) == 2
    assert all(0 < seconds < 60 for seconds in values["twinspire_server_phase_seconds", "preprocess"])


@pytest.mark.parametrize("options", [{"cancelled": True}, {"timeout_us": 1}])
def test_who_waits_no_longer_costs_nothing(
    model: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A request that was cancelled or has expired is refused and not decoded; the next one is."""
    decoded = []
    prepare = model._prepare
    monkeypatch.setattr(model, "_prepare", lambda items: (decoded.extend(items), prepare(items))[1])
    file = png(noise_images(1)[0])
    gone, kept = _Request([b"gone"], **options), _Request([file])
    _execute(model, [gone, kept])
    assert (gone.answer.kind, str(gone.answer)) == ("unavailable", "Request timeout expired")
    assert kept.answer.shape == (1, 16, 16, 3)
    assert decoded == [file]


@pytest.fixture
def hold(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let decoding wait until the event is set."""
    going = threading.Event()

    def prepare(items: list[bytes]) -> Generator[np.ndarray, None, None]:
        going.wait(60)
        yield from (np.zeros(1) for _ in items)

    monkeypatch.setattr(model, "_prepare", prepare)
    yield going
    going.set()


@pytest.mark.parametrize("limit", ["rows", "bytes"])
def test_what_does_not_fit_is_refused(
    model: Any, module: ModuleType, hold: threading.Event, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """While a batch is decoded, eight batches of rows or the bytes of the limit wait; the rest is refused at once."""
    model.execute([_Request([b"x"])])
    while not model._backlog.computing_s:
        time.sleep(0.001)
    if limit == "bytes":
        monkeypatch.setattr(module, "QUEUED_BYTES", 10)
        waiting = [_Request([b"four"]), _Request([b"four"]), _Request([b"four"])]
    else:
        waiting = [_Request([b"x"] * 4) for _ in range(10)]
    model.execute(waiting)
    refused = [request for request in waiting if request.sent]
    assert refused
    assert all(request.answer.kind == "unavailable" for request in refused)
    assert {str(request.answer) for request in refused} == {"Exceeds maximum queue size"}
    hold.set()
    model._backlog.wait_until_idle(60)
    assert all(len(request.sent) == 1 for request in waiting)
    assert model._waiting_bytes == 0


def test_a_failure_of_the_batch_is_its_requests_own(module: ModuleType) -> None:
    """Where decoding raises anything, memory included, the other requests still get their rows."""

    def prepare(items: list[bytes]) -> Generator[Any, None, None]:
        for position, item in enumerate(items):
            if item == b"boom":
                raise MemoryError("too large")
            yield ImageError(position, "bytes", "bad") if item == b"bad" else np.full(2, len(item))

    requests = [np.array(items, np.object_) for items in ([b"a"], [b"b", b"bad"], [b"boom"], [b"ccc", b"d"])]
    one, bad, boom, two = module.prepare_together(prepare, requests)
    assert (one.tolist(), two.tolist()) == ([[1, 1]], [[3, 3], [1, 1]])
    assert (bad.position, "MemoryError" in str(boom)) == (1, True)


def test_the_first_answer_does_not_wait_for_the_last(module: ModuleType) -> None:
    """A request is answered once its own items are decoded: the tower computes it meanwhile."""
    seen: list[int] = []

    def prepare(items: list[bytes]) -> Generator[Any, None, None]:
        for position in range(len(items)):
            seen.append(position)
            yield np.zeros(1)

    answers: Any = module.prepare_together(prepare, [np.array([b"a"], np.object_), np.array([b"b"], np.object_)])
    next(answers)
    assert seen == [0]


def test_texts_are_padded_to_the_context(module: ModuleType, tiny: Any) -> None:
    """Texts become rows of the context's length; one that is no UTF-8 and one that is too long are named."""
    tokenizer: Callable[..., Any] = module.Tokenizer(tiny.bundle.tokenizer_path, tiny.bundle.text)
    rows = list(module.prepare_texts([b"red cat", b"\xff", b"a" * (module.MAX_TEXT_BYTES + 1), b""], tokenizer))
    assert rows[0].tolist() == [1, 6, 10, 2, *[0] * 16]
    assert rows[3].tolist() == [1, 2, *[0] * 18]
    assert ("UTF-8" in str(rows[1]), rows[1].position) == (True, 1)
    assert (f"{module.MAX_TEXT_BYTES:,}" in str(rows[2]), rows[2].position) == (True, 2)
    (alone,) = module.prepare_texts([b"\xff"], tokenizer)
    assert alone.position == 0
