"""Container repositories on Triton's onnxruntime backend, which `make test-container` builds for the wheel's server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from twinspire import sample_bundle
from twinspire.bundle import Bundle, Precision
from twinspire_server.repository import RepositoryRuntime, build_repository
from twinspire_server.triton import TritonServer

DEADLINE_S = 60
_TYPES = {np.dtype(np.uint8): "UINT8", np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64"}
_TYPES[np.dtype(np.object_)] = "BYTES"


@dataclass(frozen=True)
class RawServer:
    """A server of the sample and a client that sends whatever it is told, without looking at it."""

    server: TritonServer
    channel: Any

    def send(self, model: str, name: str, array: np.ndarray) -> Future[np.ndarray]:
        """Send one request; its answer is the embeddings or an InferenceServerException."""
        given = grpc.InferInput(name, array.shape, _TYPES[array.dtype])
        given.set_data_from_numpy(array)
        answer: Future[np.ndarray] = Future()

        def done(result: Any, error: Exception | None) -> None:
            if error is None:
                answer.set_result(result.as_numpy("embedding"))
            else:
                answer.set_exception(error)

        self.channel.async_infer(model, [given], done, client_timeout=DEADLINE_S)
        return answer

    def ask(self, model: str, name: str, array: np.ndarray) -> np.ndarray | tuple[str, str]:
        """Send one request and wait; return the embeddings, or the error's status and message."""
        answer = self.send(model, name, array)
        error = answer.exception(DEADLINE_S)
        if error is None:
            return answer.result()
        assert isinstance(error, grpc.InferenceServerException)
        return error.status(), error.message()


@pytest.fixture(scope="session")
def backends() -> Path:
    """The folder with the built backend."""
    return Path(os.environ["TWINSPIRE_TRITON_BACKENDS"])


@pytest.fixture(scope="session")
def sample() -> Bundle:
    """The sample bundle."""
    return Bundle.open(sample_bundle())


@pytest.fixture(scope="session")
def int8(backends: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawServer]:
    """Serve the sample in int8, as `build --runtime container` writes it, for all tests."""
    yield from _served(tmp_path_factory.mktemp("int8"), RepositoryRuntime.CONTAINER, Precision.INT8, backends)


@pytest.fixture(scope="session")
def fp32(backends: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawServer]:
    """The same in fp32."""
    yield from _served(tmp_path_factory.mktemp("fp32"), RepositoryRuntime.CONTAINER, Precision.FP32, backends)


@pytest.fixture(scope="session")
def wheel(backends: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RawServer]:
    """Serve the sample in int8 with the wheel's own runtime."""
    yield from _served(tmp_path_factory.mktemp("wheel"), RepositoryRuntime.WHEEL, Precision.INT8, backends)


def _served(folder: Path, runtime: RepositoryRuntime, precision: Precision, backends: Path) -> Iterator[RawServer]:
    repository = folder / "models"
    for model in build_repository(
        [sample_bundle()],
        repository,
        precision=precision,
        runtime=runtime,
        threads=2,
        streams=2,
        raw_inputs=True,
        description=True,
    ):
        config = model.folder / "config.pbtxt"  # on Intel's processors the wheel would take OpenVINO
        config.write_text(config.read_text().replace('string_value: "auto"', 'string_value: "cpu"'))
    server = TritonServer(repository, backend_directory=backends, log_file=folder / "triton.log")
    with server, grpc.InferenceServerClient(server.grpc_url) as channel:
        yield RawServer(server, channel)
