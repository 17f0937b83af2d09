"""`TritonServer` with the real Triton: what it offers, how it fails, and that nothing is left of it."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from twinspire.errors import InputError, ServerError, ServerUnavailableError
from twinspire_server.repository import build_repository
from twinspire_server.triton import Ports, TritonServer, find_triton, flags, logs, process
from twinspire_server.triton import environment as launch_environment

_Echo = Callable[..., TritonServer]
_LISTENS = "0A"  # include/net/tcp_states.h
_CODE_OF_KILLED = 128 + signal.SIGKILL


def _listening() -> dict[int, str]:
    """Return the address of each port that is listened on, in the kernel's notation."""
    listening = {}
    for line in [line for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]:
        address, state = line.split()[1], line.split()[3]
        if state == _LISTENS:
            host, port = address.split(":")
            listening[int(port, 16)] = host
    return listening


def test_a_served_bundle_is_ready_on_all_three_services(triton_server: TritonServer) -> None:
    """HTTP, gRPC and metrics answer at the addresses that the server tells; both towers are there."""
    assert triton_server.running
    raw = ("tiny_decode", "tiny_image_bytes", "tiny_text_raw", "tiny_tokenize")
    assert triton_server.models == tuple(sorted(("tiny_image", "tiny_text", "twinspire", *raw)))
    assert int(triton_server.version.split(".")[0]) >= 2
    with urllib.request.urlopen(f"{triton_server.http_url}/v2/models/tiny_text/ready", timeout=10) as answer:
        assert answer.status == http.client.OK
    with urllib.request.urlopen(triton_server.metrics_url, timeout=10) as answer:
        assert b"nv_inference_count" in answer.read()
    with closing(grpc.InferenceServerClient(triton_server.grpc_url)) as channel:
        assert channel.get_server_metadata().version == triton_server.version
        assert all(channel.is_model_ready(model) for model in triton_server.models)


def test_it_listens_on_this_machine_alone(triton_server: TritonServer) -> None:
    """Without `host` each of the three sockets is bound to 127.0.0.1."""
    listening, ports = _listening(), triton_server.ports
    assert triton_server.warnings() == []
    for port in (ports.http, ports.grpc, ports.metrics):
        assert listening[port] in (
            "0100007F",
            "0000000000000000FFFF00000100007F",
        )  # the latter is gRPC's, mapped to IPv6


