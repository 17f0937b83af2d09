"""The client on a real Triton that has too much to do, whose model's process is gone, or that is exchanged."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinspire import TritonTowers
from twinspire.bundle import Tower
from twinspire.errors import MissingDependencyError, ServerOverloadedError, ServerUnavailableError, TwinspireError
from twinspire_server.triton import TritonServer, find_triton

pytestmark = pytest.mark.serial

Start = Callable[..., TritonServer]

# A tower that takes a while for a batch, however small, and gives a unit vector that names each row's first number.
_MODEL = """import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        time.sleep({service_s})
        answers = []
        for request in requests:
            given = pb.get_input_tensor_by_name(request, "{input}").as_numpy()
            rows = np.eye(12, dtype=np.float32)[given.reshape(len(given), -1)[:, 0] % 12]
            answers.append(pb.InferenceResponse([pb.Tensor("embedding", rows)]))
        return answers
"""
_CONFIG = """name: "tiny_{tower}"
backend: "python"
max_batch_size: 4
input [ {{ name: "{input}" data_type: TYPE_{type} dims: [ {dims} ] }} ]
output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ 12 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ {queue} }}
parameters {{ key: "space" value: {{ string_value: "{space}" }} }}
parameters {{ key: "text_lengths" value: {{ string_value: "20" }} }}
"""
QUEUE = "default_queue_policy { max_queue_size: 8 timeout_action: REJECT default_timeout_microseconds: 30000000"
QUEUE += " allow_timeout_override: true }"


@pytest.fixture(scope="module")
def start(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start servers of two models that name what they were given: `start(queue=..., service_s=..., **options)`."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with ExitStack() as stack:

        def start_one(*, queue: str = "", service_s: float = 0.0, **options: Any) -> TritonServer:
            repository = tmp_path_factory.mktemp("repository")
            inputs = {Tower.IMAGE: ("image", "UINT8", "16, 16, 3"), Tower.TEXT: ("input_ids", "INT32", "-1")}
            for tower, (name, kind, dims) in inputs.items():
                model = repository / f"tiny_{tower}"
                (model / "1").mkdir(parents=True)
                (model / "1" / "model.py").write_text(_MODEL.format(service_s=service_s, input=name))
                config = _CONFIG.format(
                    tower=tower, input=name, type=kind, dims=dims, queue=queue, space=tiny.bundle.space
                )
                (model / "config.pbtxt").write_text(config)
            server = TritonServer(repository, log_file=repository / "log.txt", **options).start()
            stack.callback(server.stop)
            return server

        yield start_one


@pytest.fixture(scope="module")
def slow_server(start: Start) -> TritonServer:
    """Serve at most four images each 0.05 s, 80 a second, with places for eight more."""
    return start(queue=QUEUE, service_s=0.05)


def _image(value: int) -> np.ndarray:
    return np.full((1, 16, 16, 3), value, np.uint8)


def _expected(values: range) -> np.ndarray:
    return np.eye(12, dtype=np.float32)[np.arange(values.start, values.stop) % 12]


def test_every_call_beyond_capacity_is_answered_in_the_end(tiny: Any, slow_server: TritonServer) -> None:
    """96 calls that come at 10 times what the server can do, its queue bounded, all succeed; each is computed once."""
    outcomes: Counter[str] = Counter()
    with TritonTowers(slow_server.grpc_url, tiny.bundle) as towers:

        def call(number: int) -> None:
            time.sleep(number / 800)
            try:
                found = towers.encode_images(_image(number))
                outcomes["right" if (found == _expected(range(number, number + 1))).all() else "wrong"] += 1
            except TwinspireError as error:
                outcomes[type(error).__name__] += 1

        before = towers.statistics(Tower.IMAGE)
        begun = time.monotonic()
        with ThreadPoolExecutor(96) as pool:
            list(pool.map(call, range(96)))
        print(f"{dict(outcomes)} in {time.monotonic() - begun:.1f} s")
        assert outcomes == {"right": 96}
        time.sleep(0.5)  # a batch is counted a little after its answers went out
        assert towers.statistics(Tower.IMAGE).since(before).requests == 96


def test_a_call_of_many_requests_fits_a_short_queue(tiny: Any, slow_server: TritonServer) -> None:
    """A call that has more requests in flight than the queue takes gets all its rows, each computed once."""
    pictures = np.concatenate([_image(number) for number in range(60)])
    with TritonTowers(slow_server.grpc_url, tiny.bundle, send_images_singly=True, in_flight=40) as towers:
        before = towers.statistics(Tower.IMAGE)
        assert (towers.encode_images(pictures) == _expected(range(60))).all()
        time.sleep(0.5)
        assert towers.statistics(Tower.IMAGE).since(before).requests == 60


def test_a_call_that_finds_no_place_in_time_says_overloaded(tiny: Any, slow_server: TritonServer) -> None:
    """Of calls that are too many for their deadline the rest are ServerOverloadedErrors, in time."""
    outcomes: Counter[str] = Counter()
    with TritonTowers(slow_server.grpc_url, tiny.bundle, deadline_s=0.5) as towers:

        def call(number: int) -> None:
            begun = time.monotonic()
            try:
                found = towers.encode_images(_image(number))
                outcomes["right" if (found == _expected(range(number, number + 1))).all() else "wrong"] += 1
            except ServerUnavailableError as error:
                outcomes[type(error).__name__ if slow_server.grpc_url in str(error) else "without address"] += 1
            assert time.monotonic() - begun < 1.5

        with ThreadPoolExecutor(96) as pool:
            list(pool.map(call, range(96)))
    print(dict(outcomes))
    assert outcomes.keys() <= {"right", ServerOverloadedError.__name__, ServerUnavailableError.__name__}
    assert outcomes["right"] > 0
    assert outcomes[ServerOverloadedError.__name__] > 0


def _model_process(server: TritonServer, tower: Tower) -> int:
    """Return the process of a server's model."""
    model = str(server.repository / f"tiny_{tower}" / "1" / "model.py")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if model in arguments[:3]:
                return int(folder.name)
    raise AssertionError(f"no process runs {model}")


