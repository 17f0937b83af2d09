"""The container's recipe, as far as it can be checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from twinspire_server.triton import find_triton, flags

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.triton").read_text(encoding="utf-8")
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")


def _entrypoint() -> list[str]:
    (found,) = re.findall(r"^ENTRYPOINT (\[.*?\])$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def test_the_container_has_the_flags_of_serve() -> None:
    """The entry point is tritonserver with the very flags that `twinspire serve` gives, listening on all addresses."""
    assert _entrypoint() == ["tritonserver", *flags(PurePosixPath("/models"), host="0.0.0.0")]


@pytest.fixture(scope="module")
def known_flags() -> str:
    """What the real server says of its flags."""
    install = find_triton()
    libraries = os.pathsep.join(map(str, install.libraries))
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    done = subprocess.run(
        [str(install.executable), "--help"], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("flag", [word.partition("=")[0] for word in _entrypoint()[1:]])
def test_the_real_server_knows_every_flag(flag: str, known_flags: str) -> None:
    """Every flag stands in the real server's `--help`."""
    assert re.search(rf"{re.escape(flag)}\b", known_flags)


def test_the_container_runs_without_rights_and_says_how_it_is() -> None:
    """The last USER is not root, and the health check asks the port that the server listens on."""
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")
    port = next(word.partition("=")[2] for word in _entrypoint() if word.startswith("--http-port="))
    assert f"http://127.0.0.1:{port}/v2/health/ready" in DOCKERFILE


def test_compose_publishes_to_this_machine_alone() -> None:
    """Every port that compose publishes is bound to loopback, and is one that the server listens on."""
    published = re.findall(r'- "([\d.]+):(\d+):(\d+)"', COMPOSE)
    assert {inside for _, _, inside in published} == {
        word.partition("=")[2] for word in _entrypoint() if "-port=" in word
    }
    assert {address for address, _, _ in published} == {"127.0.0.1"}
    assert "dockerfile: Dockerfile.triton" in COMPOSE
