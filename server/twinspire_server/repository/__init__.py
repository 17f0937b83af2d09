"""Model repositories: the folders that Triton loads, built from bundles.

The names below are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinspire._lazy import lazy_names
from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime

if TYPE_CHECKING:
    from twinspire_server.repository.build import build_repository
    from twinspire_server.repository.spec import BuiltModel, ModelSpec

__all__ = ["Accelerator", "BuiltModel", "Device", "ModelSpec", "RepositoryRuntime", "build_repository"]

__getattr__ = lazy_names(__name__, {"build": ["build_repository"], "spec": ["BuiltModel", "ModelSpec"]})
