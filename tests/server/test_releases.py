"""Releases and builds: what is copied, kept and removed, and what a killed process leaves."""

from __future__ import annotations

import gc
import http.server
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from support.commands import run_twinspire
from twinspire.errors import InputError, ServerError
from twinspire_server.repository import build_repository
from twinspire_server.triton.control import ControlSocket, send_command
from twinspire_server.triton.forwarding import Forwarder
from twinspire_server.triton.ports import Ports, bound_socket, reserve_port
from twinspire_server.triton.releases import CONTROL, Releases, model_versions, releases_folder


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def models(tiny: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Build the tiny bundle at a precision into a repository."""

    def build(precision: str) -> Path:
        build_repository([tiny.bundle.path], tmp_path / "models", precision=precision, threads=1)
        return tmp_path / "models"

    return build


def test_a_release_holds_the_newest_versions(models: Callable[[str], Path]) -> None:
    """It has config, warm-up and the newest version of each model with the same content, and no older version."""
    models("fp32")
    repository = models("int8")
    with Releases(repository) as releases:
        release = releases.copy()
        assert releases.taken is None
    expected = {name: content for name, content in _content(repository).items() if "/1/" not in name}
    assert _content(release) == expected
    assert model_versions(release) == {"tiny_image": 2, "tiny_text": 2}


def test_a_build_does_not_change_a_release(models: Callable[[str], Path]) -> None:
    """Whatever is built, and edited in place in small files, the release keeps its content."""
    with Releases(models("fp32")) as releases:
        release = releases.copy()
        before = _content(release)
        config = models("int8") / "tiny_image" / "config.pbtxt"
        with config.open("r+") as file:
            file.write("# edited")
        assert _content(release) == before


def test_large_files_take_no_space_twice(tmp_path: Path) -> None:
    """A file of more than a mebibyte in a release is a hard link to the repository's."""
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    (tmp_path / "models" / "m" / "config.pbtxt").write_text('name: "m"')
    engine = tmp_path / "models" / "m" / "1" / "model.onnx"
    engine.write_bytes(bytes((1 << 20) + 1))
    with Releases(tmp_path / "models") as releases:
        assert (releases.copy() / "m" / "1" / "model.onnx").samefile(engine)


def test_the_record_outlives_the_process(models: Callable[[str], Path]) -> None:
    """What was taken last is known to the next process; a release that was not taken is removed."""
    repository = models("fp32")
    with Releases(repository) as releases:
        first = releases.copy()
        releases.take(first)
        models("int8")
        assert releases.is_outdated()
        other = releases.copy()
        assert other != first
    with Releases(repository) as releases:
        assert releases.taken == first
        assert not other.exists()


def test_the_same_build_is_the_same_release(models: Callable[[str], Path]) -> None:
    """Nothing is copied where nothing has changed."""
    with Releases(models("fp32")) as releases:
        release = releases.copy()
        releases.take(release)
        models("fp32")
        assert releases.copy() == release
        assert not releases.is_outdated()


def test_rollback_and_pruning(models: Callable[[str], Path]) -> None:
    """One earlier release is kept; returning to it drops the later one, and versions that no release has go away."""
    repository = models("fp32")
    with Releases(repository) as releases:
        releases.take(first := releases.copy())
        models("int8")
        releases.take(second := releases.copy())
        assert releases.prune() == []
        assert (releases.taken, releases.previous) == (second, first)
        models("fp32")
        releases.take(third := releases.copy())
        assert releases.prune() == ["tiny_image/1", "tiny_text/1"]
        assert not first.exists()
        assert not (repository / "tiny_image" / "1").exists()
        releases.take(second)
        releases.prune()
        assert (releases.taken, releases.previous, third.exists()) == (second, None, False)
        assert (repository / "tiny_image" / "3").exists()


def test_one_process_serves_a_repository(models: Callable[[str], Path]) -> None:
    """A second one is refused; with a folder of its own it is not."""
    repository = models("fp32")
    with Releases(repository):
        with pytest.raises(ServerError, match="served"):
            Releases(repository)
        Releases(repository, repository.with_name("elsewhere")).close()


@pytest.mark.parametrize("record", ["", "[]", '{"taken": 7, "previous": []}', '{"taken": null, "previous": []}'])
def test_a_record_that_cannot_be_used(models: Callable[[str], Path], record: str) -> None:
    """It is an error that names the file, not a reason to serve something else."""
    repository = models("fp32")
    releases_folder(repository).mkdir()
    (releases_folder(repository) / "serving.json").write_text(record)
    with pytest.raises(InputError) as caught:
        Releases(repository)
    assert caught.value.path == releases_folder(repository) / "serving.json"


_KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
from twinspire.bundle import Bundle
from twinspire_server.repository import build_repository
from twinspire_server.repository.config import read_config
from twinspire_server.triton.releases import Releases

bundle, repository, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
kills = int(sys.argv[4])

def change(precision):
    if mode == "build":
        build_repository([bundle], repository, precision=precision, threads=1)
    else:
        with Releases(repository) as releases:
            releases.take(releases.copy(), keep=1)
            releases.prune()

def precisions(release):
    found = set()
    for model in release.iterdir():
        (version,) = [entry for entry in model.iterdir() if entry.name.isdigit()]
        Bundle.open(version / "bundle")
        precision = read_config(model).parameters["precision"].string_value
        assert precision == ("int8", "fp32")[int(version.name) % 2], (version, precision)
        found.add(precision)
    return found

random.seed(1)
ended = 0
build_repository([bundle], repository, precision="fp32", threads=1)
with Releases(repository) as releases:
    releases.take(releases.copy())
for precision in ("int8", "fp32"):
    build_repository([bundle], repository, precision=precision, threads=1)
    start_s = time.monotonic()
    change(precision)
    limit_s = 1.3 * (time.monotonic() - start_s)
    if mode == "build":
        limit_s *= 2  # the measured one found nothing to install
for number in range(kills):
    precision = ("int8", "fp32")[number % 2]
    if mode == "take":
        build_repository([bundle], repository, precision=precision, threads=1)
    child = os.fork()
    if child == 0:
        try:
            change(precision)
        finally:
            os._exit(0)
    if mode == "build" and number % 4:  # most of the time while the models are installed, which takes a moment
        end_s = time.monotonic() + limit_s
        while not list(repository.parent.glob(".models.*.install")) and time.monotonic() < end_s:
            pass
        time.sleep(random.uniform(0, 0.005))
    else:
        time.sleep(random.uniform(0, limit_s))
    os.kill(child, signal.SIGKILL)
    ended += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with Releases(repository) as releases:
        release = releases.copy() if mode == "build" else releases.taken
        assert len(list(release.iterdir())) == 2
        assert len(precisions(release)) == 1, precisions(release)
        releases.discard(release)
left = sorted(entry.name for entry in repository.parent.iterdir())
print(json.dumps({"ended": ended, "left": left}))
"""


@pytest.mark.parametrize(("mode", "kills"), [("build", 20), ("take", 8)])
def test_kill_at_any_moment_leaves_one_version_whole(tiny: Any, tmp_path: Path, mode: str, kills: int) -> None:
    """After kill -9 of a build, or of taking a release, both models are of the old or both of the new version."""
    arguments = [str(tiny.bundle.path), str(tmp_path / "models"), mode, str(kills)]
    done = subprocess.run([sys.executable, "-c", _KILLS, *arguments], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    print(f"{outcome['ended']} of {kills} had ended before they were killed")
    assert outcome["ended"] < kills
    assert {name for name in outcome["left"] if ".tmp" in name or ".install" in name} == set()


# Ports and commands


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def pages() -> Iterator[list[int]]:
    """Serve HTTP on two ports; each page is the port's number."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) for _ in range(2)]
    for each in servers:
        threading.Thread(target=each.serve_forever, daemon=True).start()
    yield [each.server_address[1] for each in servers]
    for each in servers:
        each.shutdown()
        each.server_close()


def test_connections_are_passed_on_to_the_server_of_the_moment(pages: list[int]) -> None:
    """The same port answers with the first server's page, then with the second one's, then not at all."""
    target = [pages[0]]
    with Forwarder("http", "127.0.0.1", 0, lambda: ("127.0.0.1", target[0])) as forwarder:
        url = f"http://127.0.0.1:{forwarder.port}/"
        for number in pages:
            target[0] = number
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert int(answer.read()) == number
        target[0] = 1
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(url, timeout=10)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)


