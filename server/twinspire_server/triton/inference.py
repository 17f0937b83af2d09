"""Inferences on a running server from the process that supervises it: over gRPC as clients do, or HTTP with its key."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire.contract import CANARY_REQUEST_ID, EMBEDDING
from twinspire_server.triton.canary import ERROR_CHARACTERS, error_text
from twinspire_server.triton.http import http_answer, http_page

if TYPE_CHECKING:
    from twinspire_server.triton.server import TritonServer

_HTTP_CONNECTIONS = 16
_REFUSALS_S = 2.0
_ATTEMPT_S = 10.0
"""How long an inference may take before it counts as not answered."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inference:
    """One request: a model, its only input's name and type, and the rows (n, ...), of bytes where it is BYTES."""

    model: str
    name: str
    datatype: str
    rows: NDArray[Any] | Sequence[bytes]
    dims: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        """The input's shape with the batch axis."""
        return [len(self.rows), *self.dims]

    @property
    def content(self) -> bytes:
        """The input as it is sent: strings have their length, 4 bytes, before them."""
        if isinstance(self.rows, np.ndarray):
            return self.rows.tobytes()
        return b"".join(len(row).to_bytes(4, "little") + row for row in self.rows)


@dataclass(frozen=True)
class Refusal:
    """What a model answered instead of vectors."""

    message: str


Answer: TypeAlias = "NDArray[np.float32] | Refusal | None"
"""The vectors (n, ...), a refusal; None where nothing came: the server is overloaded, or it has gone."""


class Sender(Protocol):
    """A connection that inferences are sent on."""

    def infer(self, inferences: Sequence[Inference]) -> list[Answer]:
        """Send all at once, so that the server can join them to batches, and wait for the answers."""

    def close(self) -> None:
        """Close it: what is in flight is not answered."""


def open_sender(server: TritonServer) -> Sender:
    """Return the sender for a server: gRPC, as clients use it.

    HTTP, which needs the server's key, where gRPC is encrypted: only clients have the certificates that it may ask for.
    """
    if server.tls is not None:
        return _HttpSender(server.http_url, server.admin_headers)
    return _GrpcSender(server.grpc_url, server.name)


