"""A gateway that listens: `twinspire gateway` with the sample bundle, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from twinspire import Client, sample_bundle

TWINSPIRE = Path(sys.executable).with_name("twinspire")


@contextmanager
def running_gateway(*options: str | Path) -> Iterator[str]:
    """Run `twinspire gateway` with options on a free port; yield its address."""
    command: Sequence[str | Path] = [TWINSPIRE, "gateway", "--port", "0", *options]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("gateway at http://")
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="session")
def gateway() -> Iterator[str]:
    """The address of a gateway that computes the sample bundle in its process."""
    with running_gateway("--bundle", sample_bundle()) as url:
        yield url


@pytest.fixture
def http(gateway: str) -> Iterator[httpx.Client]:
    """An HTTP client of the gateway."""
    with httpx.Client(base_url=gateway, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def local_client() -> Iterator[Client]:
    """The client whose vectors the gateway must give."""
    with Client.local(sample_bundle()) as client:
        yield client
