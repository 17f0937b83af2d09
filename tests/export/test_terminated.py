"""A command that is ended by a signal: what is half written goes with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinspire.cli.app import application

pytest.importorskip("nncf", reason="quantizing needs nncf")

PROGRAM = "import sys; from twinspire.cli import main; main(sys.argv[1:])"


def wait_until(holds: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait until something holds while `process` runs."""
    end_s = time.monotonic() + 30
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.skipif(
    "quantize" not in {command.name for command in application().registered_commands},
    reason="twinspire is not installed with its commands",
)
@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_bundle_half_made_is_removed(
    make_tiny: Callable[..., Any], tmp_path: Path, number: signal.Signals, status: int, said: str
) -> None:
    """A signal in the middle of `twinspire quantize` ends it with its status, and its hidden folder is gone."""
    base = make_tiny("base", precisions=["fp32"]).bundle.path
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "quantize", base, "-o", tmp_path / "int8"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: [*tmp_path.glob(".int8.*")], process)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (status, "")
    assert err.splitlines()[-1] == said
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before
