"""model.py without Triton: which requests are answered together, what is padding, what an error becomes."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from support.arrays import noise_images
from twinspire.bundle import Tower
from twinspire.contract import CANARY_REQUEST_ID, without_padding
from twinspire.errors import BundleError, EngineError, InputError, SpaceMismatchError
from twinspire.towers import Provider
from twinspire_server import repository
from twinspire_server.repository import build_repository
from twinspire_server.repository.served_engine import warm_up_inputs
from twinspire_server.repository.telemetry import Status

MODEL_FILE = Path(repository.__file__).with_name("model.py")
START, END, PAD = 1, 2, 0
FINAL = 1
MAX_BATCH = 32
TOLERANCE = 1e-6  # float32 against float64 over 768 products


class _Tensor:
    def __init__(self, name: str, array: np.ndarray | Exception) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


class _TritonError(Exception):
    INVALID_ARG, INTERNAL, UNAVAILABLE = "invalid", "internal", "unavailable"

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Response:
    def __init__(self, tensors: Sequence[_Tensor] = (), error: _TritonError | None = None) -> None:
        self.tensors, self.error = tensors, error


class _Request:
    """One request with its input; keeps what is sent for it."""

    def __init__(self, name: str, array: np.ndarray | Exception) -> None:
        self.input = _Tensor(name, array)
        self.sent: list[tuple[_Response, int]] = []
        self.timeout_us, self.cancelled, self.id = 0, False, "id"

    def request_id(self) -> str:
        return self.id

    def timeout(self) -> int:
        return self.timeout_us

    def is_cancelled(self) -> bool:
        return self.cancelled

    def get_response_sender(self) -> Any:
        return SimpleNamespace(send=lambda response, flags: self.sent.append((response, flags)))


class _MetricFamily:
    """Triton's metrics: every value that was given, by the family's name and its labels."""

    COUNTER, HISTOGRAM = "counter", "histogram"
    values: ClassVar[dict[tuple[str, ...], list[float]]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str], buckets: Sequence[float] = ()) -> Any:  # noqa: N802 - Triton's name
        kept = self.values.setdefault((self.name, *labels.values()), [])
        return SimpleNamespace(increment=kept.append, observe=kept.append)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import model.py as Triton does, from its file, with a stand-in for what Triton brings."""
    backend: Any = ModuleType("triton_python_backend_utils")
    backend.Tensor, backend.TritonError, backend.InferenceResponse = _Tensor, _TritonError, _Response
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    backend.MetricFamily = _MetricFamily
    monkeypatch.setattr(_MetricFamily, "values", {})
    backend.get_input_tensor_by_name = lambda request, name: request.input if name == request.input.name else None
    backend.Logger = SimpleNamespace(log_info=lambda message: None, log_error=lambda message: None)
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    spec = importlib.util.spec_from_file_location("model", MODEL_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def open_model(
    module: ModuleType, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Initialize the model of a tower of the tiny bundle, as `build` writes it; `changes` are to its parameters.

    It does not change this process's niceness.
    """
    monkeypatch.setattr(module.os, "nice", lambda increment: increment)
    build_repository([tiny.bundle.path], tmp_path / "models", precision="fp32", threads=1)
    opened = []

    def open_model(tower: Tower, **changes: str) -> Any:
        folder = tmp_path / "models" / f"tiny_{tower}"
        facts = {"tower": tower, "space": tiny.bundle.space, "precision": "fp32", "provider": "cpu", "threads": "1"}
        config: dict[str, Any] = {
            "max_batch_size": MAX_BATCH,
            "parameters": {name: {"string_value": value} for name, value in {**facts, **changes}.items()},
        }
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_name": folder.name,
                "model_repository": str(folder),
                "model_version": "1",
                "model_config": json.dumps(config),
            }
        )
        opened.append(model)
        return model

    yield open_model
    for model in opened:
        model.finalize()


def _ask(model: Any, tower: Tower, inputs: Sequence[np.ndarray | Exception]) -> list[Any]:
    name = {Tower.IMAGE: "image", Tower.TEXT: "input_ids"}[tower]
    answers = []
    requests = [_Request(name, array) for array in inputs]
    model.execute(requests)
    model._backlog.wait_until_idle(60)
    for request in requests:
        ((response, flags),) = request.sent
        assert flags == FINAL
        answers.append(response.error or response.tensors[0].array)
        assert response.error or [tensor.name for tensor in response.tensors] == ["embedding"]
    return answers


def _rows(*texts: Sequence[int]) -> np.ndarray:
    return np.array(texts, np.int32)


def test_requests_for_images_are_answered_in_order(open_model: Callable[..., Any], tiny: Any) -> None:
    """Requests of one and of several images get their own embeddings."""
    generator = np.random.default_rng(0)
    inputs = [generator.integers(0, 256, (count, 16, 16, 3), np.uint8) for count in (1, 4, 2)]
    for images, found in zip(inputs, _ask(open_model(Tower.IMAGE), Tower.IMAGE, inputs), strict=True):
        assert np.abs(found - tiny.model.encode_images(images)).max() <= TOLERANCE


def test_a_lone_request_is_answered_before_the_call_returns(open_model: Callable[..., Any]) -> None:
    """A single row is computed in the thread that Triton calls, so that no other has to wake up for it."""
    model, request = open_model(Tower.IMAGE), _Request("image", noise_images(1))
    model.execute([request])
    assert len(request.sent) == 1


@pytest.mark.parametrize(("tower", "niceness"), [(Tower.IMAGE, 10), (Tower.TEXT, 0)])
def test_images_yield_processors_to_texts(
    open_model: Callable[..., Any],
    module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tower: Tower,
    niceness: int,
) -> None:
    """Images are computed with less priority than texts of the same bundle; the thread that refuses keeps its own."""
    added: set[tuple[int, bool]] = set()
    here = threading.current_thread()
    monkeypatch.setattr(module.os, "nice", lambda by: added.add((by, threading.current_thread() is here)))
    open_model(tower)
    assert added == {(niceness, False)}


@pytest.mark.parametrize(("provider", "is_paused"), [("cpu", True), ("openvino", True), ("cuda", False)])
def test_there_is_no_pause_on_a_gpu(module: ModuleType, provider: str, is_paused: bool) -> None:
    """On a processor other threads compute while one pauses; on a GPU nothing would."""
    assert (module.pause_after(Provider(provider)) > 0) is is_paused


def test_answers_are_counted_by_status_and_times_by_phase(open_model: Callable[..., Any], tmp_path: Path) -> None:
    """A request that is answered, one that cannot be read and an expired one count each; the canary's does not."""
    model = open_model(Tower.IMAGE)
    good, bad, late, canary = (_Request("image", noise_images(2)) for _ in range(4))
    bad.input = _Tensor("image", ValueError("array is too big"))
    late.cancelled, canary.id = True, CANARY_REQUEST_ID
    for request in (good, bad, late, canary):
        model.execute([request])
        model._backlog.wait_until_idle(60)
    values = _MetricFamily.values
    counted = {key[-1]: len(kept) for key, kept in values.items() if key[0] == "twinspire_server_requests_total"}
    assert counted == {"ok": 1, "invalid": 1, "overloaded": 0, "expired": 1, "error": 0}
    assert values["twinspire_server_batch_rows", "tiny_image", "1"] == [2]
    for phase in ("queue", "compute"):
        (seconds,) = values["twinspire_server_phase_seconds", "tiny_image", "1", phase]
        assert 0 < seconds < 60


def test_metrics_are_used_by_one_thread_at_a_time(
    open_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's metrics are not safe to use from several threads: a server crashed whose streams counted at once."""
    using, overlaps = threading.Semaphore(1), list[int]()

    class _Slow:
        def __init__(self, *_: object, **__: object) -> None: ...

        def use(self, _: float) -> None:
            alone = using.acquire(blocking=False)
            time.sleep(0.001)
            if alone:
                using.release()
            else:
                overlaps.append(1)

        increment = observe = use

    monkeypatch.setattr(_MetricFamily, "Metric", _Slow)
    telemetry = open_model(Tower.IMAGE)._telemetry

    def count() -> None:
        for _ in range(20):
            telemetry.answered(telemetry.arrived(_Request("image", noise_images(1))), Status.OK)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []


@pytest.fixture
def held(open_model: Callable[..., Any]) -> Iterator[tuple[Any, list[int], threading.Event]]:
    """Open an image model whose engine waits for an event; beside it the rows of each call of the engine."""
    model, rows, go = open_model(Tower.IMAGE), [], threading.Event()
    compute = model._engine.compute

    def waiting(inputs: Sequence[np.ndarray]) -> Any:
        rows.append(sum(map(len, inputs)))
        assert go.wait(60)
        return compute(inputs)

    model._engine.compute = waiting
    yield model, rows, go
    go.set()


def test_what_exceeds_the_backlog_is_refused(held: Any, tiny: Any) -> None:
    """While a full batch is computed, eight more wait; the next is refused at once, and what waited is answered."""
    model, calls, go = held
    requests = [_Request("image", noise_images(MAX_BATCH)) for _ in range(10)]
    for request in requests:
        model.execute([request])
        if request is requests[0]:
            while not calls:
                time.sleep(0.001)
    assert [len(request.sent) for request in requests] == [0] * 9 + [1]
    refusal = requests[9].sent[0][0].error
    assert refusal.kind == _TritonError.UNAVAILABLE
    assert "queue" in str(refusal)
    go.set()
    model._backlog.wait_until_idle(60)
    for request in requests[:9]:
        ((response, flags),) = request.sent
        assert flags == FINAL
        found = response.tensors[0].array
        assert np.abs(found - tiny.model.encode_images(request.input.array)).max() <= TOLERANCE
    assert calls == [MAX_BATCH] * 9


def test_what_waits_is_joined_into_batches(held: Any) -> None:
    """Single images that come while a full batch is computed are computed together."""
    model, calls, go = held
    model.execute([_Request("image", noise_images(MAX_BATCH))])
    requests = [_Request("image", noise_images(1)) for _ in range(40)]
    for request in requests:
        model.execute([request])
    go.set()
    model._backlog.wait_until_idle(60)
    assert calls == [MAX_BATCH, MAX_BATCH, 8]
    assert all(len(request.sent) == 1 for request in requests)


def test_an_engine_that_never_ends_ends_the_process(
    held: Any, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a batch that takes longer than any, the next request ends the process, which is then replaced."""
    model, calls, _ = held
    ended: list[int] = []
    monkeypatch.setattr(module.os, "_exit", ended.append)
    model.execute([_Request("image", noise_images(MAX_BATCH))])
    while not calls:
        time.sleep(0.001)
    model.execute([_Request("image", noise_images(1))])
    assert ended == []
    monkeypatch.setattr(module, "HUNG_S", 0.0)
    model.execute([_Request("image", noise_images(1))])
    assert ended == [1]


def test_nothing_is_computed_for_nobody(held: Any) -> None:
    """Requests whose time has passed while they waited, and whose callers are gone, get an error and no computing."""
    model, calls, go = held
    model.execute([_Request("image", noise_images(MAX_BATCH))])
    late, gone, wanted = (_Request("image", noise_images(1)) for _ in range(3))
    late.timeout_us = 1
    model.execute([late, gone, wanted])
    gone.cancelled = True
    go.set()
    model._backlog.wait_until_idle(60)
    assert calls == [MAX_BATCH, 1]
    assert [request.sent[0][0].error is None for request in (late, gone, wanted)] == [False, False, True]
    assert late.sent[0][0].error.kind == _TritonError.UNAVAILABLE


def test_texts_of_any_length_are_answered_together(open_model: Callable[..., Any], tiny: Any) -> None:
    """A ragged batch, with padding of any width right of the end token, gives each text's own embedding."""
    inputs = [_rows([1, 5, 2]), _rows([1, 2, 0, 0, 0], [1, 6, 11, 7, 2]), _rows([1, 4, 2, *[0] * 40])]
    bare = [[_rows([1, 5, 2])[0]], [_rows([1, 2])[0], _rows([1, 6, 11, 7, 2])[0]], [_rows([1, 4, 2])[0]]]
    for texts, found in zip(bare, _ask(open_model(Tower.TEXT), Tower.TEXT, inputs), strict=True):
        assert np.abs(found - tiny.model.encode_texts(texts)).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 18, 2], "18"),
        ([1, -1, 2], "-1"),
        ([], "20"),
        ([0, 0, 0], "20"),
        ([1, *[5] * 19, 2], "21"),
        ([1, 5], "end"),
    ],
)
def test_a_bad_text_harms_no_other(open_model: Callable[..., Any], tiny: Any, row: list[int], message: str) -> None:
    """Among seven requests the bad one gets an error that says why, the others their embeddings."""
    good = [_rows([1, 4 + place, 2]) for place in range(6)]
    answers = _ask(open_model(Tower.TEXT), Tower.TEXT, [*good[:3], _rows(row), *good[3:]])
    error = answers.pop(3)
    assert isinstance(error, _TritonError)
    assert error.kind == _TritonError.INVALID_ARG
    assert message in str(error)
    for texts, found in zip(good, answers, strict=True):
        assert np.abs(found - tiny.model.encode_texts(list(texts))).max() <= TOLERANCE


