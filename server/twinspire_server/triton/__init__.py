"""A Triton Inference Server on this machine: finding, starting, supervising and stopping it.

The names below are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinspire._lazy import lazy_names

if TYPE_CHECKING:
    from twinspire_server.triton.accuracy import AccuracyCanary, CanaryResult
    from twinspire_server.triton.canary import CanaryOptions
    from twinspire_server.triton.locate import TritonInstall, find_triton
    from twinspire_server.triton.options import ServerTls, flags
    from twinspire_server.triton.ports import Ports
    from twinspire_server.triton.prober import Prober
    from twinspire_server.triton.server import TritonServer
    from twinspire_server.triton.supervisor import Supervisor
    from twinspire_server.triton.wrong_vectors import AccuracyOptions, Fault, OnWrong, ProbeResult

__all__ = [
    "AccuracyCanary",
    "AccuracyOptions",
    "CanaryOptions",
    "CanaryResult",
    "Fault",
    "OnWrong",
    "Ports",
    "ProbeResult",
    "Prober",
    "ServerTls",
    "Supervisor",
    "TritonInstall",
    "TritonServer",
    "find_triton",
    "flags",
]

__getattr__ = lazy_names(
    __name__,
    {
        "accuracy": ["AccuracyCanary", "CanaryResult"],
        "canary": ["CanaryOptions"],
        "locate": ["TritonInstall", "find_triton"],
        "options": ["ServerTls", "flags"],
        "ports": ["Ports"],
        "prober": ["Prober"],
        "server": ["TritonServer"],
        "supervisor": ["Supervisor"],
        "wrong_vectors": ["AccuracyOptions", "Fault", "OnWrong", "ProbeResult"],
    },
)
