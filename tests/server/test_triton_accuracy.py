"""Wrong vectors are noticed: faults in a served model raise an alarm and end readiness; right ones never do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import faults
from twinspire import Client, sample_bundle
from twinspire.bundle import Bundle, Tower
from twinspire.error_status import STATUSES
from twinspire.errors import BundleError, InputError, ServerError
from twinspire_server.repository import build_repository
from twinspire_server.repository.served_probes import PROBES, ServedProbes, largest_loss, served_probes
from twinspire_server.triton import AccuracyCanary, AccuracyOptions, Fault, OnWrong, Prober, Supervisor, TritonServer
from twinspire_server.triton.prober import unprobed_models
from twinspire_server.triton.reaper import model_processes
from twinspire_server.triton.status import ServerStatus

_WITHIN_S = 60


@pytest.fixture(scope="module")
def sample() -> Bundle:
    """Open the sample, whose engines are trained: faults in random ones are much larger."""
    return Bundle.open(sample_bundle())


def _built(place: Any, bundle: Bundle) -> tuple[Path, Path]:
    """Build the sample's fp32 models; return the folders of the two towers."""
    build_repository([bundle.path], place.repository, precision="fp32", threads=1)
    return place.repository / "scenes_image", place.repository / "scenes_text"


@contextmanager
def _watched(server: TritonServer, **options: Any) -> Iterator[tuple[AccuracyCanary, list[str], ServerStatus]]:
    """Supervise a server with a short interval between probes; yield the canary, what is reported, and the status."""
    reports: list[str] = []
    canary = AccuracyCanary(AccuracyOptions(interval_s=0.3, **options), report=reports.append)
    supervisor = Supervisor(server, accuracy=canary, report=reports.append)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield canary, reports, ServerStatus(server, supervisor, canary)
    finally:
        supervisor.stop()
        thread.join()


def _until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + _WITHIN_S
    while not true():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.02)


def test_exchanged_rows_are_noticed_and_a_restart_heals(place: Any, sample: Bundle) -> None:
    """Rows that are exchanged between the requests of a batch raise the alarm; after one restart all is right again."""
    flag = place.folder / "exchange"
    image, _ = _built(place, sample)
    faults.exchange_rows(image, flag)
    faults.patch(
        image / "1" / "model.py",
        "    def initialize(self, args: dict[str, str]) -> None:\n",
        "    def initialize(self, args):\n"
        f"        if os.path.exists({str(flag)!r}):\n            os.unlink({str(flag)!r})\n",
    )
    with (
        TritonServer(place.repository) as server,
        _watched(server, on_wrong=OnWrong.RESTART) as (canary, reports, _),
    ):
        _until(lambda: canary.ready)
        assert reports == []
        flag.touch()
        _until(lambda: not canary.ready)
        _until(lambda: canary.ready)
        assert canary.results["scenes_image"].ok
    assert "scenes_image" in reports[0]
    assert Fault.EXCHANGED in reports[0]
    assert sum("Restart 1" in report for report in reports) == 1
    assert "again" in reports[-1]


def test_memory_damage_is_noticed_and_readiness_returns(place: Any, sample: Bundle) -> None:
    """Weights changed in the memory of a running model end readiness; so do wrong texts, until they are right again.

    A restart, here after the models' processes were killed, heals the memory.
    """
    image, text = _built(place, sample)
    flag = place.folder / "wrong"
    faults.patch(
        text / "1" / "model.py",
        "        outputs = compute(requests)\n",
        "        outputs = compute(requests)\n"
        f"        if os.path.exists({str(flag)!r}):\n"
        '            outputs = __import__("numpy").roll(outputs, 1, axis=1)\n',
    )
    with TritonServer(place.repository) as server, _watched(server) as (canary, reports, status):
        _until(lambda: canary.ready)
        flag.touch()
        _until(lambda: not canary.ready)
        assert canary.results["scenes_text"].fault is Fault.INACCURATE
        assert canary.results["scenes_text"].cosine < canary.results["scenes_text"].bound
        assert canary.results["scenes_image"].ok
        assert "scenes_text" in str(status.not_ready())
        page = status.page().decode()
        assert "twinspire_canary_ok 0" in page
        assert float(re.findall(r'twinspire_canary_cosine{model="scenes_text"} (\S+)', page)[0]) < 0.9
        flag.unlink()
        _until(lambda: canary.ready)
        assert status.not_ready() == []
        assert "again" in reports[-1]
        assert faults.change_weights_in_memory(server, "scenes_image", image / "1" / "bundle" / "image.fp32.onnx")
        _until(lambda: not canary.ok)
        assert not canary.results["scenes_image"].ok
        assert canary.results["scenes_text"].ok
        alarms = [report for report in reports if "WRONG" in report]
        assert "scenes_image" in alarms[-1]
        for process in model_processes(server.pid):
            os.kill(process.pid, signal.SIGKILL)  # a server that is about to end refuses: that is no alarm
        _until(lambda: canary.ready)
        assert [report for report in reports if "WRONG" in report] == alarms


