"""Where a `tritonserver` is: on PATH, or in the wheel `nvidia-pytriton`; what it needs beside it, and what is missing.

The wheel is looked into, never imported: `import pytriton` sets up logging and reads the environment.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import MissingDependencyError, ServerError

_WHEEL = "nvidia-pytriton"
_MODULE = "pytriton"
_STUB = "triton_python_backend_stub"
_LIBPYTHON = re.compile(rb"libpython(3\.\d+)\.so\.1\.0")


@dataclass(frozen=True)
class TritonInstall:
    """A `tritonserver` that can be started.

    `origin` tells people where it comes from. `backends` is the folder of its backends, None where only Triton knows.
    `stub` is the program in which the Python backend runs models, where it lies elsewhere than beside that backend.
    `libraries` are folders for LD_LIBRARY_PATH. `own_python` says that its Python backend runs this very Python
    (3.X), so that models may import what is installed here; `libpython` is then the library which the stub loads, None
    where the system's loader finds it.
    """

    executable: Path
    origin: str
    backends: Path | None
    stub: Path | None = None
    libraries: tuple[Path, ...] = ()
    own_python: bool = False
    libpython: Path | None = None


def find_triton() -> TritonInstall:
    """Find the `tritonserver` on PATH, else the one in the wheel `nvidia-pytriton`.

    Raises `MissingDependencyError` where there is neither, and `ServerError` where the wheel has nothing for this
    machine or Python, is damaged, or libpython is missing.
    """
    on_path = shutil.which("tritonserver")
    return _installed(Path(on_path)) if on_path is not None else _wheel()


def _installed(executable: Path) -> TritonInstall:
    """Describe a Triton that somebody installed, as NVIDIA's container has it: `bin` beside `backends`."""
    backends = executable.resolve().parent.parent / "backends"
    stub = backends / "python" / _STUB
    own_python = stub.is_file() and _python_of(stub) == _version()
    return TritonInstall(
        executable=executable,
        origin=str(executable),
        backends=backends if backends.is_dir() else None,
        own_python=own_python,
        libpython=find_libpython() if own_python else None,
    )


def _wheel() -> TritonInstall:
    """Describe the Triton in the wheel, for the running Python."""
    spec = importlib.util.find_spec(_MODULE)  # of a top-level name: nothing is executed
    if spec is None or not spec.submodule_search_locations:
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise ServerError(
                f"no Triton for {sys.platform} on {platform.machine()}: the wheel {_WHEEL} has it for Linux on x86_64 "
                f"only. Put a tritonserver on PATH, or use NVIDIA's container"
            )
        raise MissingDependencyError(_WHEEL, "server", "running Triton without a tritonserver on PATH")
    package = Path(next(iter(spec.submodule_search_locations)))
    root = package / "tritonserver"
    install = TritonInstall(
        executable=root / "bin" / "tritonserver",
        origin=f"{_WHEEL} {_wheel_version()}",
        backends=root / "backends",
        stub=root / "python_backend_stubs" / _version() / _STUB,
        libraries=(package.parent / "nvidia_pytriton.libs",),
        own_python=True,
    )
    for part in (install.executable, root / "backends" / "python" / "libtriton_python.so", *install.libraries):
        if not part.exists():
            raise ServerError(
                f"{install.origin} lacks {part}: install it again with: pip install --force-reinstall {_WHEEL}"
            )
    assert install.stub is not None
    if not install.stub.is_file():
        held = sorted((folder.name for folder in (root / "python_backend_stubs").glob("3.*")), key=_minor)
        raise ServerError(
            f"{install.origin} has no Python backend for Python {_version()}, only for {', '.join(held) or 'none'}: "
            f"run twinspire with one of those"
        )
    return TritonInstall(**{**vars(install), "libpython": find_libpython()})


def find_libpython() -> Path | None:
    """Find the running Python's shared library, which Triton's Python backend loads; None: the loader knows it.

    Raises `ServerError` where there is none, and says how to get it.
    """
    name = f"libpython{_version()}.so.1.0"
    for folder in _library_folders():
        if (folder / name).is_file():
            return folder / name
    if find_library(f"python{_version()}") == name:
        return None
    raise ServerError(
        f"{name} was not found (looked in {', '.join(map(str, _library_folders()))} and where the system's loader "
        f"looks), which Triton's Python backend needs to run models under Python {platform.python_version()}. "
        f"Debian and Ubuntu: apt-get install libpython{_version()}. pyenv: "
        f"PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install --force {platform.python_version()}. "
        f"conda's and uv's Pythons bring it"
    )


def _library_folders() -> list[Path]:
    """List where this Python's library may lie, likeliest first; a Python that was moved has it below its prefix."""
    prefixes = [Path(sys.base_exec_prefix) / "lib", Path(sys.base_prefix) / "lib", Path(sys.base_prefix) / "lib64"]
    told = [sysconfig.get_config_var(name) for name in ("LIBDIR", "LIBPL")]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [*map(Path, filter(None, told)), *prefixes]
    if multiarch:
        folders += [folder / multiarch for folder in folders[:1]]
    return list(dict.fromkeys(folders))


def _wheel_version() -> str:
    try:
        return importlib.metadata.version(_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _python_of(stub: Path) -> str | None:
    """Return the Python, `3.X`, that a stub of the Python backend embeds."""
    try:
        found = _LIBPYTHON.search(stub.read_bytes())
    except OSError:
        return None
    return os.fsdecode(found[1]) if found is not None else None


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _minor(version: str) -> int:
    return int(version.split(".")[1])
