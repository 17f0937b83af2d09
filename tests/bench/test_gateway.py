"""What a gateway costs, measured small: the sample through a real Triton and a real gateway."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from rich.console import Console

from twinspire import sample_bundle
from twinspire.bundle import Bundle
from twinspire.errors import EngineError, ServerError
from twinspire_bench.gateway import (
    CLIENT,
    GATEWAY,
    TENSORS,
    TEXTS,
    TRITON,
    GatewaySettings,
    HttpClient,
    autocannon_per_s,
    measure,
    show,
)
from twinspire_bench.scripts import ServedOptions, read_captions
from twinspire_eval.records import Record

if importlib.util.find_spec("pytriton") is None:  # importing it would load CUDA and change the process
    pytest.skip("a real Triton comes with the extra `server`", allow_module_level=True)


@pytest.mark.slow
def test_the_ways_of_an_image_are_measured(tmp_path: Path) -> None:
    """A run gives figures of each way, vectors that are the client's, and a record that reads back and prints."""
    served = ServedOptions(bundle=Bundle.open(sample_bundle()), threads=1, streams=1, work=tmp_path)
    settings = GatewaySettings(rounds=1, visit_s=0.5, lone_images=2, text_requests=2)
    record = measure(served, read_captions(None, TEXTS), settings=settings, say=lambda _: None)
    record.save(tmp_path / "gateway.json")
    found = Record.load(tmp_path / "gateway.json").results
    assert found["largest_difference"] == 0
    assert set(found["images_in_flight"]["images_per_s"]) == {TENSORS, CLIENT, TRITON, GATEWAY}
    assert all(speed["median"] > 0 for speed in found["images_in_flight"]["images_per_s"].values())
    assert found["texts_in_one_request"]["ms"][GATEWAY.removeprefix("JPEG, ")]["median"] > 0
    terminal = io.StringIO()
    show(record, Console(file=terminal, width=120))
    assert "gateway / client" in terminal.getvalue()


def test_a_refused_request_is_no_measurement(tmp_path: Path) -> None:
    """A load whose requests fail is an error, by this package's loop and by autocannon."""
    program = tmp_path / "autocannon"
    program.write_text("""#!/bin/sh\necho '{"non2xx": 3, "errors": 0, "timeouts": 0}'\n""")
    program.chmod(0o755)
    with pytest.raises(EngineError, match="3"):
        autocannon_per_s(program, "http://127.0.0.1:1", b"{}", seconds=1)
    with pytest.raises((ServerError, OSError)):
        HttpClient("http://127.0.0.1:1").post(b"{}")
