"""A Triton Inference Server on this machine: finding, starting, supervising and stopping it.

The names below are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinspire._lazy import lazy_names

if TYPE_CHECKING:
    from twinspire_server.triton.canary import CanaryOptions
    from twinspire_server.triton.locate import TritonInstall, find_triton
    from twinspire_server.triton.options import ServerTls, flags
    from twinspire_server.triton.ports import Ports
    from twinspire_server.triton.server import TritonServer
    from twinspire_server.triton.supervisor import Supervisor

__all__ = ["CanaryOptions", "Ports", "ServerTls", "Supervisor", "TritonInstall", "TritonServer", "find_triton", "flags"]

__getattr__ = lazy_names(
    __name__,
    {
        "canary": ["CanaryOptions"],
        "locate": ["TritonInstall", "find_triton"],
        "options": ["ServerTls", "flags"],
        "ports": ["Ports"],
        "server": ["TritonServer"],
        "supervisor": ["Supervisor"],
    },
)