def test_damaged_and_stale_engines_are_noticed_at_the_start(place: Any, sample: Bundle) -> None:
    """`twinspire serve --on-wrong stop` ends with an error that names both models.

    One has flipped weight bytes, the other the weights of another checkpoint.
    """
    image, text = _built(place, sample)
    faults.change_engine(image, Tower.IMAGE, "fp32", faults.flip_bytes)
    faults.change_engine(text, Tower.TEXT, "fp32", faults.retrain)
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "status")]
    command = [sys.executable, "-m", "twinspire", "serve", str(place.repository), *ports, "--on-wrong=stop"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == STATUSES[ServerError].exit_code
    alarms = re.findall(
        r"^WRONG VECTORS: (\w+) \(version 1, (\w+)\): cosine (\S+), bound (\S+):", ended.stderr, re.MULTILINE
    )
    found = {model: (fault, float(cosine), float(bound)) for model, fault, cosine, bound in alarms}
    assert found.keys() == {"scenes_image", "scenes_text"}
    assert all(fault == Fault.INACCURATE and cosine < bound for fault, cosine, bound in found.values())
    assert found["scenes_text"][1] < 0.9


def test_worse_numerics_and_shifted_pixels_are_noticed(place: Any, sample: Bundle) -> None:
    """Weights rounded to 5 bits, and images shifted by a pixel in front of the engine, are below the bound."""
    image, text = _built(place, sample)
    faults.change_engine(text, Tower.TEXT, "fp32", faults.round_weights)
    faults.patch(
        image / "1" / "model.py",
        "[queued.rows for queued in due])",
        '[__import__("numpy").roll(queued.rows, 1, axis=2) for queued in due])',
    )
    with TritonServer(place.repository) as server, Prober(server) as prober:
        results = prober.check()
    assert {name: result.fault for name, result in results.items()} == {
        "scenes_image": Fault.INACCURATE,
        "scenes_text": Fault.INACCURATE,
    }


def test_another_tokenizer_and_another_crop_are_noticed(place: Any, sample: Bundle) -> None:
    """Texts that keep their capitals, and pictures that lose a column of pixels, are no fault of the towers."""
    build_repository([sample.path], place.repository, threads=1, raw_inputs=True)
    with TritonServer(place.repository) as server, Prober(server) as prober:
        assert all(result.ok for result in prober.check().values())
    faults.keep_capitals(place.repository / "scenes_tokenize")
    faults.crop_pictures(place.repository / "scenes_decode")
    with TritonServer(place.repository) as server, Prober(server) as prober:
        results = prober.check()
    assert {name: result.fault for name, result in results.items()} == {
        "scenes_image": None,
        "scenes_image_bytes": Fault.PREPROCESSING,
        "scenes_text": None,
        "scenes_text_raw": Fault.PREPROCESSING,
    }
    print({name: result.cosine for name, result in results.items()})


def test_right_vectors_raise_no_alarm_under_load(triton_server: TritonServer, tiny: Any) -> None:
    """Probes that share batches with thousands of requests of clients are answered, and none is called wrong."""
    results = []
    with Client.connect(triton_server.grpc_url, tiny.bundle) as client, Prober(triton_server) as prober:
        texts = [f"the {number % 7} red cat" for number in range(50)]
        images = np.random.default_rng(0).integers(
            0, 256, (20, *tiny.bundle.input_spec(Tower.IMAGE).shape), dtype=np.uint8
        )

        enough = threading.Event()

        def load(kind: int) -> None:
            calls = 0
            while calls < 20 or not enough.is_set():
                calls += 1
                client.towers.encode_images(images) if kind % 2 else client.encode_texts(texts)

        with ThreadPoolExecutor(4) as callers:
            loads = [callers.submit(load, kind) for kind in range(4)]
            while not all(done.done() for done in loads):
                results.append(prober.check())
                if len(results) > 3:
                    enough.set()
            for done in loads:
                done.result()
    assert len(results) > 3
    for found in results:
        assert found.keys() >= {"tiny_image", "tiny_text"}
        for result in found.values():
            assert result.ok, result
            assert result.is_answered


def test_probes_without_an_answer_are_no_fault(place: Any, tiny: Any) -> None:
    """A server that has gone, and probes that cannot be read, show nothing: no alarm, and no readiness."""
    build_repository([tiny.bundle.path], place.repository, threads=1)
    reports: list[str] = []
    canary = AccuracyCanary(AccuracyOptions(interval_s=0.1, timeout_s=0.2), report=reports.append)
    with TritonServer(place.repository) as server:
        server.kill()
        canary.start(server)
        _until(lambda: bool(reports))
        assert canary.ok
        assert not canary.checked
        assert not canary.ready
        assert "no answer" in reports[0]
        next(place.repository.glob(f"*/1/{PROBES}")).write_bytes(b"")
        canary.start(server)
        _until(lambda: "cannot" in reports[-1])
        assert not canary.ready
        canary.stop()


def test_a_repository_without_probes_is_reported(place: Any, tiny: Any) -> None:
    """Models of an older build are served, and named as not probed."""
    build_repository([tiny.bundle.path], place.repository, threads=1)
    for file in place.repository.glob(f"*/1/{PROBES}"):
        file.unlink()
    server = TritonServer(place.repository)
    assert set(unprobed_models(server)) == set(server.models)


@pytest.mark.parametrize(
    ("certified", "measured", "expected"),
    [
        (0.006, 0.002, 0.006),  # the certificate's
        (0.006, 0.0005, 0.002),  # the probes lose far less than the certificate's data
        (0.0003, 0.0004, 0.0008),  # the probes lose more than the certificate's data
        (0.0003, 0.5, 0.0012),  # whatever was measured, at most four times the certificate's
        (1e-12, 1e-13, 1e-6),  # rounding of float32
        (None, 0.002, 0.004),
        (0.002, None, 0.004),
        (None, None, 0.01),
    ],
)
def test_the_bound_is_the_certificates(certified: float | None, measured: float | None, expected: float) -> None:
    """The largest loss that is allowed is the certified one, unless the probes showed another one at the build."""
    assert largest_loss(certified, measured, at_least=1e-6) == pytest.approx(expected)


def test_served_probes_survive_their_file(sample: Bundle, tmp_path: Path) -> None:
    """What is read from the file is what was written, and equal probes give equal files."""
    certificate = sample.manifest.engines[Tower.IMAGE]["int8"].certificate
    probes = served_probes(sample, Tower.IMAGE, sample.precisions(Tower.IMAGE)[-1], certificate)
    for name in ("one", "two"):
        probes.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = ServedProbes.load(tmp_path / "one")
    for name, value in vars(probes).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    assert certificate.min_cosine < read.min_cosine < 1 - 5e-4
    (tmp_path / "one").write_bytes(b"PK")
    with pytest.raises(BundleError, match="one"):
        ServedProbes.load(tmp_path / "one")


@pytest.mark.parametrize("options", [{"interval_s": 0}, {"timeout_s": -1}, {"on_wrong": "shout"}])
def test_accuracy_options_are_checked(options: dict[str, Any]) -> None:
    """Numbers of seconds are positive, and what follows a fault has one of three names."""
    with pytest.raises(InputError) as error:
        AccuracyOptions(**options)
    assert error.value.option == next(iter(options))
