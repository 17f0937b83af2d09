"""The sample model in the package: small, and trained."""

from __future__ import annotations

from pathlib import Path

from twinspire.errors import BundleError

__all__ = ["sample_bundle"]

_FOLDER = Path(__file__).parent / "scenes"


def sample_bundle() -> Path:
    """Return the folder of the bundle `scenes`. Raises BundleError where the installation has none."""
    if not _FOLDER.is_dir():
        raise BundleError(f"{_FOLDER} is missing: this installation has no sample bundle. Install twinspire again")
    return _FOLDER
