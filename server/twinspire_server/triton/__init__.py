"""A Triton Inference Server on this machine: finding, starting, supervising and stopping it.

The names below are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinspire_server.triton.canary import CanaryOptions
    from twinspire_server.triton.locate import TritonInstall, find_triton
    from twinspire_server.triton.options import ServerTls, flags
    from twinspire_server.triton.ports import Ports
    from twinspire_server.triton.server import TritonServer
    from twinspire_server.triton.supervisor import Supervisor

__all__ = [
    "CanaryOptions",
    "Ports",
    "ServerTls",
    "Supervisor",
    "TritonInstall",
    "TritonServer",
    "find_triton",
    "flags",
]

_HOMES = {
    "CanaryOptions": "canary",
    "Supervisor": "supervisor",
    "Ports": "ports",
    "ServerTls": "options",
    "TritonInstall": "locate",
    "TritonServer": "server",
    "find_triton": "locate",
    "flags": "options",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type depends on the name (PEP 562)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
