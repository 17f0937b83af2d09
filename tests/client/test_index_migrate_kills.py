"""Migrations that are killed with readers beside them; `kill_migrations.py --kills 200` does it longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_migrations_go_on_and_readers_never_see_two_spaces() -> None:
    """The index answers all the time, of one space at a time, and ends as a fresh one of the new model."""
    script = Path(__file__).with_name("kill_migrations.py")
    done = subprocess.run(
        [sys.executable, script, "--kills", "20", "--seed", "7"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "client")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    print(found)
    assert found["kills"] == 20
    assert found["searches"] > 100
