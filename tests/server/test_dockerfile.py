"""The container's recipe, as far as it can be checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from twinspire_server.repository.engines import CACHE_FOLDER, MIN_RELEASE
from twinspire_server.triton import find_triton, flags

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.triton").read_text(encoding="utf-8")
LOOPBACK, HTTP_PORT = "127.0.0.1", 8000
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")

# Runs the imports of the model that decodes and tokenizes; what Triton brings is left empty.
_IMPORTS = """import sys, types
before = set(sys.modules)
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
import twinspire_server.repository.preprocess_model
import twinspire.images
found = {name.partition(".")[0] for name in set(sys.modules) - before - {"triton_python_backend_utils"}}
print(*(name for name in found - set(sys.stdlib_module_names) if "cython" not in name))
"""


def _started(folder: Path, *arguments: str) -> list[str]:
    """Run the entry point with a `tritonserver` that prints its arguments, and return them."""
    (script,) = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])
    fake = folder / "tritonserver"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    command = [ROOT / PurePosixPath(script).name, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def _key(given: list[str]) -> str:
    (key,) = {word.rpartition("=")[2] for word in given if "restricted" in word}
    return key


def test_the_container_has_the_flags_of_serve(tmp_path: Path) -> None:
    """It starts tritonserver with the very flags that `twinspire serve` gives, gRPC and metrics on all addresses."""
    given = _started(tmp_path)
    address = "0.0.0.0"
    assert given == flags(PurePosixPath("/models"), key=_key(given), host=address, metrics_host=address)


def test_each_start_of_the_container_draws_a_key(tmp_path: Path) -> None:
    """Two starts have two keys of 128 bits; further arguments come last."""
    first, second = _started(tmp_path), _started(tmp_path, "--log-verbose=1")
    assert re.fullmatch(r"[0-9a-f]{32}", _key(first))
    assert _key(first) != _key(second)
    assert second[-1] == "--log-verbose=1"


def test_the_entry_point_is_in_the_image() -> None:
    """The script is copied to where ENTRYPOINT runs it, and may be executed."""
    (script,) = json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)[-1])
    name = PurePosixPath(script).name
    assert re.search(rf"^COPY --chmod=755 {name} {PurePosixPath(script).parent}/$", DOCKERFILE, re.MULTILINE)
    assert os.access(ROOT / name, os.X_OK)


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


def test_the_real_server_knows_every_flag(tmp_path: Path, known_flags: str) -> None:
    """Every flag stands in the real server's `--help`."""
    given = [word.partition("=")[0] for word in _started(tmp_path)]
    assert [flag for flag in given if not re.search(rf"{re.escape(flag)}\b", known_flags)] == []


def test_the_container_runs_without_rights_and_says_how_it_is() -> None:
    """The last USER is not root, and the health check asks the port that the server listens on."""
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")
    assert f"http://{LOOPBACK}:{HTTP_PORT}/v2/health/ready" in DOCKERFILE


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
    assert re.search(rf"^volumes:\n(?:  \w+:\n)*  {volume}:$", COMPOSE, re.MULTILINE)
    assert not any(CACHE_FOLDER.startswith(folder) for folder in re.findall(r"^      - (/\w+)$", COMPOSE, re.MULTILINE))


def test_raw_inputs_are_pinned() -> None:
    """What RAW_INPUTS installs has the versions of constraints.txt, each with a hash for both processors."""
    text = (ROOT / "container-requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    pinned = dict(re.findall(r"^(\S+==\S+) +(--hash.*)$", text, re.MULTILINE))
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert {name.partition("==")[0] for name in pinned} == {"pillow", "tokenizers"}
    assert set(pinned) <= set(constraints)
    assert all(len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", hashes)) == 2 for hashes in pinned.values())
    assert "--require-hashes" in DOCKERFILE
    assert "--requirement /src/container-requirements.txt" in DOCKERFILE


def test_raw_inputs_need_no_other_package() -> None:
    """What decodes and tokenizes imports NumPy, Pillow and tokenizers, and nothing else that is not Python's own."""
    done = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"numpy", "PIL", "tokenizers", "twinspire", "twinspire_server"}


def test_tf32_is_off() -> None:
    """TensorRT's provider has no option for TF32: the image's environment turns it off."""
    assert "ENV NVIDIA_TF32_OVERRIDE=0\n" in DOCKERFILE
