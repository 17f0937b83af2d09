"""What an index is when a write or a sync fails, whoever makes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that lets writes fail."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("needs gcc and LD_PRELOAD")
    path = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", path, HERE / "faults.c", "-ldl"], check=True, timeout=60)
    return path


def inject(library: Path, *options: str) -> dict[str, int]:
    """Run `inject_faults.py` and return how often each change went how."""
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "client"),
        # A thousand syncs: what they do to a disk is not what is looked at.
        **({"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}),
    }
    done = subprocess.run(
        [sys.executable, HERE / "inject_faults.py", *options],
        capture_output=True,
        text=True,
        timeout=3000,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, int] = json.loads(done.stdout)
    print(found)
    return found


def test_a_change_that_raised_does_not_come_back(library: Path) -> None:
    """Whichever write or sync of SQLite fails, a change that raised is not there when the process ends unclosed."""
    found = inject(library, "--only", "rename", "--every", "3")
    assert found["rename refused"] > 0
    assert found["rename uncertain"] > 0
    assert found["rename unharmed"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.thorough)])
def test_every_failing_write_and_sync_loses_nothing(library: Path, every: int) -> None:
    """EIO, ENOSPC, short and torn writes, once and for good, at every call, or each fourth one, of every change."""
    found = inject(library, "--every", str(every))
    names = ["create", "open", "add", "remove", "replace", "rename", "compact", "build", "remove_where"]
    assert min(found[f"{name} refused"] for name in names) > 0
