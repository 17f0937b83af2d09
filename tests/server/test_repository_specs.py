"""A model of another sort is one function that returns its spec: it is built, served and checked like the towers."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from twinspire.contract import TensorSpec
from twinspire.errors import InputError
from twinspire_server.repository import ModelSpec, RepositoryRuntime, build, build_repository
from twinspire_server.repository.config import ready_check
from twinspire_server.repository.spec import CopiedFile, WarmUp
from twinspire_server.repository.towers import ServedBundle
from twinspire_server.triton import TritonServer

_MODEL = """import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        files = [pb_utils.get_input_tensor_by_name(request, "file").as_numpy() for request in requests]
        sizes = [np.array([[len(content)] for content in rows[:, 0]], np.int32) for rows in files]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("size", rows)]) for rows in sizes]
"""
_FILE, _SIZE = TensorSpec("file", "object", (1,)), TensorSpec("size", "int32", (1,))


def _spec(source: Path, served: ServedBundle, **changes: Any) -> ModelSpec:
    """Describe a model that takes files of any content and returns their sizes."""
    content = b"warm"
    options: dict[str, Any] = {
        "name": f"{served.bundle.name}_raw",
        "bundle": served.bundle.name,
        "space": served.bundle.space,
        "backend": "python",
        "max_batch": 4,
        "inputs": [_FILE],
        "outputs": [_SIZE],
        "files": [CopiedFile("model.py", source)],
        "parameters": {"unit": "bytes"},
        # Triton's form of a string: its length in four bytes before it.
        "warm_ups": [WarmUp("one", 1, (_FILE,), {"file": len(content).to_bytes(4, "little") + content})],
    }
    return ModelSpec(**{**options, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the model's code."""
    file = tmp_path_factory.mktemp("source") / "sizes.py"
    file.write_text(_MODEL)
    return file


def _register(patch: pytest.MonkeyPatch, make: Callable[[ServedBundle], list[ModelSpec]]) -> None:
    wheel = RepositoryRuntime.WHEEL
    patch.setitem(build.MODEL_SPECS, wheel, [*build.MODEL_SPECS[wheel], make])


@dataclass(frozen=True)
class Served:
    """The tiny bundle with the further model, on a real server."""

    server: TritonServer
    channel: Any


@pytest.fixture(scope="module")
def served(needs_triton: None, tiny: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Build the tiny bundle with the further model and serve both."""
    folder = tmp_path_factory.mktemp("specs")
    with pytest.MonkeyPatch.context() as patch:
        _register(patch, lambda served: [_spec(source, served)])
        models = build_repository([tiny.bundle.path], folder / "models", precision="fp32", threads=1)
    assert [model.name for model in models] == ["tiny_image", "tiny_text", "tiny_raw"]
    server = TritonServer(folder / "models", log_file=folder / "triton.log")
    with server, grpc.InferenceServerClient(server.grpc_url) as channel:
        yield Served(server, channel)


def test_a_registered_model_is_served_beside_the_towers(served: Served, tiny: Any) -> None:
    """Files sent as they are get the model's answer, and the image tower encodes as before."""
    rows = np.array([[b"\xff\xd8" * 500], [b""], [b"x"]], object)
    given = grpc.InferInput("file", rows.shape, "BYTES")
    given.set_data_from_numpy(rows)
    assert served.channel.infer("tiny_raw", [given]).as_numpy("size").tolist() == [[1000], [0], [1]]
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    given = grpc.InferInput("image", images.shape, "UINT8")
    given.set_data_from_numpy(images)
    found = served.channel.infer("tiny_image", [given]).as_numpy("embedding")
    assert np.abs(found - tiny.model.encode_images(images)).max() <= 1e-6


def test_its_parameters_are_in_its_configuration(served: Served, tiny: Any) -> None:
    """A client reads the model's space and its own parameters from the running server."""
    config = served.channel.get_model_config("tiny_raw").config
    found = {name: value.string_value for name, value in config.parameters.items()}
    assert found == {"space": tiny.bundle.space, "unit": "bytes"}


@pytest.mark.parametrize("name", ["tiny_raw", "tiny_image"])
def test_its_ready_check_is_answered(served: Served, name: str) -> None:
    """The request that the canary repeats is answered by the further model as by a tower."""
    check = ready_check(served.server.repository / name)
    assert check is not None
    url = f"{served.server.http_url}/v2/models/{name}/infer"
    headers = {**served.server.admin_headers, **check.headers}
    with urllib.request.urlopen(urllib.request.Request(url, check.body, headers), timeout=10) as answer:
        assert answer.status == 200


def test_building_again_replaces_a_version_without_engine(
    tiny: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without an engine keeps its version; its files and warm-up are replaced."""
    changed = tmp_path / "changed.py"
    changed.write_text(_MODEL + "# changed\n")
    for code in (source, changed):
        with monkeypatch.context() as patch:
            _register(patch, lambda served, code=code: [_spec(code, served)])  # type: ignore[misc]
            *_, model = build_repository([tiny.bundle.path], tmp_path / "models", precision="fp32")
        assert model.version == 1
        assert (model.folder / "1" / "model.py").read_text() == code.read_text()
        assert (model.folder / "warmup" / "one").read_bytes() == b"\x04\0\0\0warm"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"name": "tiny_image"}, "tiny_image"),
        ({"name": "../tiny"}, "../tiny"),
        ({"name": ""}, "folder"),
        ({"warm_ups": [WarmUp("one", 1, (_SIZE,))]}, "file"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(
    tiny: Any,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    word: str,
) -> None:
    """A name that is taken or no folder's, and a warm-up of other inputs, are InputErrors; nothing is written."""
    _register(monkeypatch, lambda served: [_spec(source, served, **changes)])
    with pytest.raises(InputError, match=word):
        build_repository([tiny.bundle.path], tmp_path / "models", precision="fp32")
    assert not (tmp_path / "models").exists()
