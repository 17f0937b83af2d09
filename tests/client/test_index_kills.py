"""Writers that are killed with readers beside them; `kill_writers.py --kills 1000` does it longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def kill(times: int, spec: str) -> dict[str, int]:
    """Run the script and return its counts."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kill_writers.py"), "--kills", str(times), "--spec", spec],
        capture_output=True,
        text=True,
        timeout=800,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "client")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, int] = json.loads(done.stdout)
    print(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "times"), [("hnsw", 100), ("binary", 40)])
def test_killed_writers_lose_nothing_while_readers_search(spec: str, times: int) -> None:
    """What was acknowledged is there, a change under way whole or undone, and no reader finds anything wrong."""
    found = kill(times, spec)
    assert found["kills"] == times
    assert found["changes acknowledged"] > times
    assert found["builds acknowledged"] > 0
    assert found["searches"] > times
