"""What a server's process finds around it: the temporary folder with its backends, and its environment variables."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinspire_server.triton.locate import TritonInstall


@dataclass(frozen=True)
class Surroundings:
    """The backends' folder for `--backend-directory`, None for Triton's own, and the whole environment."""

    backends: Path | None
    environment: dict[str, str]


def prepare(install: TritonInstall, folder: Path, inherited: Mapping[str, str]) -> Surroundings:
    """Lay out in `folder`, which is empty and stays as long as the server, what `install` lacks.

    - The wheel's Python backend gets the stub of this Python beside it; files are linked, not copied.
    - libpython gets a folder of its own, so that nothing else of where it lies comes in the way of other libraries.
    - `python3` on PATH is this one: the stub takes its standard library and packages from there. The packages that are
      in use here, twinspire's own folder first, are on PYTHONPATH besides.
    """
    environment = dict(inherited)
    backends = install.backends
    if install.stub is not None and install.backends is not None:
        backends = folder / "backends"
        python = backends / "python"
        python.mkdir(parents=True)
        for file in (*(install.backends / "python").iterdir(), install.stub):
            (python / file.name).symlink_to(file)
    libraries = list(install.libraries)
    if install.libpython is not None:
        libraries.append(folder / "lib")
        libraries[-1].mkdir()
        (libraries[-1] / install.libpython.name).symlink_to(install.libpython)
    _prepend(environment, "LD_LIBRARY_PATH", libraries)
    if install.own_python:
        _prepend(environment, "PYTHONPATH", import_folders())
        beside = Path(sys.executable).parent
        if (beside / "python3").exists():
            _prepend(environment, "PATH", [beside])
        else:
            environment["PYTHONHOME"] = f"{sys.base_prefix}:{sys.base_exec_prefix}"
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a repository is never written to
    return Surroundings(backends, environment)


def import_folders() -> list[Path]:
    """List the folders that make twinspire and the packages it uses importable, an editable installation's too."""
    own = [Path(place).parent for name in ("twinspire", "twinspire_server") for place in _places(name)]
    site = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    return list(dict.fromkeys([*own, *site]))


def _places(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    return list(spec.submodule_search_locations or [])


def _prepend(environment: dict[str, str], name: str, folders: list[Path]) -> None:
    before = [environment[name]] if environment.get(name) else []
    if folders or before:
        environment[name] = os.pathsep.join([*map(str, folders), *before])