class _GrpcSender:
    """gRPC to the server called `name`; others may share its port, and the connections to it."""

    def __init__(self, address: str, name: str) -> None:
        import grpc  # type: ignore[import-untyped, unused-ignore]

        self._address, self._name = address, name
        self._errors = (grpc.RpcError, grpc.FutureCancelledError)
        self._no_answer = {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
        }
        self._is_closed = False
        self._connect()

    def _connect(self) -> None:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        # A channel of its own: gRPC would share the connection of other channels to this address.
        options = [*unlimited, ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(self._address, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def _is_connected(self) -> bool:
        """Whether the connection is to this server. One to another is closed: the next may be to this one."""
        from tritonclient.grpc import service_pb2

        try:
            if self._stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=_ATTEMPT_S).name == self._name:
                return True
        except (ValueError, *self._errors):
            pass
        if not self._is_closed:
            self._channel.close()
            self._connect()
        return False

    def infer(self, inferences: Sequence[Inference]) -> list[Answer]:
        unanswered: list[Answer] = [None] * len(inferences)
        if not self._is_connected():
            return unanswered
        try:
            futures = [self._stub.ModelInfer.future(_message(each), timeout=_ATTEMPT_S) for each in inferences]
        except ValueError:  # the channel was closed
            return unanswered
        answers = [self._answer(future) for future in futures]
        return answers if self._is_connected() else unanswered

    def _answer(self, future: Any) -> Answer:  # noqa: ANN401 - grpc.Future has no types
        try:
            response = future.result()
        except self._errors as error:
            code = error.code() if hasattr(error, "code") else None
            if code is None or code in self._no_answer:
                return None
            return Refusal(str(error.details())[:ERROR_CHARACTERS])
        outputs = {output.name: list(output.shape) for output in response.outputs}
        return _vectors(response.raw_output_contents, outputs.get(EMBEDDING))

    def close(self) -> None:
        self._is_closed = True
        self._channel.close()


class _HttpSender:
    """HTTP with tensors as bytes.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._url, self._headers = url, headers
        self._threads = ThreadPoolExecutor(_HTTP_CONNECTIONS, thread_name_prefix="probes")

    def infer(self, inferences: Sequence[Inference]) -> list[Answer]:
        try:
            return list(self._threads.map(self._answer, inferences))
        except RuntimeError:  # closed
            return [None] * len(inferences)

    def _answer(self, inference: Inference) -> Answer:
        content = inference.content
        tensor = {"name": inference.name, "datatype": inference.datatype, "shape": inference.shape}
        header = json.dumps(
            {
                "id": CANARY_REQUEST_ID,
                "inputs": [{**tensor, "parameters": {"binary_data_size": len(content)}}],
                "outputs": [{"name": EMBEDDING, "parameters": {"binary_data": True}}],
                "parameters": {"timeout": int(_ATTEMPT_S * 1e6)},
            }
        ).encode()
        sent = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
        answer = http_answer(
            f"{self._url}/v2/models/{inference.model}/infer",
            "POST",
            body=header + content,
            headers={**self._headers, **sent},
            timeout_s=_ATTEMPT_S,
        )
        if answer is None or answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return None
        body = answer.content
        if not answer.ok:
            return Refusal(error_text(body))
        size = int(answer.headers.get("Inference-Header-Content-Length", len(body)))
        outputs = {output["name"]: output["shape"] for output in json.loads(body[:size])["outputs"]}
        return _vectors([body[size:]], outputs.get(EMBEDDING))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _message(inference: Inference) -> Any:  # noqa: ANN401 - the generated messages have no types
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=inference.model, id=CANARY_REQUEST_ID)
    request.inputs.add(name=inference.name, datatype=inference.datatype, shape=inference.shape)
    request.outputs.add(name=EMBEDDING)
    request.raw_input_contents.append(inference.content)
    request.parameters["timeout"].int64_param = int(_ATTEMPT_S * 1e6)
    return request


def _vectors(contents: Sequence[bytes], shape: list[int] | None) -> Answer:
    """Return the only output, or a refusal where it is not float32 of the shape that the response names."""
    if shape is None or len(contents) != 1 or len(contents[0]) != 4 * math.prod(shape):
        sizes = [len(content) for content in contents]
        return Refusal(f"answered {sizes} bytes for {EMBEDDING} of shape {shape}: expected float32")
    return np.frombuffer(contents[0], np.float32).reshape(shape)


def http_get(server: TritonServer, path: str) -> Any:  # noqa: ANN401 - a JSON document
    """Return a document of Triton's HTTP protocol, None where the server does not answer with one."""
    page = http_page(f"{server.http_url}{path}", headers=server.admin_headers, timeout_s=_ATTEMPT_S)
    with suppress(ValueError):
        return None if page is None else json.loads(page)
    return None


def infer_until_answered(
    sender: Sender,
    inferences: Sequence[Inference],
    *,
    timeout_s: float,
    wait: Callable[[float], object] = time.sleep,
) -> list[Answer]:
    """Send inferences and send those without an answer again, ever more rarely, until `timeout_s` has passed.

    Those that were refused are sent again for 2 s: a server that has lost a model's process refuses for a moment before
    it ends. `wait` waits for some seconds; it returns true to end early.
    """
    answers: list[Answer] = [None] * len(inferences)
    missing = list(range(len(inferences)))
    begin_s, wait_s = time.monotonic(), 0.05
    while missing:
        for position, answer in zip(missing, sender.infer([inferences[at] for at in missing]), strict=True):
            answers[position] = answer
        passed_s = time.monotonic() - begin_s
        if passed_s > min(timeout_s, _REFUSALS_S):
            missing = [position for position in missing if answers[position] is None]
        missing = [position for position in missing if not isinstance(answers[position], np.ndarray)]
        if not missing or passed_s + wait_s > timeout_s or wait(wait_s):
            break
        wait_s = min(2 * wait_s, 1.0)
    return answers
