"""Backends that a repository needs: told before the start where they are missing, added from a further folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from twinspire.errors import InputError, ServerError
from twinspire_server.repository import RepositoryRuntime, build_repository
from twinspire_server.triton import TritonInstall, TritonServer, find_triton
from twinspire_server.triton.environment import available_backends, check_backends


@pytest.fixture
def mirror(place: Any) -> Path:
    """Make a folder with a backend named `mirror`, in Python, and a model that needs it."""
    model = place.add_echo()
    config = model / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace('"python"', '"mirror"'), encoding="utf-8")
    folder: Path = place.folder / "further" / "mirror"
    folder.mkdir(parents=True)
    (model / "1" / "model.py").rename(folder / "model.py")
    return folder.parent


def test_a_container_repository_is_refused_before_the_start(place: Any, tiny: Any) -> None:
    """The wheel's server has no onnxruntime backend: models, backend, what there is and the way out are told."""
    build_repository([tiny.bundle.path], place.repository, precision="fp32", runtime=RepositoryRuntime.CONTAINER)
    server = TritonServer(place.repository)
    with pytest.raises(ServerError, match="--backend-directory") as caught:
        server.start()
    assert all(name in str(caught.value) for name in ("tiny_engine_text", "tiny_image", "onnxruntime", "python"))
    place.assert_nothing_left([])


def test_a_further_backend_is_used_beside_tritons_own(place: Any, mirror: Path) -> None:
    """A model of the added backend answers, and so does one of the Python backend; nothing is left of the links."""
    place.add_echo("plain")
    numbers = np.arange(3, dtype=np.int32)[None]
    given = grpc.InferInput("x", numbers.shape, "INT32")
    given.set_data_from_numpy(numbers)
    server = TritonServer(place.repository, backend_directory=mirror)
    with server, grpc.InferenceServerClient(server.grpc_url) as client:
        for name in ("echo", "plain"):
            assert client.infer(name, [given]).as_numpy("y").tolist() == numbers.tolist()
    place.assert_nothing_left([])


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_backends_is_refused(place: Any, mirror: Path, folder: str) -> None:
    """A folder that is not there, or has no backend in it, is an InputError that names it."""
    (place.folder / "empty" / "libraries").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"/{folder}\b"):
        TritonServer(place.repository, backend_directory=place.folder / folder).start()
    place.assert_nothing_left([])


def test_what_is_not_known_is_left_to_triton(place: Any, tmp_path: Path) -> None:
    """Configs without a backend or that do not parse are not judged; none is where Triton's backends are unknown."""
    for name, config in (("ensemble", 'platform: "ensemble"'), ("damaged", "name: ["), ("other", 'backend: "other"')):
        (place.repository / name).mkdir(parents=True)
        (place.repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    install = find_triton()
    backends = available_backends(install, None)
    assert "python" in backends
    check_backends(place.repository, ["ensemble", "damaged", "missing"], install, backends)
    with pytest.raises(ServerError, match="other"):
        check_backends(place.repository, ["ensemble", "other"], install, backends)
    unknown = TritonInstall(executable=install.executable, origin="somewhere", backends=tmp_path / "nowhere")
    check_backends(place.repository, ["other"], unknown, available_backends(unknown, None))
