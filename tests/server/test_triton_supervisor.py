"""A server that loses a model's process, hangs or does not start is ended and started again; overload is let alone."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from twinspire.errors import InputError, ServerError
from twinspire_server.repository.config import ready_check
from twinspire_server.triton import CanaryOptions, Supervisor, TritonServer, process, supervisor
from twinspire_server.triton.reaper import model_processes

_WARM_UP = """model_warmup [ { name: "zeros" batch_size: 1 inputs {
  key: "x" value { data_type: TYPE_INT32 dims: [ 3 ] zero_data: true } } } ]
"""
_QUICK = CanaryOptions(interval_s=0.2, timeout_s=1.5, busy_timeout_s=4)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_WAIT_S", 0.05)


def _with_warm_up(model: Path) -> None:
    with (model / "config.pbtxt").open("a") as config:
        config.write(_WARM_UP)


def _is_ready(server: TritonServer) -> bool:
    try:
        with urllib.request.urlopen(f"{server.http_url}/v2/health/ready", timeout=2) as answer:
            return bool(answer.status == http.client.OK)
    except OSError:
        return False


def _echoed(server: TritonServer, values: list[int]) -> list[int]:
    given = grpc.InferInput("x", [1, len(values)], "INT32")
    given.set_data_from_numpy(np.array([values], np.int32))
    channel = grpc.InferenceServerClient(server.grpc_url)
    try:
        return channel.infer("echo", [given], client_timeout=20).as_numpy("y")[0].tolist()
    finally:
        channel.close()


def _until(true: Callable[[], bool], within_s: float = 20) -> float:
    """Wait until something is true; return the seconds that it took."""
    start_s = time.monotonic()
    while not true():
        assert time.monotonic() - start_s < within_s, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - start_s


@contextmanager
def _supervised(server: TritonServer, **options: Any) -> Iterator[list[str]]:
    """Run a supervisor over a started server; yield what it reports."""
    reports: list[str] = []
    watching = Supervisor(server, report=reports.append, **options)
    thread = threading.Thread(target=watching.run)
    thread.start()
    try:
        yield reports
    finally:
        watching.stop()
        thread.join()


def _model_process(server: TritonServer) -> int:
    (process,) = model_processes(server.pid)
    return process.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_server_that_lost_a_models_process_is_not_ready(place: Any, echo: Any, number: signal.Signals) -> None:
    """Within half a second of the death of a model's process nothing says any more that the server is ready."""
    with echo(log_file=place.folder / "log.txt") as server:
        os.kill(_model_process(server), number)
        took_s = _until(lambda: not _is_ready(server))
        assert took_s < 1.0  # 0.2 s and the kill; the margin is for a loaded machine
        reason = str(server.ended_error(server.wait(5)))
    assert "Python" in reason
    assert number.name in reason
    place.assert_nothing_left([])


def test_a_lost_server_serves_again_on_its_ports(place: Any, echo: Any) -> None:
    """After the death of a model's process and of Triton itself the same address answers again; each is reported."""
    with echo(log_file=place.folder / "log.txt") as server, _supervised(server) as reports:
        ports = server.ports
        for victim in (_model_process, lambda server: server.pid):
            os.kill(victim(server), signal.SIGKILL)
            reports.clear()
            _until(lambda: "again" in str(reports[-1:]))
            assert server.ports == ports
            assert _echoed(server, [1, 2]) == [1, 2]
            assert "Restart" in reports[0]
    place.assert_nothing_left([])


def test_a_hung_model_is_noticed_and_replaced(place: Any) -> None:
    """A stopped process, with Triton still saying that it is ready, is found by the canary; the next server answers."""
    _with_warm_up(place.add_echo())
    with TritonServer(place.repository) as server, _supervised(server, canary=_QUICK) as reports:
        os.kill(_model_process(server), signal.SIGSTOP)
        assert _is_ready(server)
        _until(lambda: "again" in str(reports[-1:]))
        assert "echo" in reports[0]
        assert _echoed(server, [3]) == [3]


@pytest.mark.parametrize(
    ("line", "hung"),
    [
        ("time.sleep(600)", "not compute"),
        ("end = time.monotonic() + 600\n        while time.monotonic() < end: pass", "without"),
    ],
)
def test_a_model_that_never_answers_is_hung(place: Any, line: str, hung: str) -> None:
    """A deadlock is found after the timeout, an endless loop after the longer one."""
    flag = place.folder / "hang"
    body = line.replace("\n        ", "\n            ")
    _with_warm_up(place.add_echo(execute=f"import os\n        if os.path.exists({str(flag)!r}):\n            {body}"))
    with TritonServer(place.repository) as server, _supervised(server, canary=_QUICK) as reports:
        flag.touch()
        _until(lambda: bool(reports))
        flag.unlink()
        assert hung in reports[0]
        _until(lambda: "again" in reports[-1])


