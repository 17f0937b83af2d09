"""Finding a `tritonserver`, on PATH or in the wheel `nvidia-pytriton`, and the libraries that it needs.

Of two the newer one is taken: older releases have more known vulnerabilities (SECURITY.md). The wheel is never
imported: `import pytriton` sets up logging and reads the environment.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from ctypes.util import find_library
from dataclasses import dataclass, replace
from pathlib import Path

from twinspire._dependencies import package_version
from twinspire.errors import MissingDependencyError, ServerError

_WHEEL = "nvidia-pytriton"
_MODULE = "pytriton"
_WHEEL_VERSION = (2, 51)
"""The Triton in nvidia-pytriton 0.7.0, the last release, is that of 24.10; its files do not name it."""
_VERSION_FILE = "TRITON_VERSION"
_STUB = "triton_python_backend_stub"
_FIRST_WITHOUT_NUMPY_1 = (3, 13)
_LIBPYTHON = re.compile(rb"libpython(3\.\d+)\.so\.1\.0")


@dataclass(frozen=True)
class TritonInstall:
    """A `tritonserver` that can be started.

    `origin` is its path or package, for messages. `backends` is the folder of its backends, None where only Triton
    knows it. `stub` is the program in which the Python backend runs models, None where it is beside that backend.
    `libraries` are folders for LD_LIBRARY_PATH. With `own_python` its Python backend runs the same Python (3.X) as this
    process, so that models can import the packages of this process; `libpython` is then the library that the stub
    loads, None where the system's loader finds it.
    """

    executable: Path
    origin: str
    backends: Path | None
    stub: Path | None = None
    libraries: tuple[Path, ...] = ()
    own_python: bool = False
    libpython: Path | None = None


def find_triton() -> TritonInstall:
    """Find the `tritonserver` on PATH or the one in the wheel `nvidia-pytriton`.

    The one on PATH is taken, unless it is known to be older than an installed wheel's. Raises `MissingDependencyError`
    where neither is found, and `ServerError` where there is no wheel for this machine or Python, where it is damaged or
    installed beside NumPy 2, or where libpython is missing.
    """
    on_path = shutil.which("tritonserver")
    if on_path is None:
        return _wheel()
    version = _version_of(Path(on_path))
    if version is not None and version < _WHEEL_VERSION and _wheel_package() is not None:
        wheel = _wheel()
        return replace(wheel, origin=f"{wheel.origin}, newer than {on_path}")
    return _installed(Path(on_path))


def triton_version(install: TritonInstall) -> tuple[int, ...] | None:
    """Return major and minor version of an installed Triton, None where it is not known."""
    return _version_of(install.executable) if install.stub is None else _WHEEL_VERSION


def _version_of(executable: Path) -> tuple[int, ...] | None:
    """Read the version of an installed Triton from NVIDIA's file beside `bin`; None where it is missing."""
    try:
        text = (executable.resolve().parent.parent / _VERSION_FILE).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    numbers = re.match(r"(\d+)\.(\d+)", text)
    return tuple(map(int, numbers.groups())) if numbers is not None else None


def _installed(executable: Path) -> TritonInstall:
    """Describe an installed Triton with the layout of NVIDIA's container: `bin` beside `backends`."""
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
    package = _wheel_package()
    if package is None:
        if sys.version_info >= _FIRST_WITHOUT_NUMPY_1:
            raise ServerError(
                f"no Triton for Python {_version()}: the wheel {_WHEEL} needs NumPy below 2, which has no release for "
                "it. Use Python 3.11 or 3.12 for the server, put a tritonserver on PATH, or use NVIDIA's container. "
                "Clients run on any Python and NumPy"
            )
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise ServerError(
                f"no Triton for {sys.platform} on {platform.machine()}: the wheel {_WHEEL} has it for Linux on x86_64 "
                "only. Put a tritonserver on PATH, or use NVIDIA's container"
            )
        raise MissingDependencyError(_WHEEL, "server", "running Triton without a tritonserver on PATH")
    _check_numpy()
    root = package / "tritonserver"
    install = TritonInstall(
        executable=root / "bin" / "tritonserver",
        origin=f"{_WHEEL} {package_version(_WHEEL) or 'of unknown version'}",
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
        versions = sorted((folder.name for folder in (root / "python_backend_stubs").glob("3.*")), key=_minor)
        raise ServerError(
            f"{install.origin} has no Python backend for Python {_version()}, only for "
            f"{', '.join(versions) or 'none'}: run twinspire with one of those"
        )
    return replace(install, libpython=find_libpython())


def _wheel_package() -> Path | None:
    spec = importlib.util.find_spec(_MODULE)  # of a top-level name: nothing is executed
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) if places else None


def _check_numpy() -> None:
    """Raise ServerError for NumPy 2: the wheel's Python backend, built against NumPy 1, then passes empty arrays."""
    numpy = package_version("numpy")
    if numpy is not None and int(numpy.split(".")[0]) >= 2:
        raise ServerError(
            f"the Triton in {_WHEEL} cannot pass inputs to Python models under NumPy {numpy}, only "
            f'below 2. In the environment of the server run: pip install "numpy<2". Clients run on any NumPy'
        )


def find_libpython() -> Path | None:
    """Find the running Python's shared library, which Triton's Python backend loads; None: the system's loader has it.

    Raises `ServerError` where there is none, with how to install it.
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
        "conda's and uv's Pythons include it"
    )


def _library_folders() -> list[Path]:
    """List the folders that may hold this Python's library, likeliest first; below its prefix if it was moved."""
    prefixes = [Path(sys.base_exec_prefix) / "lib", Path(sys.base_prefix) / "lib", Path(sys.base_prefix) / "lib64"]
    configured = [sysconfig.get_config_var(name) for name in ("LIBDIR", "LIBPL")]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [*map(Path, filter(None, configured)), *prefixes]
    if multiarch:
        folders += [folder / multiarch for folder in folders[:1]]
    return list(dict.fromkeys(folders))


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
