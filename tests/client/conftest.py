"""A fake inference server in this process, which speaks Triton's protocol and fails on request."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from support.rerankers import expected_scores
from twinspire.bundle import Tower
from twinspire.contract import EMBEDDING, IMAGE, PROBABILITY

Hook = Callable[["FakeTriton", Any, Any], Any]


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves the model of a tiny bundle.

    `hook(server, request, context)` runs before each inference; what it returns, unless None, is the answer. So does
    `config_hook` before each question for a configuration, which may abort it.
    `requests` are the inferences that came, `seen_at_once` the most that were under way at a time.
    """

    def __init__(
        self,
        tiny: Any,
        *,
        port: int = 0,
        max_batch: int = 4,
        text_lengths: str | None = None,
        space: str | None = None,
        credentials: Any = None,
        hook: Hook | None = None,
    ) -> None:
        self.tiny, self.hook = tiny, hook
        self.config_hook: Hook | None = None
        bundle = tiny.bundle
        parameters = {
            "space": space or bundle.space,
            "text_lengths": str(bundle.text.context_length) if text_lengths is None else text_lengths,
            "precision": "fp32",
        }
        tensors = {
            tower: ([bundle.input_spec(tower)], bundle.output_spec(tower)) for tower in (Tower.IMAGE, Tower.TEXT)
        }
        tensors |= {name: (model.inputs, model.output) for name, model in (bundle.manifest.rerankers or {}).items()}
        self.configs = {
            f"{bundle.name}_{name}": _config(f"{bundle.name}_{name}", inputs, output, max_batch, parameters)
            for name, (inputs, output) in tensors.items()
        }
        self.requests: list[Any] = []
        self.asked: list[str] = []
        self.under_way = self.seen_at_once = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(32)
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self._server = grpc.server(self._pool, options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        self.port: int = (
            self._server.add_insecure_port(address)
            if credentials is None
            else self._server.add_secure_port(address, credentials)
        )
        self.url = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        """Break off whatever is under way and free the port."""
        self._server.stop(None).wait()
        self._pool.shutdown()

    def rows(self) -> list[int]:
        """How many images or texts each inference had."""
        return [request.inputs[0].shape[0] for request in self.requests]

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's names
        """Answer with a version."""
        self.asked.append("ServerMetadata")
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer with a model's configuration."""
        if self.config_hook is not None:
            self.config_hook(self, request, context)
        if request.name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer with two versions' counters."""
        versions = [
            service_pb2.ModelStatistics(name=request.name, version=str(place), inference_count=12, execution_count=2)
            for place in (1, 2)
        ]
        for version in versions:
            version.inference_stats.success.count = 6
        return service_pb2.ModelStatisticsResponse(model_stats=versions)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Encode as the tiny model does, in float64."""
        with self._lock:
            self.requests.append(request)
            self.under_way += 1
            self.seen_at_once = max(self.seen_at_once, self.under_way)
        try:
            answer = None if self.hook is None else self.hook(self, request, context)
            return self.answer(request) if answer is None else answer
        finally:
            with self._lock:
                self.under_way -= 1

    def answer(self, request: Any) -> Any:
        """Compute the right answer."""
        config = self.configs[request.model_name]
        arrays = []
        for given, content in zip(request.inputs, request.raw_input_contents, strict=True):
            assert given.shape[0] <= config.max_batch_size
            array = np.frombuffer(content, {"UINT8": np.uint8, "INT32": np.int32}[given.datatype])
            arrays.append(array.reshape(given.shape))
        if len(arrays) == 2:
            scores = expected_scores(self.tiny.bundle, arrays[0], list(arrays[1]))
            return infer_response(scores[:, None].astype(np.float32), name=PROBABILITY)
        (array,), model = arrays, self.tiny.model
        rows = model.encode_images(array) if request.inputs[0].name == IMAGE else model.encode_texts(list(array))
        return infer_response(rows.astype(np.float32))


class Relay:
    """A port whose connections lead to a fake server and can be cut, as when that server's process is killed."""

    def __init__(self, server: FakeTriton) -> None:
        self.port = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.open(server)
        self.url = f"127.0.0.1:{self.port}"

    def open(self, server: FakeTriton) -> None:
        """Take connections and lead them to this server; on the same port each time."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._sockets.append(listener)
        self._run(self._accept, listener, server.port)

    def cut(self) -> None:
        """Break every connection and take no more."""
        sockets, self._sockets = self._sockets, []
        for end in sockets:
            with contextlib.suppress(OSError):  # the other side was first
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in sockets:
            end.close()
        self._threads.clear()

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, port: int) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            self._sockets += [near, far]
            self._run(_pump, near, far)
            self._run(_pump, far, near)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def infer_response(
    rows: np.ndarray, *, name: str = EMBEDDING, datatype: str = "FP32", shape: Sequence[int] | None = None
) -> Any:
    """Make the answer to an inference."""
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name=name, datatype=datatype, shape=rows.shape if shape is None else shape)
    response.raw_output_contents.append(rows.tobytes())
    return response


def _config(name: str, inputs: Any, output: Any, max_batch: int, parameters: dict[str, str]) -> Any:
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=max_batch)
    for tensors, spec in [*((config.input, spec) for spec in inputs), (config.output, output)]:
        data_type = model_config_pb2.DataType.Value(f"TYPE_{spec.triton_type}")
        tensors.add(name=spec.name, data_type=data_type, dims=spec.shape)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


@pytest.fixture
def start_fake(tiny: Any) -> Iterator[Callable[..., FakeTriton]]:
    """Start fake servers of the tiny bundle: `start_fake(**options)`, with the options of `FakeTriton`."""
    with ExitStack() as stack:

        def start(**options: Any) -> FakeTriton:
            server = FakeTriton(options.pop("tiny", tiny), **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def relay_to() -> Iterator[Callable[[FakeTriton], Relay]]:
    """Put a port that can be cut before a fake server: `relay_to(server)`."""
    with ExitStack() as stack:

        def relay(server: FakeTriton) -> Relay:
            made = Relay(server)
            stack.callback(made.cut)
            return made

        yield relay


@pytest.fixture
def wrong_answers() -> dict[str, Callable[[FakeTriton, Any], Any]]:
    """Answers that are none, by what is wrong with them; each takes the server and the request."""

    def changed(change: Callable[[np.ndarray], np.ndarray], **options: Any) -> Callable[[FakeTriton, Any], Any]:
        def answer(server: FakeTriton, request: Any) -> Any:
            right = server.answer(request)
            rows = np.frombuffer(right.raw_output_contents[0], np.float32).reshape(right.outputs[0].shape)
            return infer_response(change(rows.copy()), **options)

        return answer

    def truncated(server: FakeTriton, request: Any) -> Any:
        response = server.answer(request)
        response.raw_output_contents[0] = response.raw_output_contents[0][:-4]
        return response

    def bodiless(server: FakeTriton, request: Any) -> Any:
        response = server.answer(request)
        del response.raw_output_contents[:]
        return response

    def not_finite(rows: np.ndarray) -> np.ndarray:
        rows[-1, 0] = np.nan
        return rows

    return {
        "a row less": changed(lambda rows: rows[:-1]),
        "a row more": changed(lambda rows: np.repeat(rows, 2, axis=0)),
        "another dimension": changed(lambda rows: rows[:, :-1]),
        "one rank less": changed(lambda rows: rows.reshape(-1)),
        "float64": changed(lambda rows: rows.astype(np.float64), datatype="FP64"),
        "another name": changed(lambda rows: rows, name="logits"),
        "no unit vectors": changed(lambda rows: rows * 2),
        "zeros": changed(np.zeros_like),
        "not a number": changed(not_finite),
        "beyond float32": changed(lambda rows: np.full_like(rows, 3e38)),
        "a type that numpy lacks": changed(lambda rows: rows, datatype="FP1024"),
        "40 dimensions": changed(lambda rows: rows, shape=[1] * 38 + [3, 12]),
        "a shape beyond 64 bits": changed(lambda rows: rows, shape=[0, 2**62, 2**62]),
        "bytes missing": truncated,
        "no bytes": bodiless,
        "nothing": lambda server, request: service_pb2.ModelInferResponse(),
    }
