"""Two gateways over one index and two servers behind one address, killed under load; `kill_several.py` is longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinspire.errors import MissingDependencyError
from twinspire_server.triton import find_triton

SCRIPT = Path(__file__).with_name("kill_several.py")


@pytest.mark.slow
def test_killed_gateways_and_servers_fail_no_request(tmp_path: Path) -> None:
    """A gateway and then a server are killed and started again: all answers are right, while the index grows."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    command = [
        sys.executable,
        SCRIPT,
        "--kills",
        "2",
        "--clients",
        "2",
        "--seconds",
        "1",
        "--json",
        tmp_path / "record.json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    print(record)
    assert record["failures"] == []
    assert [event["killed"] for event in record["kills"]] == ["gateway-0", "triton-0"]
    assert set(record["requests"]) == {"texts", "images", "search"}
    assert min(record["requests"].values()) > 20
    assert record["lots_added"] >= 1
    assert len(set(record["items"])) == 1
    assert record["items"][0] == 12 * (1 + record["lots_added"])