@pytest.fixture(scope="module")
def configured(
    needs_triton: None, place_at: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """Serve a model that prints its environment's names: on every address, with a further flag and variable."""
    place = place_at(tmp_path_factory.mktemp("configured"))
    place.add_echo(initialize="import os; print('SEEN', sorted(os.environ), flush=True)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "for nobody")
        patch.setenv("TWINSPIRE_TEST_WANTED", "for the model")
        patch.setenv("OMP_NUM_THREADS", "1")
        server = TritonServer(
            place.repository,
            host="0.0.0.0",
            insecure=True,
            triton_flags=["metrics-config=summary_latencies=true"],
            pass_env=["TWINSPIRE_TEST_WANTED"],
            log_file=place.folder / "triton.log",
        )
        with server:
            yield server


def test_an_open_address_is_for_grpc_alone(configured: TritonServer) -> None:
    """With `host` 0.0.0.0 gRPC listens on every address, HTTP and metrics on this machine's own alone."""
    listening, ports = _listening(), configured.ports
    assert len(configured.warnings()) == 1
    assert listening[ports.grpc] in ("00000000", "00000000000000000000000000000000")
    assert (listening[ports.http], listening[ports.metrics]) == ("0100007F", "0100007F")
    with closing(grpc.InferenceServerClient(configured.grpc_url)) as channel:
        assert channel.is_server_ready()


@pytest.mark.parametrize(
    ("name", "is_passed"),
    [("AWS_SECRET_ACCESS_KEY", False), ("TWINSPIRE_TEST_WANTED", True), ("OMP_NUM_THREADS", True), ("PATH", True)],
)
def test_credentials_do_not_reach_the_server(configured: TritonServer, name: str, is_passed: bool) -> None:
    """Of the environment the server and its models get the list of environment.py, and what `pass_env` names."""
    server_has = Path(f"/proc/{configured.pid}/environ").read_bytes().split(b"\0")
    (model_has,) = [line for line in configured.log_file.read_text().splitlines() if line.startswith("SEEN")]
    assert any(variable.startswith(f"{name}=".encode()) for variable in server_has) is is_passed
    assert (f"'{name}'" in model_has) is is_passed


def test_a_flag_is_passed_on(configured: TritonServer) -> None:
    """`triton_flags` reach Triton: with summary_latencies the metrics have quantiles."""
    with urllib.request.urlopen(configured.metrics_url, timeout=10) as answer:
        assert b'quantile="0.99"' in answer.read()


def test_nothing_is_left_of_a_stopped_server(place: Any, echo: _Echo) -> None:
    """After `with`, its processes, temporary folder, log and shared memory are gone; the repository is as it was."""
    before = sorted(place.repository.rglob("*"))
    with echo() as server:
        assert server.log_file.is_file()
        regions = place.shared_memory()
        assert regions
        assert {place.process("tritonserver"), server.pid} == {server.pid}
    place.assert_nothing_left(regions)
    assert not server.running
    assert sorted(place.repository.rglob("*")) == before
    server.stop()  # and again


def test_models_import_what_this_process_imports(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python model gets the twinspire that started the server, and what only this process's `sys.path` has."""
    extra = place.folder / "extra"
    extra.mkdir()
    (extra / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(extra)
    line = "import twinspire, only_here; print('SEEN', sys.version_info[:2], twinspire.__file__, only_here.__file__)"
    place.add_echo(initialize=f"{line}; sys.stdout.flush()")
    with TritonServer(place.repository) as server:
        log = server.log_file.read_text()
    import twinspire

    assert f"SEEN {sys.version_info[:2]} {twinspire.__file__} {extra / 'only_here.py'}" in log


def test_a_server_outlives_the_thread_that_started_it(echo: _Echo) -> None:
    """Started in a thread that ends, the server goes on."""
    server = echo()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        time.sleep(0.5)
        assert server.running
    finally:
        server.stop()


@pytest.mark.parametrize("flag", ["no-such-flag=1", "log-verbose=much"])
def test_a_flag_that_triton_refuses_is_told(place: Any, echo: _Echo, flag: str) -> None:
    """A flag or value that Triton does not know is an error that names it, without Triton's help text."""
    with pytest.raises(ServerError, match=flag.partition("=")[0]) as caught:
        echo(triton_flags=[flag]).start()
    assert len(str(caught.value).splitlines()) < 5


def test_an_abort_is_told_by_its_exception(place: Any, echo: _Echo) -> None:
    """Of a model's process that aborts the error shows the exception's message and no stack frame."""
    abort = "import ctypes; ctypes.CDLL('libstdc++.so.6')._ZSt20__throw_length_errorPKc(b'so it ended')"
    place.add_echo("aborts", initialize=abort)
    with pytest.raises(ServerError) as caught:
        TritonServer(place.repository, ready_timeout_s=20).start()
    assert "length_error" in str(caught.value)
    assert "0x0" not in str(caught.value)


def test_logs_of_failed_starts_are_bounded(place: Any) -> None:
    """Of seven logs that are left behind a new one finds the newest five, and what a server writes to stays."""
    running = place.temporary / "twinspire-triton-running.log"
    with running.open("wb") as written:
        logs.claim(written)
        os.utime(running, (0, 0))
        made = []
        for second in range(1, 9):
            made.append(logs.new_log())
            os.utime(made[-1], (second, second))
        assert set(place.temporary.glob("*.log")) == {*made[2:], running}
    logs.new_log()
    assert not running.exists()


def test_a_log_file_is_appended_to_and_kept(place: Any, echo: _Echo) -> None:
    """A named log keeps what was in it and is there after the server."""
    log = place.folder / "triton.log"
    log.write_text("before\n")
    with echo(log_file=log) as server:
        assert server.log_file == log
    assert log.read_text().startswith("before\n")
    assert "'echo'" in log.read_text()


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_second_server_on_a_port_is_refused(
    triton_server: TritonServer, place: Any, echo: _Echo, service: str
) -> None:
    """Each service's port that another server has is named, before anything is started; the first one goes on."""
    number = getattr(triton_server.ports, service)
    with pytest.raises(ServerError, match=str(number)) as caught:
        echo(**{f"{service}_port": number}).start()
    assert f"--{service}-port" in str(caught.value)
    place.assert_nothing_left([])
    assert triton_server.running


@pytest.fixture
def busy_port() -> Iterator[int]:
    """Listen on a port."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_given_port_taken_at_the_last_moment(
    place: Any, echo: _Echo, monkeypatch: pytest.MonkeyPatch, busy_port: int, service: str
) -> None:
    """A port that another program takes after the check: the error is the check's, though Triton found it."""
    free = Ports(http=0, grpc=0, metrics=0).claim("127.0.0.1")
    monkeypatch.setattr(Ports, "claim", lambda *_, **__: replace(free, **{service: busy_port}))
    with pytest.raises(ServerError, match=str(busy_port)) as caught:
        echo(**{f"{service}_port": busy_port}).start()
    assert f"--{service}-port" in str(caught.value)
    place.assert_nothing_left([])


def test_a_free_port_taken_at_the_last_moment(echo: _Echo, monkeypatch: pytest.MonkeyPatch, busy_port: int) -> None:
    """A picked port that another program takes before Triton does is picked anew."""
    claim, claimed = Ports.claim, []

    def unlucky(ports: Ports, *hosts: str, **options: bool) -> Ports:
        found = claim(ports, *hosts, **options)
        claimed.append(found if claimed else replace(found, grpc=busy_port))
        return claimed[-1]

    monkeypatch.setattr(Ports, "claim", unlucky)
    with echo() as server:
        assert len(claimed) == 2
        assert server.ports == claimed[1]
        assert server.running


def test_a_damaged_engine_is_told(place: Any, tiny: Any) -> None:
    """A flipped byte in an engine: the error names the model, gives the model's own reason, and where the log is."""
    build_repository([tiny.bundle.path], place.repository, precision="fp32", threads=1)
    (engine,) = (place.repository / "tiny_image" / "1" / "bundle").glob("image.fp32.onnx")
    damaged = bytearray(engine.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    engine.unlink()  # the text model shares it
    engine.write_bytes(damaged)
    with pytest.raises(ServerError) as caught:
        TritonServer(place.repository).start()
    message = str(caught.value)
    assert "'tiny_image'" in message
    assert "image.fp32.onnx" in message
    assert "tiny_text" not in message
    assert "model.py(" not in message, "no traceback"
    (log,) = place.temporary.glob("*.log")
    assert str(log) in message
    assert "sha256" in message
    place.assert_nothing_left([], logs=1)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('name: "bad" backend: "python" max_batch_sz: 3', "max_batch_sz"),
        ('name: "other" backend: "python"', "bad"),
        ('name: "bad" platform: "nonsense" max_batch_size: 1', "nonsense"),
    ],
)
def test_a_bad_config_beside_a_good_one_is_told(place: Any, config: str, says: str) -> None:
    """One unusable config ends the start, and the error says what is wrong with it in Triton's words."""
    place.add_echo()
    (place.add_echo("bad") / "config.pbtxt").write_text(config)
    with pytest.raises(ServerError) as caught:
        TritonServer(place.repository).start()
    assert says in str(caught.value)
    assert "bad" in str(caught.value)
    place.assert_nothing_left([], logs=1)


def test_a_model_that_takes_too_long(place: Any) -> None:
    """A server that is not ready in time is ended, and the error says how long it was given."""
    place.add_echo(initialize="time.sleep(60)")
    with pytest.raises(ServerUnavailableError, match="1 s"):
        TritonServer(place.repository, ready_timeout_s=1).start()
    place.assert_nothing_left([], logs=1)


def test_an_interrupted_start_leaves_nothing(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while models load goes through, and nothing is left, not even a log."""
    place.add_echo(initialize="time.sleep(60)")
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        TritonServer(place.repository).start()
    place.assert_nothing_left([])


@pytest.fixture
def channel_to() -> Iterator[Callable[[TritonServer], Any]]:
    """Open gRPC channels that are closed at the end."""
    opened = []

    def connect(server: TritonServer) -> Any:
        opened.append(grpc.InferenceServerClient(server.grpc_url))
        return opened[-1]

    yield connect
    for channel in opened:
        channel.close()


def _ask(channel: Any, answered: list[Any]) -> None:
    given = grpc.InferInput("x", [1, 3], "INT32")
    given.set_data_from_numpy(np.array([[1, 2, 3]], np.int32))
    channel.async_infer("echo", [given], lambda result, error: answered.append(error or result.as_numpy("y")))
    time.sleep(0.4)  # until it is with the model


def test_requests_in_flight_are_finished(place: Any, channel_to: Callable[[TritonServer], Any]) -> None:
    """A request that runs when the server is stopped gets its answer."""
    place.add_echo(execute="time.sleep(2)")
    answered: list[Any] = []
    with TritonServer(place.repository) as server:
        _ask(channel_to(server), answered)
    np.testing.assert_array_equal(answered[0], [[1, 2, 3]])


def test_a_server_that_hangs_is_killed(
    place: Any, channel_to: Callable[[TritonServer], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that never answers does not keep the server: after the grace time it is killed."""
    monkeypatch.setattr(process, "_GRACE_S", 1.0)
    place.add_echo(execute="time.sleep(600)")
    answered: list[Any] = []
    with TritonServer(place.repository) as server:
        _ask(channel_to(server), answered)
        regions = place.shared_memory()
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 5
    place.assert_nothing_left(regions)


def test_a_killed_server_is_cleared_away_and_started_again(place: Any, echo: _Echo) -> None:
    """After kill -9 of tritonserver its models are gone at once; the same ports serve again."""
    server = echo(log_file=place.folder / "log.txt")
    with server:
        first, ports, regions = server.pid, server.ports, place.shared_memory()
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait(10) == _CODE_OF_KILLED
        assert not server.running
        place.assert_nothing_left(regions)
        with echo(http_port=ports.http, grpc_port=ports.grpc, metrics_port=ports.metrics) as again:
            assert again.ports == ports
        server.start()
        assert server.running
        assert server.pid != first
    place.assert_nothing_left([])


def test_a_killed_reaper_takes_the_server_along(place: Any, echo: _Echo) -> None:
    """Kill -9 of the process above the server ends the server; `stop` removes the rest."""
    with echo(log_file=place.folder / "log.txt"):
        regions = place.shared_memory()
        os.kill(place.process("reaper.py"), signal.SIGKILL)
        deadline_s = time.monotonic() + 10  # Triton's models look for their server once a second
        while place.processes() and time.monotonic() < deadline_s:
            time.sleep(0.1)
    place.assert_nothing_left(regions)


def test_started_twice_is_refused(triton_server: TritonServer) -> None:
    """`start` of a running server is an error, and it goes on running."""
    with pytest.raises(ServerError, match="running"):
        triton_server.start()
    assert triton_server.running


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"http_port": 80000}, "65535"),
        ({"pass_env": ["A=b"]}, "A=b"),
        ({"grpc_port": -1}, "65535"),
        ({"http_port": 18001, "grpc_port": 18001}, "same port"),
        ({"host": "somewhere"}, "IPv4 address"),
        ({"host": "::1"}, "IPv4 address"),
        ({"host": "192.0.2.1", "insecure": True}, r"192\.0\.2\.1"),
        ({"metrics_host": "192.0.2.1"}, r"192\.0\.2\.1"),
        ({"host": "0.0.0.0"}, "--insecure"),
        ({"triton_flags": ["http-address=0.0.0.0"]}, "http-address"),
        ({"triton_flags": "log-verbose=1"}, "list"),
        ({"pass_env": "HOME"}, "list"),
        ({"log_file": Path("/nowhere/triton.log")}, "/nowhere/triton.log"),
    ],
)
def test_unusable_options_are_refused(place: Any, echo: _Echo, options: dict[str, Any], says: str) -> None:
    """Ports, hosts and log files that cannot be are refused, and nothing is started."""
    with pytest.raises(InputError, match=says):
        echo(**options).start()
    place.assert_nothing_left([])


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    """A missing folder and one without a model are refused; Triton would serve nothing and call it ready."""
    with pytest.raises(InputError, match=str(tmp_path / "none")):
        TritonServer(tmp_path / "none")
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError, match=str(tmp_path)):
        TritonServer(tmp_path)


