"""Towers on servers that answer with garbage: only errors of this package, on one line, in time and bounded memory."""

from __future__ import annotations

import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from twinspire import TritonTowers
from twinspire.errors import EngineError, ServerError, ServerRefusedError, ServerUnavailableError, TwinspireError

Start = Callable[..., Any]
Reply = Callable[[Any, Any], Sequence[bytes]]
"""The messages, any number of any bytes, that answer a request; may abort the given context instead."""

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
INT64 = st.integers(-(2**63), 2**63 - 1)
HOSTILE_TEXT = "\x1b[2J\r\nerror: all is well\u202e\u2028\x00"


class GarbageServer(grpc.GenericRpcHandler):
    """A gRPC server that answers a method as `replies` says, and every other one as the fake server does."""

    def __init__(self, fake: Any) -> None:
        self._fake = fake
        self.replies: dict[str, Reply] = {}
        self._pool = ThreadPoolExecutor(8)
        options = [("grpc.so_reuseport", 0)]
        self._server = grpc.server(self._pool, options=options, compression=grpc.Compression.Gzip)
        self._server.add_generic_rpc_handlers((self,))
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        """Take any method; a client of one answer cannot tell a stream of one from it."""
        method = handler_call_details.method.rpartition("/")[2]

        def answer(data: bytes, context: Any) -> Iterator[bytes]:
            request = getattr(service_pb2, f"{method}Request").FromString(data)
            if method in self.replies:
                return iter(self.replies[method](request, context))
            return iter([getattr(self._fake, method)(request, context).SerializeToString()])

        return grpc.unary_stream_rpc_method_handler(answer)

    def stop(self) -> None:
        """Free the port."""
        self._server.stop(None).wait()
        self._pool.shutdown()


@pytest.fixture
def garbage(start_fake: Start) -> Iterator[GarbageServer]:
    """Serve the tiny bundle, with answers to be replaced."""
    server = GarbageServer(start_fake())
    yield server
    server.stop()


def _package_error(call: Callable[[], object], *, deadline_s: float) -> TwinspireError | None:
    """Return the error of a call, None where it succeeds.

    Fail unless it ends in time and the error is one of this package's, on one short line.
    """
    start = time.monotonic()
    try:
        call()
        return None
    except TwinspireError as error:
        message = str(error)
        assert len(message) < 2000
        bad = [character for character in message if unicodedata.category(character)[0] == "C"]
        assert not bad
        assert len(message.splitlines()) == 1
        return error
    finally:
        assert time.monotonic() - start < deadline_s + 1


@st.composite
def infer_responses(draw: st.DrawFn) -> bytes:
    """Write a ModelInferResponse with fields of any content."""
    response = service_pb2.ModelInferResponse(model_name=draw(st.text(max_size=5)))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(["embedding", HOSTILE_TEXT]) | st.text(max_size=5))
        datatype = draw(st.sampled_from(["FP32", "BYTES", "X" * 10**5]) | st.text(max_size=5))
        shape = draw(
            st.sampled_from([[3, 12], [1] * 40, [0, 2**62], [-3, -12], [3] * 10**5]) | st.lists(INT64, max_size=4)
        )
        response.outputs.add(name=name, datatype=datatype, shape=shape)
    raw = st.sampled_from([b"", bytes(144), b"\xff" * 144, b"\x7f" * 144]) | st.binary(max_size=200)
    response.raw_output_contents.extend(draw(st.lists(raw, max_size=3)))
    return bytes(response.SerializeToString())


def _damaged(data: bytes, place: int, value: int, end: int) -> bytes:
    """Change one byte and cut what follows another."""
    changed = bytearray(data)
    if changed:
        changed[place % len(changed)] = value
    return bytes(changed[: end % (len(changed) + 1)])


MESSAGES = st.lists(st.binary(max_size=100) | infer_responses(), max_size=1)
DAMAGE = st.tuples(st.integers(0, 10**4), st.integers(0, 255), st.integers(0, 10**4))
STATUSES = st.sampled_from(list(grpc.StatusCode)[1:])
DETAILS = st.sampled_from([HOSTILE_TEXT * 50, "\n" * 5000]) | st.text(max_size=50)

