"""`twinspire serve`, run as a user runs it: addresses, signals, errors, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TWINSPIRE = Path(sys.executable).with_name("twinspire")
_FREE = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--status-port", "0"]
_Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def serve(place: Any) -> Iterator[_Serve]:
    """Start `twinspire serve REPOSITORY` with further arguments."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, repository: Path = place.repository) -> subprocess.Popen[str]:
        command = [TWINSPIRE, "serve", repository, *arguments]
        started.append(
            subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=place.folder)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _document(process: subprocess.Popen[str]) -> Any:
    """Read the JSON that `serve --json` prints when it is ready."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            break
    return json.loads("".join(lines))


def _until(true: Callable[[], bool], within_s: float = 15) -> None:
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_ends_cleanly(place: Any, serve: _Serve, number: signal.Signals) -> None:
    """Once ready it prints where it is; Ctrl-C and SIGTERM end it with status 0, and nothing is left."""
    place.add_echo()
    process = serve(*_FREE, "--json")
    told = _document(process)
    assert told["models"] == ["echo"]
    assert told["triton_version"]
    assert Path(told["log"]).is_file()
    with urllib.request.urlopen(f"{told['http']}/v2/health/ready", timeout=10) as answer:
        assert answer.status == 200
    regions = place.shared_memory()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0, stderr
    assert stderr.endswith("stopped\n")
    place.assert_nothing_left(regions)


def test_what_people_read(place: Any, serve: _Serve) -> None:
    """Without `--json`: the version, the models, the addresses and what strangers may do at an open one."""
    place.add_echo()
    process = serve(*_FREE, "--log-file", "own.log", "--host", "0.0.0.0", "--insecure")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(6)]
    assert "echo" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["gRPC", "HTTP", "metrics", "status", "log"]
    assert lines[5].split()[1] == str(place.folder / "own.log")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (place.folder / "own.log").is_file()
    assert "warning" in stderr
    assert "SECURITY.md" in stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_start(place: Any, serve: _Serve, number: signal.Signals, status: int) -> None:
    """While models load a signal ends it within seconds, without traceback, and nothing is left."""
    place.add_echo(initialize="time.sleep(60)")
    process = serve(*_FREE)
    _until(lambda: any("triton_python_backend_stub" in " ".join(given) for given in place.processes().values()))
    regions = place.shared_memory()
    start_s = time.monotonic()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert time.monotonic() - start_s < 5
    assert process.returncode == status, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    place.assert_nothing_left(regions)


def test_a_second_signal_does_not_wait(place: Any, serve: _Serve) -> None:
    """A second Ctrl-C kills a server that takes long to end."""
    place.add_echo()
    process = serve(*_FREE, "--json")
    _document(process)
    regions = place.shared_memory()
    process.send_signal(signal.SIGINT)
    time.sleep(0.4)
    start_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - start_s < 1.5  # Triton takes 3 s to end by itself
    assert "Traceback" not in stderr
    place.assert_nothing_left(regions)


def test_killed_it_takes_triton_along(place: Any, serve: _Serve) -> None:
    """After kill -9 of `serve` the server ends by itself; the log alone is left."""
    place.add_echo()
    process = serve(*_FREE, "--json")
    _document(process)
    regions = place.shared_memory()
    process.kill()
    process.wait()
    place.assert_nothing_left(regions, logs=1, within_s=10)


def test_triton_that_dies_is_started_again(place: Any, serve: _Serve) -> None:
    """When Triton is killed `serve` says so on standard error and serves again at the same address."""
    place.add_echo()
    process = serve(*_FREE, "--json")
    told = _document(process)
    os.kill(told["pid"], signal.SIGKILL)
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if "again" in line:
            break
    assert told["grpc"] in lines[-1]
    assert "137" in lines[0]
    with urllib.request.urlopen(f"{told['http']}/v2/health/ready", timeout=10) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_triton_that_dies_is_told(place: Any, serve: _Serve) -> None:
    """Without restarts `serve` ends with status 2 when Triton is killed and says so, with the log's path."""
    place.add_echo()
    process = serve(*_FREE, "--json", "--max-restarts", "0")
    told = _document(process)
    os.kill(told["pid"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "137" in stderr
    assert "SIGKILL" in stderr
    assert told["log"] in stderr
    assert "Traceback" not in stderr
    place.assert_nothing_left([], logs=1)


def test_two_on_one_port(place: Any, serve: _Serve, triton_server: Any) -> None:
    """A second server on the port of a first one ends with status 2 and names port and option."""
    place.add_echo()
    port = str(triton_server.ports.grpc)
    process = serve("--http-port", "0", "--grpc-port", port, "--metrics-port", "0", "--status-port", "0")
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    assert port in stderr
    assert "--grpc-port" in stderr
    assert triton_server.running
    place.assert_nothing_left([])


def test_a_failing_model_is_told(place: Any, serve: _Serve) -> None:
    """A model that raises: status 2, its message, the log, no traceback."""
    place.add_echo(initialize="raise ValueError('no such engine here')")
    process = serve(*_FREE)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "'echo'" in stderr
    assert "no such engine here" in stderr
    (log,) = place.temporary.glob("*.log")
    assert str(log) in stderr
    assert "Traceback" not in stderr
    place.assert_nothing_left([], logs=1)


def test_a_folder_that_is_no_repository(place: Any, serve: _Serve) -> None:
    """A folder that is not there: status 2, and what makes one."""
    process = serve(repository=place.folder / "nowhere")
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "nowhere" in stderr
    assert "twinspire build" in stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--tls-certificate", "c.pem"], "--tls-key"),
        (["--tls-ca", "c.pem"], "--tls-certificate"),
        (["--tls-certificate", "c.pem", "--tls-key", "k.pem"], "c.pem"),
        (["--triton-flag", "http-port=1"], "--http-port"),
    ],
)
def test_unsafe_and_incomplete_options_are_refused(place: Any, serve: _Serve, arguments: list[str], word: str) -> None:
    """An open address without TLS, half of TLS and twinspire's own flags: status 2, and what to give."""
    place.add_echo()
    process = serve(*_FREE, *arguments)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    assert word in stderr
    assert "Traceback" not in stderr
