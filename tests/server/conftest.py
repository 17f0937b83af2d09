"""A real Triton for the tests, small models for it, and what a server must not leave behind."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from twinspire.errors import MissingDependencyError
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer, find_triton

_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 8
input [{{name: "x" data_type: TYPE_INT32 dims: [-1]}}]
output [{{name: "y" data_type: TYPE_INT32 dims: [-1]}}]
instance_group [{{kind: KIND_CPU count: 1}}]
dynamic_batching {{}}
"""
_MODEL = """import sys, time
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        {execute}
        given = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", each)]) for each in given]
"""


@pytest.fixture(scope="session")
def needs_triton() -> None:
    """Skip where no Triton is installed; a damaged or incomplete one fails the tests."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def triton_server(needs_triton: None, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Serve the tiny bundle, as `twinspire build` writes it, for all tests of this folder."""
    folder = tmp_path_factory.mktemp("triton")
    build_repository([tiny.bundle.path], folder / "repository", threads=1, raw_inputs=True, description=True)
    with TritonServer(folder / "repository", log_file=folder / "triton.log") as server:
        yield server


@dataclass(frozen=True)
class Place:
    """A folder where a test runs servers; everything of theirs can be told by it."""

    folder: Path

    @property
    def repository(self) -> Path:
        """The model repository."""
        return self.folder / "repository"

    @property
    def temporary(self) -> Path:
        """What is the temporary folder of everything that the test starts."""
        return self.folder / "tmp"

    def add_echo(self, name: str = "echo", *, initialize: str = "pass", execute: str = "pass") -> Path:
        """Write a Python model that returns its input, with a line of code where it starts and where it runs."""
        model = self.repository / name
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(_CONFIG.format(name=name), encoding="utf-8")
        code = _MODEL.format(initialize=initialize, execute=execute)
        (model / "1" / "model.py").write_text(code, encoding="utf-8")
        return model

    def processes(self) -> dict[int, list[str]]:
        """Return the processes, with their arguments, that have to do with this place, but for this one."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if str(self.folder) in " ".join(arguments) and int(folder.name) != os.getpid():
                    found[int(folder.name)] = arguments
        return found

    def process(self, program: str) -> int:
        """Return the one process of a program or script: `tritonserver`, `reaper.py`, ..."""
        (pid,) = [
            pid for pid, given in self.processes().items() if program in [Path(argument).name for argument in given[:4]]
        ]
        return pid

    def shared_memory(self) -> list[Path]:
        """Return the shared memory of this place's running models."""
        (prefix,) = [
            argument.rpartition("=")[2]
            for argument in self.processes()[self.process("tritonserver")]
            if "shm-region-prefix-name=" in argument
        ]
        return list(Path("/dev/shm").glob(f"{prefix}*"))

    def assert_nothing_left(self, regions: list[Path], *, logs: int = 0, within_s: float = 0.0) -> None:
        """Fail unless every process is gone, and every temporary file but `logs` logs."""
        deadline_s = time.monotonic() + within_s
        while self.processes() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert self.processes() == {}
        left = sorted(self.temporary.glob("twinspire*"))  # onnxruntime leaves a file of its own
        assert [file.suffix for file in left] == [".log"] * logs
        assert [region for region in regions if region.exists()] == []


@pytest.fixture(scope="session")
def place_at() -> Callable[[Path], Place]:
    """Name a place in a folder, for a server that several tests share."""
    return Place


@pytest.fixture
def place(needs_triton: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Make a place of its own for the servers of a test; whatever one leaves running is killed at the end."""
    made = Place(tmp_path)
    made.temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made.temporary))
    monkeypatch.setenv("TMPDIR", str(made.temporary))
    yield made
    for pid, arguments in made.processes().items():
        if "reaper.py" not in " ".join(arguments[:5]):  # reapers clear away and end by themselves
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 5
    while made.processes() and time.monotonic() < deadline_s:
        time.sleep(0.05)


@pytest.fixture
def echo(place: Place) -> Callable[..., TritonServer]:
    """Describe a server of one model that returns its input: `echo(**options of TritonServer)`."""
    place.add_echo()
    return lambda **options: TritonServer(place.repository, **options)