garbled = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@garbled
@given(messages=MESSAGES)
def test_any_answer_is_right_or_an_error(tiny: Any, garbage: GarbageServer, messages: list[bytes]) -> None:
    """Whatever message answers an inference, or none, the call gives the right rows or an error of this package."""
    garbage.replies = {"ModelInfer": lambda request, context: messages}
    with TritonTowers(garbage.url, tiny.bundle, deadline_s=0.5, max_retries=0) as towers:
        _package_error(lambda: towers.encode_images(IMAGES), deadline_s=0.5)


@garbled
@given(method=st.sampled_from(["ServerMetadata", "ModelConfig", "ModelInfer", "ModelStatistics"]), damage=DAMAGE)
def test_a_damaged_answer_is_right_or_an_error(
    tiny: Any, garbage: GarbageServer, start_fake: Start, method: str, damage: tuple[int, int, int]
) -> None:
    """A right answer with a changed byte and an end missing opens and encodes, or is an error of this package."""
    fake = start_fake()

    def reply(request: Any, context: Any) -> list[bytes]:
        return [_damaged(getattr(fake, method)(request, context).SerializeToString(), *damage)]

    garbage.replies = {method: reply}

    def call() -> None:
        with TritonTowers(garbage.url, tiny.bundle, deadline_s=0.5, max_retries=0) as towers:
            towers.encode_images(IMAGES)
            towers.statistics("image")

    _package_error(call, deadline_s=0.5)


@garbled
@given(code=STATUSES, details=DETAILS, during=st.sampled_from(["ModelConfig", "ModelInfer"]))
def test_any_status_is_an_error_on_one_line(
    tiny: Any, garbage: GarbageServer, code: grpc.StatusCode, details: str, during: str
) -> None:
    """Whatever a server says of its error reaches the message escaped and cut."""
    garbage.replies = {during: lambda request, context: context.abort(code, details)}

    def call() -> None:
        with TritonTowers(garbage.url, tiny.bundle, deadline_s=0.5, max_retries=0) as towers:
            towers.encode_images(IMAGES)

    assert _package_error(call, deadline_s=0.5) is not None


def _config(change: Callable[[Any], None], fake: Any) -> Reply:
    def reply(request: Any, context: Any) -> list[bytes]:
        response = service_pb2.ModelConfigResponse()
        response.CopyFrom(fake.ModelConfig(request, context))
        change(response.config)
        return [response.SerializeToString()]

    return reply


def _set(name: str, value: str) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        config.parameters[name].string_value = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda config: setattr(config.output[0], "data_type", 99),
        lambda config: setattr(config.input[0], "name", HOSTILE_TEXT * 10**4),
        lambda config: config.input[0].dims.extend([1] * 10**5),
        lambda config: [config.output.add(name=HOSTILE_TEXT) for _ in range(10**4)],
        lambda config: setattr(config, "max_batch_size", -(2**31)),
        _set("space", HOSTILE_TEXT * 10**4),
        _set("text_lengths", HOSTILE_TEXT * 10**4),
        _set("text_lengths", "9" * 10**5),
        _set("text_lengths", ",".join(map(str, range(10**5)))),
    ],
)
def test_an_unusable_configuration_is_an_error_on_one_line(
    tiny: Any, garbage: GarbageServer, start_fake: Start, change: Callable[[Any], None]
) -> None:
    """A model's configuration that is not of the contract is a short ServerError or SpaceMismatchError."""
    garbage.replies = {"ModelConfig": _config(change, start_fake())}
    error = _package_error(lambda: TritonTowers(garbage.url, tiny.bundle), deadline_s=2)
    assert error is not None