@pytest.mark.parametrize("bad", [[0], [1], [0, 1, 2]])
def test_an_input_that_cannot_be_read_harms_no_other(open_model: Callable[..., Any], tiny: Any, bad: list[int]) -> None:
    """Where Triton cannot make an array of an input, that request gets an error and the others their embeddings."""
    rows = _rows([1, 5, 2])
    inputs = [ValueError("negative dimensions are not allowed") if place in bad else rows for place in range(3)]
    for place, answer in enumerate(_ask(open_model(Tower.TEXT), Tower.TEXT, inputs)):
        if place in bad:
            assert answer.kind == _TritonError.INVALID_ARG
            assert "negative" in str(answer)
        else:
            assert np.abs(answer - tiny.model.encode_texts(list(rows))).max() <= TOLERANCE


def test_an_unexpected_error_is_the_requests_own(module: ModuleType) -> None:
    """What is no TwinspireError, such as a lack of memory, becomes an EngineError of the request that causes it."""

    def encode(inputs: Sequence[np.ndarray]) -> np.ndarray:
        if any(rows.size > 9 for rows in inputs):
            raise MemoryError("so much")
        return np.concatenate(inputs)

    small, large = np.zeros((1, 9), np.float32), np.zeros((1, 10), np.float32)
    first, second, third = module.compute_together(encode, [small, large, small])
    assert isinstance(second, EngineError)
    assert "MemoryError" in str(second)
    assert np.array_equal(first, small)
    assert np.array_equal(third, small)


