"""What a server's process finds around it: the temporary folder with its backends, and its environment variables."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from twinspire_server.triton.backends import available_backends, link_backends
from twinspire_server.triton.locate import TritonInstall

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
"""What a server and its Python models get of this process's environment: where programs and libraries are, locale and
time zone, and what Python, CUDA, the engines and their thread pools are set with. Not the credentials that lie beside:
of clouds, package indexes, proxies and model hubs. Triton reads a local folder and asks nobody for anything."""
_SITE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class LaunchEnvironment:
    """The backends' folder for `--backend-directory`, None for Triton's own, and the whole environment."""

    backends: Path | None
    environment: dict[str, str]


def passed_on(inherited: Mapping[str, str], further: Collection[str] = ()) -> dict[str, str]:
    """Return the variables that a server gets: a fixed list, and those named in `further`."""
    return {
        name: value
        for name, value in inherited.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES) or name in further
    }


def prepare(
    install: TritonInstall, folder: Path, inherited: Mapping[str, str], *, backend_directory: Path | None = None
) -> LaunchEnvironment:
    """Lay out in `folder`, which is empty and stays as long as the server, what `install` lacks.

    `backend_directory` holds backends to use beside Triton's own.

    libpython gets a folder of its own, so that nothing else of where it lies comes in the way of Triton's libraries.
    """
    environment = dict(inherited)
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
        backends = link_backends(found, folder / "backends", stub=install.stub)
    return LaunchEnvironment(backends, environment)


def _python(made: Path) -> Path:
    """Make a virtual environment in which Python models import what this process imports; return its `bin`.

    The stub starts its interpreter isolated (seen in 2.51): PYTHONPATH, PYTHONHOME and the like mean nothing to it. But
    as every Python it looks for the `pyvenv.cfg` of the `python3` on PATH, and for that environment's `.pth` files.
    """
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python3").symlink_to(sys.executable)
    (made / "pyvenv.cfg").write_text(
        f"home = {Path(sys.base_prefix) / 'bin'}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    site = made / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    places = [place for place in map(Path, sys.path) if place.is_absolute() and place.is_dir()]
    lines = [
        "import sys; sys.dont_write_bytecode = True",  # a repository is never written to
        f"import sys; sys.path[:] = dict.fromkeys([*{_own_folders()!r}, *sys.path])",
        # A site's own .pth files count too: editable installations have them.
        *(f"import site; site.addsitedir({str(place)!r})" for place in places if place.name in _SITE_FOLDERS),
        *(str(place) for place in places if place.name not in _SITE_FOLDERS),
    ]
    (site / "twinspire.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made / "bin"


def _own_folders() -> list[str]:
    """List the folders that twinspire's own packages lie in, an editable installation's too."""
    folders = []
    for name in ("twinspire", "twinspire_server"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        folders += [str(Path(place).parent) for place in spec.submodule_search_locations or []]
    return list(dict.fromkeys(folders))


def _prepend(environment: dict[str, str], name: str, folders: list[Path]) -> None:
    before = [environment[name]] if environment.get(name) else []
    if folders or before:
        environment[name] = os.pathsep.join([*map(str, folders), *before])
