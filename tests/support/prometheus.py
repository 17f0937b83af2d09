"""A real Prometheus, from Debian's package (`make build/prometheus/promtool`) or the PATH."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; skip the test where it is missing, which `make test` forbids."""
    found = shutil.which(name, path=str(ROOT / "build" / "prometheus")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing: tools/fetch_prometheus.sh build/prometheus brings it")
    return found


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def until(true: Callable[[], Any], within_s: float = 60) -> Any:
    """Wait until something is true, and return it."""
    deadline_s = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.2)
    return found


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=20) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the series that an expression gives now. An expression that does not parse raises."""
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}


@contextmanager
def running_prometheus(folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Run a Prometheus with deploy/'s configuration, scraping `targets`, addresses by job, every second."""
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8").replace(": 15s", ": 1s")
    for job, default in (
        ("twinspire-server", "127.0.0.1:8003"),
        ("twinspire-gateway", "127.0.0.1:9109"),
        ("twinspire-client", "127.0.0.1:9108"),
    ):
        assert default in config
        config = config.replace(default, targets[job])
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    port = free_port()
    command: Sequence[str] = (
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            until(lambda: _answers(prometheus))
            yield prometheus
        finally:
            process.kill()


def _answers(prometheus: Prometheus) -> bool:
    try:
        prometheus.get("targets")
    except OSError:
        return False
    return True
