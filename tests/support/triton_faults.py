"""The faults of Triton 2.51, the version of the wheel, that SECURITY.md lists and tests have to know."""

from __future__ import annotations

import signal

from twinspire_server.triton import TritonServer

# The first versions without the fault: 25.06 and 26.04.
FIXED_CANCELLATIONS, FIXED_STREAM_ERRORS = (2, 59), (2, 68)


def version(server: TritonServer) -> tuple[int, ...]:
    """Return the major and minor version of a running server."""
    return tuple(map(int, server.version.split(".")[:2]))


def is_killed(server: TritonServer) -> bool:
    """Whether the server has crashed, or does so within 10 s: it ended with SIGSEGV or SIGABRT."""
    try:
        return server.wait(10) in (128 + signal.SIGSEGV, 128 + signal.SIGABRT)
    except TimeoutError:  # it runs
        return False