def test_every_flag_is_one_of_tritons(needs_triton: None, tmp_path: Path) -> None:
    """Each flag that a server is started with stands in the real server's `--help`."""
    install = find_triton()
    environment = launch_environment.prepare(install, tmp_path, os.environ)
    done = subprocess.run(
        [install.executable, "--help"], env=environment.variables, capture_output=True, text=True, check=False
    )
    known = {word for word in (done.stdout + done.stderr).split() if word.startswith("--")}
    given = {flag.split("=")[0] for flag in flags(tmp_path, key="key")}
    assert given
    assert given <= known


def test_a_tritonserver_on_path_is_taken(place: Any, echo: _Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Triton laid out as in NVIDIA's container, found on PATH, is the one that serves."""
    wheel = find_triton()
    assert wheel.stub is not None
    assert wheel.backends is not None
    own = place.folder / "opt"
    (own / "bin").mkdir(parents=True)
    shutil.copy2(wheel.executable, own / "bin")
    (own / "lib").symlink_to(wheel.libraries[0])
    shutil.copytree(wheel.backends, own / "backends")
    shutil.copy2(wheel.stub, own / "backends" / "python")
    monkeypatch.setenv("PATH", str(own / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(own / "lib"))
    with echo() as server:
        assert server.origin == str(own / "bin" / "tritonserver")
        assert Path(f"/proc/{server.pid}/exe").resolve() == (own / "bin" / "tritonserver").resolve()
    place.assert_nothing_left([])


def test_a_path_with_a_space_is_refused(tmp_path: Path) -> None:
    """Triton's Python backend dies of a space in the repository's path and never becomes ready: an error at once."""
    (tmp_path / "my models").mkdir()
    with pytest.raises(InputError, match="space"):
        TritonServer(tmp_path / "my models")