def test_a_configuration_cannot_name_another_model(tiny: Any, garbage: GarbageServer, start_fake: Start) -> None:
    """Requests go to the model that was asked for, whatever name and largest batch its configuration has."""
    fake = start_fake()

    def change(config: Any) -> None:
        config.name, config.max_batch_size = HOSTILE_TEXT, 2**31 - 1
        _set("precision", HOSTILE_TEXT)(config)

    asked: list[Any] = []

    def infer(request: Any, context: Any) -> list[bytes]:
        asked.append(request)
        return [fake.answer(request).SerializeToString()]

    fake.configs["tiny_image"].max_batch_size = 10**6
    garbage.replies = {"ModelConfig": _config(change, fake), "ModelInfer": infer}
    images = np.zeros((1500, 16, 16, 3), np.uint8)
    with TritonTowers(garbage.url, tiny.bundle) as towers:
        towers.encode_images(images)
    assert {request.model_name for request in asked} == {"tiny_image"}
    assert sorted(request.inputs[0].shape[0] for request in asked) == [476, 1024]


def test_a_version_is_shown_on_one_line(tiny: Any, garbage: GarbageServer) -> None:
    """What a server calls its version comes escaped and cut."""
    version = service_pb2.ServerMetadataResponse(version=HOSTILE_TEXT * 10**4).SerializeToString()
    garbage.replies = {"ServerMetadata": lambda request, context: [version]}
    with TritonTowers(garbage.url, tiny.bundle) as towers:
        assert towers.runtime.isprintable()
        assert len(towers.runtime) < 150


@pytest.mark.parametrize("method", ["ModelConfig", "ModelInfer"])
@pytest.mark.parametrize("is_compressible", [False, True])
def test_an_oversized_answer_is_not_received(
    tiny: Any, garbage: GarbageServer, method: str, is_compressible: bool
) -> None:
    """An answer beyond what the bundle's embeddings need, compressed below it or not, is an EngineError."""
    answer = bytes(20 * 2**20) if is_compressible else np.random.default_rng(0).bytes(3 * 2**20)
    garbage.replies = {method: lambda request, context: [answer]}

    def call() -> None:
        with TritonTowers(garbage.url, tiny.bundle, deadline_s=5) as towers:
            towers.encode_images(IMAGES)

    error = _package_error(call, deadline_s=5)
    assert isinstance(error, EngineError)
    assert "large" in str(error)


def test_two_answers_to_one_request_are_an_error(tiny: Any, garbage: GarbageServer) -> None:
    """A server that answers an inference twice costs the deadline at most."""
    garbage.replies = {"ModelInfer": lambda request, context: [b"", b""]}
    with TritonTowers(garbage.url, tiny.bundle, deadline_s=0.5) as towers:
        assert _package_error(lambda: towers.encode_images(IMAGES), deadline_s=0.5) is not None


@pytest.mark.parametrize("data", [b"", b"\x00" * 1000, b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(range(256)) * 40])
def test_what_speaks_no_grpc_is_unavailable(tiny: Any, data: bytes) -> None:
    """A port whose server answers with other bytes and hangs up is a ServerUnavailableError in time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        stopped = threading.Event()

        def serve() -> None:
            listener.settimeout(0.1)
            while not stopped.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        error = _package_error(lambda: TritonTowers(url, tiny.bundle, deadline_s=1), deadline_s=1)
        stopped.set()
        thread.join()
    assert type(error) is ServerUnavailableError
    assert url in str(error)


def test_a_refusal_shows_the_servers_text_escaped(tiny: Any, garbage: GarbageServer) -> None:
    """Control characters of a server's text reach the message as escapes, its readable part as it is."""
    garbage.replies = {
        "ModelInfer": lambda request, context: context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, f"wrong shape {HOSTILE_TEXT}"
        )
    }
    with TritonTowers(garbage.url, tiny.bundle) as towers, pytest.raises(ServerRefusedError) as caught:
        towers.encode_images(IMAGES)
    assert "wrong shape \\x1b[2J\\r\\n" in str(caught.value)
    assert isinstance(caught.value, ServerError)