def test_overload_is_not_taken_for_a_hang(place: Any) -> None:
    """A full queue, refusals and batches that each take longer than the canary's timeout end nothing."""
    slow = "end = time.monotonic() + (1.8 if len(requests) > 1 else 0)\n        while time.monotonic() < end: pass"
    model = place.add_echo(execute=slow)
    _with_warm_up(model)
    config = (model / "config.pbtxt").read_text()
    policy = "default_queue_policy { max_queue_size: 4 }"
    (model / "config.pbtxt").write_text(config.replace("dynamic_batching {", f"dynamic_batching {{ {policy}"))
    with TritonServer(place.repository) as server, _supervised(server, canary=_QUICK) as reports:
        answers = []
        end_s = time.monotonic() + 4

        def ask(_: int) -> None:
            while time.monotonic() < end_s:
                try:
                    answers.append(_echoed(server, [1, 2, 3]))
                except grpc.InferenceServerException as error:
                    answers.append(str(error))
                    time.sleep(0.05)

        with ThreadPoolExecutor(16) as callers:
            list(callers.map(ask, range(16)))
        assert [1, 2, 3] in answers
        assert any("queue" in str(answer) for answer in answers)
        assert reports == []
        assert _is_ready(server)


def test_restarts_are_bounded(place: Any, echo: Any) -> None:
    """A server that cannot start any more is tried so often and no more; the last error is raised."""
    with echo(log_file=place.folder / "log.txt") as server:
        (place.repository / "echo" / "1" / "model.py").write_text("raise ValueError('broken meanwhile')\n")
        reports: list[str] = []
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="meanwhile"):
            Supervisor(server, max_restarts=2, report=reports.append).run()
        assert len(reports) == 2
    place.assert_nothing_left([])


def test_a_start_that_fails_for_a_moment_is_tried_again(place: Any, echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps a restart from starting, a lack of memory or of disk too, is waited for."""
    with echo() as server, _supervised(server) as reports:
        popen, failures = subprocess.Popen, iter([OSError(12, "Cannot allocate memory")])

        def unlucky(*given: Any, **options: Any) -> Any:
            if (error := next(failures, None)) is not None:
                raise error
            return popen(*given, **options)

        monkeypatch.setattr(process.subprocess, "Popen", unlucky)
        os.kill(server.pid, signal.SIGKILL)
        _until(lambda: "again" in str(reports[-1:]))
        assert "memory" in reports[1]
        assert _echoed(server, [5]) == [5]


def test_a_start_that_lost_a_race_is_tried_again(place: Any) -> None:
    """A Triton that aborts with Boost's lock_exception while it starts is started anew, and leaves no log."""
    mark = place.folder / "aborted"
    abort = (
        f"import os, signal\n        if not os.path.exists({str(mark)!r}):\n"
        f"            open({str(mark)!r}, 'w').close()\n"
        '            sys.stderr.write("terminate called after throwing an instance of '
        "'boost::interprocess::lock_exception'\\n\")\n            sys.stderr.flush()\n"
        "            os.kill(os.getppid(), signal.SIGABRT)\n            time.sleep(60)"
    )
    place.add_echo(initialize=abort)
    with TritonServer(place.repository) as server:
        assert mark.exists()
        assert _echoed(server, [4]) == [4]
        assert list(place.temporary.glob("*.log")) == [server.log_file]
    place.assert_nothing_left([])


def _ready_check(model: Path) -> tuple[dict[str, Any], bytes]:
    """The one input of a model's ready check, and its bytes."""
    request = ready_check(model)
    assert request is not None
    length = int(request.headers["Inference-Header-Content-Length"])
    (found,) = json.loads(request.body[:length])["inputs"]
    assert found["parameters"] == {"binary_data_size": len(request.body) - length}
    return found, request.body[length:]


def test_a_ready_check_is_the_first_warm_up(place: Any) -> None:
    """The first warm-up is read with its datatype, one row of its shape and its file's bytes."""
    model = place.add_echo()
    assert ready_check(model) is None
    _with_warm_up(model)
    found, content = _ready_check(model)
    assert (found["name"], found["datatype"], found["shape"], content) == ("x", "INT32", [1, 3], bytes(12))
    config = (model / "config.pbtxt").read_text().replace("zero_data: true", 'input_data_file: "ids"')
    (model / "config.pbtxt").write_text(config)
    with pytest.raises(InputError) as caught:
        ready_check(model)
    assert caught.value.path == model / "warmup" / "ids"
    (model / "warmup").mkdir()
    np.arange(6, dtype=np.int32).tofile(model / "warmup" / "ids")
    assert _ready_check(model)[1] == np.arange(3, dtype=np.int32).tobytes()


@pytest.mark.parametrize("options", [{"interval_s": 0}, {"timeout_s": -1}, {"busy_timeout_s": float("nan")}])
def test_canary_options_are_positive(options: dict[str, float]) -> None:
    """Times that are not positive are refused by name."""
    with pytest.raises(InputError, match=next(iter(options))):
        CanaryOptions(**options)