def test_a_model_without_its_process_is_unavailable(tiny: Any, start: Start) -> None:
    """A model whose process was killed or halted is a ServerUnavailableError, not a refusal, in time."""
    server = start()
    ids = [np.array([1, 2], np.int32)]
    with TritonTowers(server.grpc_url, tiny.bundle, deadline_s=10, max_retries=0) as towers:
        assert (towers.encode_texts(ids) == _expected(range(1, 2))).all()
        os.kill(_model_process(server, Tower.TEXT), signal.SIGKILL)
        os.kill(_model_process(server, Tower.IMAGE), signal.SIGSTOP)
        for call in (lambda: towers.encode_texts(ids), lambda: towers.encode_images(_image(1))):
            begun = time.monotonic()
            with pytest.raises(ServerUnavailableError, match=server.grpc_url) as caught:
                call()
            print(f"{time.monotonic() - begun:.1f} s: {caught.value}")
            assert time.monotonic() - begun < 11
    with suppress(ProcessLookupError):  # it would wait 10 s for its model
        os.kill(server.pid, signal.SIGKILL)


def test_no_call_is_lost_when_servers_are_exchanged(tiny: Any, start: Start) -> None:
    """Calls of several threads all succeed while a second server takes over the first one's port and that ends."""
    first = start(reuse_grpc_port=True)
    ended = threading.Event()
    with TritonTowers(first.grpc_url, tiny.bundle) as towers, ThreadPoolExecutor(4) as pool:

        def load(thread: int) -> int:
            calls = 0
            while not ended.is_set():
                pictures = np.concatenate([_image((thread + calls + row) % 12) for row in range(9)])
                assert (towers.encode_images(pictures) == _expected(range(thread + calls, thread + calls + 9))).all()
                calls += 1
            return calls

        loads = [pool.submit(load, 12 * thread) for thread in range(4)]
        try:
            second = start(reuse_grpc_port=True, grpc_port=first.ports.grpc)
            os.kill(first.pid, signal.SIGTERM)
            first.wait(30)
            deadline_s = time.monotonic() + 20
            while towers.statistics(Tower.IMAGE).requests == 0:  # of the second
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        finally:
            ended.set()
        print(f"{sum(done.result(40) for done in loads)} calls")
    assert second.running
