"""The environment of a server's process: its backends, laid out in a temporary folder, and its variables."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import InputError, ServerError
from twinspire_server.repository.config import read_config
from twinspire_server.triton.locate import TritonInstall

_DEFAULT_BACKENDS = Path("/opt/tritonserver/backends")
"""Where a `tritonserver` looks that has no folder of backends beside it."""

_PASSED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES"),  # the latter two: another allocator
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE"),
    }
)
_PASSED_PREFIXES = (
    *("LC_", "PYTHON", "MALLOC_", "TCMALLOC_"),
    *("CUDA_", "NCCL_", "CUDNN_", "CUBLAS_", "ORT_", "OV_", "OPENVINO_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_"),
    *("GRPC_VERBOSITY", "GRPC_TRACE", "GRPC_SSL_CIPHER_SUITES"),
)
"""The variables that a server and its Python models inherit: paths of programs and libraries, locale and time zone, and
settings of Python, CUDA, the engines and their thread pools. Not credentials for clouds, package indexes, proxies and
model hubs: Triton reads a local folder and connects to nothing."""
_SITE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class LaunchEnvironment:
    """The backends' folder for `--backend-directory`, None for Triton's own, and the environment variables."""

    backends: Path | None
    variables: dict[str, str]


def inherited_variables(own: Mapping[str, str], further: Collection[str] = ()) -> dict[str, str]:
    """Return the variables of this process that a server inherits: a fixed list, and those named in `further`."""
    return {
        name: value
        for name, value in own.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES) or name in further
    }


def prepare(
    install: TritonInstall, folder: Path, variables: Mapping[str, str], *, backend_directory: Path | None = None
) -> LaunchEnvironment:
    """Lay out in the empty `folder`, which must stay as long as the server runs, what `install` lacks.

    `backend_directory` holds backends to use beside Triton's own. libpython gets a folder of its own, so that the other
    libraries beside it do not take the place of Triton's.
    """
    environment = dict(variables)
    libraries = list(install.libraries)
    if install.libpython is not None:
        libraries.append(folder / "lib")
        libraries[-1].mkdir()
        (libraries[-1] / install.libpython.name).symlink_to(install.libpython)
    _prepend(environment, "LD_LIBRARY_PATH", libraries)
    if install.own_python:
        _prepend(environment, "PATH", [_python(folder / "python")])
    backends = install.backends
    if install.stub is not None or backend_directory is not None:
        found = available_backends(install, backend_directory)
        backends = _link_backends(found, folder / "backends", stub=install.stub)
    return LaunchEnvironment(backends, environment)


def available_backends(install: TritonInstall, further: Path | None) -> dict[str, Path]:
    """Return the folders of backends by name: Triton's own and those in `further`, which take precedence.

    Raises InputError where `further` holds no backend.
    """
    own = _backends(install.backends or _DEFAULT_BACKENDS)
    if further is None:
        return own
    added = _backends(further)
    if not added:
        raise InputError(
            f"{further} holds no Triton backend: expected a folder such as onnxruntime/ with a "
            "libtriton_onnxruntime.so",
            path=further,
        )
    return own | added


def check_backends(repository: Path, models: Sequence[str], install: TritonInstall, backends: Iterable[str]) -> None:
    """Raise ServerError where a model needs a backend that is not among `backends`.

    Triton's own error, "unable to find backend library", names neither the cause nor a remedy. Configs that cannot be
    read are left to Triton.
    """
    if not (install.backends or _DEFAULT_BACKENDS).is_dir():
        return  # only Triton knows its backends
    needed: dict[str, list[str]] = {}
    for model in models:
        name = _backend(repository / model)
        if name is not None and name not in backends:
            needed.setdefault(name, []).append(model)
    if needed:
        listed = "; ".join(f"{', '.join(names)}: backend {backend}" for backend, names in needed.items())
        raise ServerError(
            f"models of {repository} need backends that Triton from {install.origin} does not have ({listed}; it has "
            f"{', '.join(sorted(backends)) or 'none'}). A repository of `twinspire build --runtime container` is for "
            "NVIDIA's container: build it again with --runtime wheel, or name the folder that holds the backend with "
            "--backend-directory"
        )


def _backends(folder: Path) -> dict[str, Path]:
    """List the backends of a folder: folders with a `libtriton_NAME.so`, or with the `model.py` of a Python backend."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        entry.name: entry.resolve()
        for entry in entries
        if (entry / f"libtriton_{entry.name}.so").is_file() or (entry / "model.py").is_file()
    }


def _backend(model: Path) -> str | None:
    """Return the backend that a model's config names, None where it names none or cannot be read."""
    try:
        return read_config(model).backend or None
    except InputError:
        return None


def _link_backends(backends: Mapping[str, Path], target: Path, *, stub: Path | None) -> Path:
    """Make the folder `target` of links to `backends`, with `stub` where the Python backend looks for it."""
    target.mkdir()
    for name, folder in backends.items():
        if stub is None or name != "python":
            (target / name).symlink_to(folder)
            continue
        # Copies, 1.4 MB: Triton rejects a link where a backend written in Python names this one as its runtime.
        shutil.copytree(folder, target / name)
        shutil.copy(stub, target / name)
    return target


def _python(folder: Path) -> Path:
    """Make a virtual environment in which Python models can import what this process can; return its `bin`.

    The stub starts its interpreter isolated (seen in 2.51): it ignores PYTHONPATH, PYTHONHOME and the like. But as
    every Python it reads the `pyvenv.cfg` of the `python3` on PATH, and that environment's `.pth` files.
    """
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text(
        f"home = {Path(sys.base_prefix) / 'bin'}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    paths = [path for path in map(Path, sys.path) if path.is_absolute() and path.is_dir()]
    lines = [
        "import sys; sys.dont_write_bytecode = True",  # do not write into the repository
        f"import sys; sys.path[:] = dict.fromkeys([*{_own_folders()!r}, *sys.path])",
        # `addsitedir` reads the folder's own .pth files, which editable installations need.
        *(f"import site; site.addsitedir({str(path)!r})" for path in paths if path.name in _SITE_FOLDERS),
        *(str(path) for path in paths if path.name not in _SITE_FOLDERS),
    ]
    (site / "twinspire.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "bin"


def _own_folders() -> list[str]:
    """List the folders that hold twinspire's own packages, also those of an editable installation."""
    folders = []
    for name in ("twinspire", "twinspire_server"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        folders += [str(Path(path).parent) for path in spec.submodule_search_locations or []]
    return list(dict.fromkeys(folders))


def _prepend(environment: dict[str, str], name: str, folders: list[Path]) -> None:
    before = [environment[name]] if environment.get(name) else []
    if folders or before:
        environment[name] = os.pathsep.join([*map(str, folders), *before])