def test_a_caller_that_is_gone_harms_no_other(open_model: Callable[..., Any], tiny: Any) -> None:
    """Where one response cannot be sent the next one is."""
    model, rows = open_model(Tower.TEXT), _rows([1, 5, 2])
    gone, there = _Request("input_ids", rows), _Request("input_ids", rows)
    gone.get_response_sender = lambda: SimpleNamespace(send=lambda *_, **__: 1 / 0)  # type: ignore[method-assign]
    model.execute([gone, there])
    model._backlog.wait_until_idle(60)
    ((response, _),) = there.sent
    assert np.abs(response.tensors[0].array - tiny.model.encode_texts(list(rows))).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("tower", "shapes"),
    [
        (Tower.IMAGE, [(1, 16, 16, 3), (MAX_BATCH, 16, 16, 3)]),
        (Tower.TEXT, [(1, 8), (1, 16), (1, 20), (MAX_BATCH, 20)]),
    ],
)
def test_every_shape_is_warmed_up(tiny: Any, tower: Tower, shapes: list[tuple[int, ...]]) -> None:
    """Each shape that the engine will see runs alone, and the largest as a full batch."""
    assert [rows.shape for rows in warm_up_inputs(tiny.bundle, tower, MAX_BATCH)] == shapes


@pytest.mark.parametrize("bad", [[], [0], [3], [7], [0, 7], [2, 3, 5], list(range(8))])
def test_what_is_at_fault_is_found_by_halves(module: ModuleType, bad: list[int]) -> None:
    """Whichever of eight requests fail, exactly those get errors, and one alone costs seven calls."""
    calls = []

    def encode(inputs: Sequence[np.ndarray]) -> np.ndarray:
        calls.append(len(inputs))
        if any(int(rows[0, 0]) in bad for rows in inputs):
            raise EngineError("not this one")
        return np.concatenate(inputs)

    inputs = [np.full((1 + place % 3, 4), place, np.float32) for place in range(8)]
    answers = module.compute_together(encode, inputs)
    assert [isinstance(answer, EngineError) for answer in answers] == [place in bad for place in range(8)]
    for place in set(range(8)) - set(bad):
        assert np.array_equal(answers[place], inputs[place])
    if len(bad) <= 1:
        assert len(calls) == (1, 7)[len(bad)]


