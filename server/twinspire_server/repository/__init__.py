"""Model repositories: the folders that Triton loads, built from bundles.

The names below are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinspire_server.repository.build import build_repository
    from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime
    from twinspire_server.repository.spec import BuiltModel, ModelSpec

__all__ = ["Accelerator", "BuiltModel", "Device", "ModelSpec", "RepositoryRuntime", "build_repository"]

_HOMES = {"BuiltModel": "spec", "ModelSpec": "spec", "build_repository": "build"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type depends on the name (PEP 562)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'settings')}"), name)
    globals()[name] = value
    return value
