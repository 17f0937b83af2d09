"""Finding a Triton, and what is said where one cannot be started: the wheel, the stub or libpython missing."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from twinspire.errors import MissingDependencyError, ServerError
from twinspire_server.triton import find_triton, locate

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBPYTHON = f"libpython{_VERSION}.so.1.0"


@pytest.fixture
def no_tritonserver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take every `tritonserver` off PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def wheel(no_tritonserver: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Lay out a wheel as nvidia-pytriton's, empty files all, and let it be the one that is found."""
    package = tmp_path / "site" / "pytriton"
    root = package / "tritonserver"
    for file in (
        root / "bin" / "tritonserver",
        root / "backends" / "python" / "libtriton_python.so",
        root / "python_backend_stubs" / _VERSION / "triton_python_backend_stub",
        root / "python_backend_stubs" / "3.9" / "triton_python_backend_stub",
        tmp_path / "site" / "nvidia_pytriton.libs" / "libtritonserver.so",
    ):
        file.parent.mkdir(parents=True)
        file.touch()
    spec = importlib.machinery.ModuleSpec("pytriton", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    return root


def _no_libpython(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let this Python be one without a shared library."""
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path / "lib"))
    for name in ("base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path / "prefix"))
    monkeypatch.setattr(locate, "find_library", lambda _name: None)


def test_the_wheels_parts_are_found(wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Server, backends, the running Python's stub, the wheel's libraries and libpython."""
    _no_libpython(monkeypatch, tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / _LIBPYTHON).touch()
    found = find_triton()
    assert found.executable == wheel / "bin" / "tritonserver"
    assert found.backends == wheel / "backends"
    assert found.stub == wheel / "python_backend_stubs" / _VERSION / "triton_python_backend_stub"
    assert found.libraries == (tmp_path / "site" / "nvidia_pytriton.libs",)
    assert found.libpython == tmp_path / "lib" / _LIBPYTHON
    assert found.own_python


def test_the_wheel_is_not_imported(no_tritonserver: None) -> None:
    """Looking for Triton leaves pytriton unimported."""
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("nvidia-pytriton is not installed")
    find = "import sys; from twinspire_server.triton.locate import find_triton; find_triton(); "
    subprocess.run([sys.executable, "-c", find + "assert 'pytriton' not in sys.modules"], check=True)


def test_without_the_wheel_its_extra_is_named(no_tritonserver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on PATH nor in a wheel: the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError) as caught:
        find_triton()
    assert (caught.value.package, caught.value.extra) == ("nvidia-pytriton", "server")


def test_a_machine_that_the_wheel_is_not_for(no_tritonserver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another processor installing the wheel would not help, and the error says so."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(ServerError, match="aarch64"):
        find_triton()


def test_no_stub_for_this_python(wheel: Path) -> None:
    """A Python that the wheel has no stub for: the error lists those that it has."""
    (wheel / "python_backend_stubs" / _VERSION / "triton_python_backend_stub").unlink()
    (wheel / "python_backend_stubs" / _VERSION).rmdir()
    with pytest.raises(ServerError, match=r"3\.9"):
        find_triton()


def test_a_damaged_wheel(wheel: Path) -> None:
    """A part that is gone is named, with the command that brings it back."""
    (wheel / "bin" / "tritonserver").unlink()
    with pytest.raises(ServerError, match="--force-reinstall") as caught:
        find_triton()
    assert "bin/tritonserver" in str(caught.value)


def test_no_libpython(wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Python without shared library: the error names the file, where it was looked for, and how to get it."""
    _no_libpython(monkeypatch, tmp_path)
    with pytest.raises(ServerError) as caught:
        find_triton()
    for part in (_LIBPYTHON, str(tmp_path / "lib"), f"apt-get install libpython{_VERSION}", "--enable-shared"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("version", "taken"),
    [
        ("2.74.0\n", "path"),
        ("2.51.0\n", "path"),
        ("2.50.0\n", "wheel"),
        ("1.9", "wheel"),
        ("odd", "path"),
        (None, "path"),
    ],
)
def test_the_newer_triton_is_taken(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None, taken: str
) -> None:
    """A tritonserver on PATH is taken, unless NVIDIA's file beside it says that the wheel's is newer."""
    monkeypatch.setattr(locate, "find_libpython", lambda: None)
    executable = tmp_path / "opt" / "bin" / "tritonserver"
    executable.parent.mkdir(parents=True)
    executable.touch(mode=0o755)
    if version is not None:
        (tmp_path / "opt" / "TRITON_VERSION").write_text(version)
    monkeypatch.setenv("PATH", str(executable.parent))
    found = find_triton()
    assert found.executable == {"path": executable, "wheel": wheel / "bin" / "tritonserver"}[taken]
    assert str(executable) in found.origin


def test_an_older_triton_is_taken_without_the_wheel(
    no_tritonserver: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where there is no wheel an older tritonserver on PATH is better than none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    executable = tmp_path / "bin" / "tritonserver"
    executable.parent.mkdir()
    executable.touch(mode=0o755)
    (tmp_path / "TRITON_VERSION").write_text("2.40.0")
    monkeypatch.setenv("PATH", str(executable.parent))
    assert find_triton().executable == executable


def test_numpy_2_is_told(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside NumPy 2 the wheel's Triton answers wrongly: the error says so and what to install."""
    versions = {"numpy": "2.4.1", "nvidia-pytriton": "0.7.0"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(ServerError, match="numpy<2") as caught:
        find_triton()
    assert "2.4.1" in str(caught.value)


def test_a_python_that_numpy_1_is_not_for(no_tritonserver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Python 3.13 installing the extra would not help, and the error says so."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    monkeypatch.setattr(locate, "_version", lambda: "3.13")
    with pytest.raises(ServerError, match=r"3\.13"):
        find_triton()


def test_libpython_that_the_loader_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where only the system's loader knows libpython, it is left to it."""
    _no_libpython(monkeypatch, tmp_path)
    monkeypatch.setattr(locate, "find_library", lambda _name: _LIBPYTHON)
    assert locate.find_libpython() is None


@pytest.mark.parametrize(("stub", "own"), [(_LIBPYTHON, True), ("libpython3.8.so.1.0", False), ("", False)])
def test_the_python_of_an_installed_triton(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stub: str, own: bool
) -> None:
    """A Triton on PATH runs this Python's packages only where its stub was built for it."""
    (tmp_path / "bin").mkdir()
    executable = tmp_path / "bin" / "tritonserver"
    executable.touch(mode=0o755)
    python = tmp_path / "backends" / "python"
    python.mkdir(parents=True)
    (python / "triton_python_backend_stub").write_bytes(b"\x7fELF\0" + stub.encode() + b"\0")
    monkeypatch.setenv("PATH", str(executable.parent))
    monkeypatch.setattr(locate, "find_libpython", lambda: None)
    found = find_triton()
    assert (found.executable, found.backends, found.stub) == (executable, tmp_path / "backends", None)
    assert found.own_python is own
