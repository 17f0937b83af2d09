"""Where a figure comes from: the commit and the versions that were measured."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Those that speed or results depend on.
PACKAGES = (
    "twinspire",
    "numpy",
    "pillow",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-openvino",
    "openvino",
    "nncf",
    "torch",
    "transformers",
    "faiss-cpu",
    "hnswlib",
    "usearch",
    "tritonclient",
    "nvidia-pytriton",
)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of `PACKAGES`, None of what is not installed. Imports none of them."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the repository that a file is part of, with `-dirty` where tracked files were changed.

    None where there is no git or the file is not tracked: a package installed inside somebody else's repository is not
    of that repository's commit.
    """
    folder = file.absolute().parent
    if _git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return f"{commit}-dirty" if changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None where it fails or is not there."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
