"""Environments of peers, and what happens to a run that is ended: real processes, without a package index."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.peers import write_catalogue
from twinspire.errors import EngineError
from twinspire_bench.peers.catalogue import Environment, open_catalogue
from twinspire_bench.peers.environments import Environments
from twinspire_bench.peers.processes import PeerProcess
from twinspire_eval.records import Record


def write_wheel(folder: Path) -> Path:
    """Write a wheel of a package `toy_package` with one module."""
    wheel = folder / "toy_package-1.0-py3-none-any.whl"
    info = "toy_package-1.0.dist-info"
    files = {
        "toy_package.py": "NAME = 'toy'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


@pytest.mark.slow
def test_an_environment_is_made_once_and_has_its_requirements_alone(tmp_path: Path) -> None:
    """The package can be imported and ours cannot; a second request, also of another object, makes nothing."""
    said: list[str] = []
    environment = Environment("toy", (str(write_wheel(tmp_path)),))
    folder = tmp_path / "environments"
    python = Environments(folder, time_limit_s=300, say=said.append).python(environment)
    code = "import importlib.util as u, toy_package; print(toy_package.NAME, u.find_spec('twinspire'))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["toy", "None"]
    assert Environments(folder, time_limit_s=300, say=said.append).python(environment) == python
    assert len(said) == 1
    assert len(list(folder.iterdir())) == 1


def test_what_cannot_be_installed_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error of pip is the reason, the second time at once; no half-made environment stays."""
    failing = tmp_path / "failing"
    lines = ["#!/bin/sh", "touch $3/begun", "echo Collecting toy", "echo 'ERROR: No matching toy' >&2"]
    failing.write_text("\n".join([*lines, "echo 'ERROR: last'", "exit 1"]))
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    said: list[str] = []
    environments = Environments(tmp_path / "environments", time_limit_s=60, say=said.append)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^cannot be installed: No matching toy$"):
            environments.python(Environment("toy", ("toy",)))
    assert said == ["installing toy"]
    assert list((tmp_path / "environments").iterdir()) == []


def test_an_installation_ends_at_its_time_limit(tmp_path: Path) -> None:
    """The limit is named, and nothing stays."""
    environments = Environments(tmp_path / "environments", time_limit_s=0.05, say=lambda _: None)
    with pytest.raises(EngineError, match=r"time limit.*--install-limit-s"):
        environments.python(Environment("toy", ("toy",)))
    assert list((tmp_path / "environments").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    """Where the environments cannot be made, the error names the file."""
    (tmp_path / "file").write_text("a")
    environments = Environments(tmp_path / "file" / "environments", time_limit_s=60, say=lambda _: None)
    with pytest.raises(EngineError, match=r"cannot be installed.*file"):
        environments.python(Environment("toy", ("toy",)))


HANGS = {
    "kind": "store",
    "adapter": str(Path(__file__).with_name("toy_store_peer.py")),
    "options": {"behaviour": "hang"},
}


def is_running(child: Path) -> bool:
    """Whether the process whose number is in a file is still there, after a moment for it to end."""
    status = Path("/proc", child.read_text(), "stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.05)
    return True


def test_a_peer_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the peer and its time limit; leaving the block ends the peer and its own child."""
    monkeypatch.setenv("TOY_CHILD", str(tmp_path / "child"))
    peer = open_catalogue(write_catalogue(tmp_path / "hang.toml", {"hangs": HANGS}))["hangs"]
    for name in ("vectors", "queries", "marks", "another"):
        np.save(tmp_path / f"{name}.npy", np.zeros((1, 2), np.float32))
    environments = Environments(tmp_path / "environments", time_limit_s=60, say=lambda _: None)
    task = {"dim": 2, "k": 1, "inputs": str(tmp_path)}
    with (
        PeerProcess(peer, task, threads=1, environments=environments, time_limit_s=2) as process,
        pytest.raises(EngineError, match=r"hangs.*time limit of 2 s"),
    ):
        process.measure({"folder": str(tmp_path / "round")})
    assert not is_running(tmp_path / "child")


def test_a_run_that_is_ended_keeps_what_was_measured(tiny: Any, tmp_path: Path) -> None:
    """SIGTERM while a peer hangs: the table and the record have the rows so far, and no process or file stays."""
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    catalogue = write_catalogue(tmp_path / "hang.toml", {"hangs": HANGS})
    command = [sys.executable, "-m", "twinspire", "bench", "peers", "--data", tmp_path / "images"]
    command += ["-b", tiny.bundle.path, "--catalogue", catalogue, "--peers", "hangs"]
    command += ["--environments", tmp_path / "environments", "--json", tmp_path / "record.json"]
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TOY_CHILD": str(tmp_path / "child")}
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}
    ) as process:
        given_up = time.monotonic() + 60
        while not (tmp_path / "child").exists():
            assert time.monotonic() < given_up
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "twinspire-index" in out
    assert set(Record.load(tmp_path / "record.json").results["store"]) == {"twinspire-index"}
    assert list((tmp_path / "environments").iterdir()) == []
    assert not is_running(tmp_path / "child")
