"""A gateway that listens: `twinspire gateway` with the sample bundle, in a process of its own."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="session")
def http(gateway: str) -> Iterator[httpx.Client]:
    """An HTTP client of the gateway."""
    with httpx.Client(base_url=gateway, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def local_client() -> Iterator[Client]:
    """The client whose vectors the gateway must give."""
    with Client.local(sample_bundle()) as client:
        yield client


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Three encoded pictures: a JPEG, a PNG and a lossless WebP, 120 x 90 pixels."""
    generator = np.random.default_rng(0)
    made = []
    for encoding in ("JPEG", "PNG", "WEBP"):
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        file = io.BytesIO()
        options = {"lossless": True} if encoding == "WEBP" else {}
        Image.fromarray(coarse).resize((120, 90)).save(file, encoding, **options)
        made.append(file.getvalue())
    return made


@pytest.fixture(scope="session")
def data_uris(pictures: list[bytes]) -> list[str]:
    """The pictures as data URIs."""
    types = ("jpeg", "png", "webp")
    return [
        f"data:image/{of};base64,{base64.b64encode(picture).decode()}"
        for of, picture in zip(types, pictures, strict=True)
    ]


@pytest.fixture(scope="session")
def run_gateway() -> Callable[..., AbstractContextManager[str]]:
    """A context manager that runs a gateway with options in a process of its own and gives its address."""
    return running_gateway
