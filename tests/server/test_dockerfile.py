"""The container's recipe, as far as it can be checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from twinspire_server.repository.gpu_config import CACHE_FOLDER, MIN_RELEASE
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


@pytest.mark.parametrize(
    ("release", "status"), [("26.05", 1), ("25.12", 1), ("24.10", 1), ("", 1), ("26.06", 0), ("26.10", 0), ("27.01", 0)]
)
def test_releases_before_the_oldest_are_refused(release: str, status: int) -> None:
    """Building the image on a release older than the oldest supported one fails, and says which that is."""
    (check,) = re.findall(r"^RUN (oldest=.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    environment = {**os.environ, "NVIDIA_TRITON_SERVER_VERSION": release}
    done = subprocess.run(["/bin/sh", "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert (MIN_RELEASE in done.stderr) == (status == 1)
    assert f"# {MIN_RELEASE} or later" in DOCKERFILE


def test_engines_of_tensorrt_outlive_the_container() -> None:
    """The folder of TensorRT's cache belongs to the image's account and is a named volume, not in memory."""
    user = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert f"RUN install --directory --owner={user} --group={user} {CACHE_FOLDER}\n" in DOCKERFILE
    (volume,) = re.findall(rf"^ +- (\w+):{CACHE_FOLDER}$", COMPOSE, re.MULTILINE)
    assert f"\nvolumes:\n  {volume}:\n" in COMPOSE
    assert not any(CACHE_FOLDER.startswith(folder) for folder in re.findall(r"^      - (/\w+)$", COMPOSE, re.MULTILINE))


def test_tf32_is_off() -> None:
    """TensorRT's provider has no option for TF32: the image's environment turns it off."""
    assert "ENV NVIDIA_TF32_OVERRIDE=0\n" in DOCKERFILE


def test_compose_publishes_to_this_machine_alone() -> None:
    """Every port that compose publishes is bound to loopback, and is one that the server listens on."""
    published = re.findall(r'- "([\d.]+):(\d+):(\d+)"', COMPOSE)
    assert {inside for _, _, inside in published} == {
        word.partition("=")[2] for word in _entrypoint() if "-port=" in word
    }
    assert {address for address, _, _ in published} == {"127.0.0.1"}
    assert "dockerfile: Dockerfile.triton" in COMPOSE