def test_connections_that_still_pass_data_end_with_the_port() -> None:
    """Ending the forwarder closes every socket, also where the server reads nothing while a caller sends."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as callers:
        with Forwarder("http", "127.0.0.1", 0, server.getsockname) as forwarder:
            caller = callers.enter_context(socket.create_connection(("127.0.0.1", forwarder.port), timeout=1))
            with pytest.raises(TimeoutError):
                caller.sendall(bytes(64 << 20))
        with suppress(ConnectionResetError):
            assert caller.recv(1) == b""
        gc.collect()  # a socket that was left open is a warning, and so an error


def test_a_reserved_port_is_for_sharing_alone() -> None:
    """Before any server listens, a port that is reserved can be shared and not be taken."""
    with reserve_port("grpc", "127.0.0.1", 0, shared=False) as reserved:
        number = reserved.getsockname()[1]
        with pytest.raises(ServerError, match=str(number)):
            reserve_port("grpc", "127.0.0.1", number, shared=False)
        with bound_socket("grpc", "127.0.0.1", number, shared=True):
            pass
        ports = Ports(http=0, grpc=number, metrics=0)
        assert ports.claim("127.0.0.1", reuse_grpc=True).grpc == number


def test_commands_reach_the_process_at_a_long_path(tmp_path: Path) -> None:
    """A command, its progress and its outcome pass through a socket in a folder of more than 107 bytes, of mode 600."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    told: list[str] = []

    def run(command: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
        if command["number"] == 0:
            raise InputError("no number")
        progress("half")
        return {"twice": 2 * command["number"]}

    with ControlSocket(folder, run):
        assert (folder / CONTROL).stat().st_mode & 0o777 == 0o600
        assert send_command(folder, {"number": 4}, progress=told.append, repository=folder) == {"twice": 8}
        with pytest.raises(InputError, match="no number"):
            send_command(folder, {"number": 0}, progress=told.append, repository=folder)
        with pytest.raises(ServerError):
            send_command(folder, {}, progress=told.append, repository=folder)
    assert told == ["half"]
    assert not (folder / CONTROL).exists()


@pytest.mark.parametrize("name", ["models", "nowhere"])
def test_reload_without_a_server(models: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str) -> None:
    """`twinspire reload` of a repository that nobody serves, or that is not there, ends with status 2."""
    folder = models("fp32").with_name(name)
    done = run_twinspire(capsys, "reload", folder)
    assert done.status == 2
    assert "twinspire serve" in done.err
