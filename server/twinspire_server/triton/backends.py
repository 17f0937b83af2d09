"""Triton's backends: which ones an installation has, which ones a repository needs, and adding further ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from twinspire.errors import InputError, ServerError
from twinspire_server.repository.model_config import read_config
from twinspire_server.triton.locate import TritonInstall

_DEFAULT = Path("/opt/tritonserver/backends")
"""Where a `tritonserver` looks that has no folder of backends beside it."""


def available_backends(install: TritonInstall, further: Path | None) -> dict[str, Path]:
    """Return the folders of Triton's own backends and of those in the folder `further`, which come first, by name.

    Raises InputError where `further` holds no backend.
    """
    own = _backends(install.backends or _DEFAULT)
    if further is None:
        return own
    added = _backends(further)
    if not added:
        raise InputError(
            f"{further} holds no Triton backend: expected a folder such as onnxruntime/ with a libtriton_onnxruntime.so"
        )
    return own | added


def link_backends(backends: dict[str, Path], made: Path, *, stub: Path | None = None) -> Path:
    """Make the folder `made` of links to `backends`, with `stub` where the Python backend looks for it."""
    made.mkdir()
    for name, folder in backends.items():
        if stub is None or name != "python":
            (made / name).symlink_to(folder)
            continue
        # Copies, 1.4 MB: Triton refuses a link where a backend made in Python names this one as its runtime.
        shutil.copytree(folder, made / name)
        shutil.copy(stub, made / name)
    return made


def check_backends(repository: Path, models: Sequence[str], install: TritonInstall, backends: Iterable[str]) -> None:
    """Raise ServerError where a model needs a backend that is not among `backends`.

    Triton would say "unable to find backend library" and name neither the cause nor a way out. Configs that cannot be
    read are left to it.
    """
    if not (install.backends or _DEFAULT).is_dir():
        return  # what Triton has is not known
    needed: dict[str, list[str]] = {}
    for model in models:
        name = _backend(repository / model)
        if name is not None and name not in backends:
            needed.setdefault(name, []).append(model)
    if needed:
        told = "; ".join(f"{', '.join(names)}: backend {backend}" for backend, names in needed.items())
        raise ServerError(
            f"models of {repository} need backends that Triton from {install.origin} does not have ({told}; it has "
            f"{', '.join(sorted(backends)) or 'none'}). A repository of `twinspire build --runtime container` is for "
            "NVIDIA's container: build it again with --runtime wheel, or name the folder that holds the backend with "
            "--backend-directory"
        )


def _backends(folder: Path) -> dict[str, Path]:
    """List the backends of a folder: folders with a `libtriton_NAME.so`, or the `model.py` of one made in Python."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        entry.name: entry.resolve()
        for entry in entries
        if (entry / f"libtriton_{entry.name}.so").is_file() or (entry / "model.py").is_file()
    }


def _backend(model: Path) -> str | None:
    """Return the backend that a model's config names, None where it names none or is not readable."""
    try:
        return read_config(model).backend or None
    except InputError:
        return None