def test_an_engine_that_fails_is_no_fault_of_the_request(open_model: Callable[..., Any], module: ModuleType) -> None:
    """An EngineError becomes an internal error of each request, an InputError an invalid argument."""
    model = open_model(Tower.IMAGE)
    model._engine.close()
    answers = _ask(model, Tower.IMAGE, [np.zeros((1, 16, 16, 3), np.uint8)] * 2)
    assert [getattr(answer, "kind", None) for answer in answers] == [_TritonError.INTERNAL] * 2
    assert module._response(InputError("no"), "embedding").error.kind == _TritonError.INVALID_ARG


@pytest.mark.parametrize(
    ("row", "pad", "expected"),
    [
        ([START, 5, END, PAD, PAD], PAD, [START, 5, END]),
        ([START, PAD, 5, END], PAD, [START, PAD, 5, END]),
        ([START, 5, END, END, END], END, [START, 5, END]),
        ([START, 5, END], END, [START, 5, END]),
        ([PAD, PAD], PAD, []),
        ([END, END], END, [END]),
        ([], PAD, []),
    ],
)
def test_padding_is_what_stands_right_of_the_text(row: list[int], pad: int, expected: list[int]) -> None:
    """Only trailing padding goes; where the end token pads, one of it stays."""
    assert without_padding(np.array(row, np.int32), pad_id=pad, eos_id=END).tolist() == expected


def test_the_other_towers_engine_is_not_opened(open_model: Callable[..., Any]) -> None:
    """A model holds one tower's engine, run as its parameters say."""
    towers = open_model(Tower.TEXT)._engine.towers
    assert str(towers.runtime) == "onnxruntime cpu fp32, threads: 1"
    several = open_model(Tower.TEXT, threads="2", streams="2")._engine.towers
    assert str(several.runtime) == "onnxruntime cpu fp32, threads: 2, streams: 2"
    with pytest.raises(EngineError, match="image"):
        towers.encode_images(np.zeros((1, 16, 16, 3), np.uint8))


def test_a_config_of_another_space_does_not_load(open_model: Callable[..., Any]) -> None:
    """A bundle that is not of the config's space raises, so that Triton does not load the model."""
    with pytest.raises(SpaceMismatchError, match="f" * 64):
        open_model(Tower.TEXT, space="f" * 64)


def test_a_damaged_bundle_does_not_load(open_model: Callable[..., Any], tmp_path: Path) -> None:
    """A changed engine raises BundleError that names the file."""
    engine = tmp_path / "models" / "tiny_text" / "1" / "bundle" / "text.fp32.onnx"
    engine.write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"text\.fp32\.onnx"):
        open_model(Tower.TEXT)
