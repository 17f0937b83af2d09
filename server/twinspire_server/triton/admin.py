"""The key that opens the parts of a server's API which are closed to everybody else.

Triton 2.51 can be crashed by a request to any HTTP endpoint that reads a body, lets anybody register shared memory of
other processes, and lets anybody change its logging and tracing (SECURITY.md). All of that asks for the key.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

HEADER = "twinspire-admin"
RESTRICTED_GRPC = ("shared-memory", "logging", "trace", "model-repository")
RESTRICTED_HTTP = (*RESTRICTED_GRPC, "inference", "statistics", "model-config")
"""Over gRPC, inference and what clients ask about models stay open; over HTTP, health and names alone."""

_ARG_START, _ARG_END = 47, 48
"""The fields of /proc/PID/stat that say where a process keeps its arguments, counted from 0: proc(5)."""


def new_key() -> str:
    """Draw a key."""
    return secrets.token_hex(16)


def admin_flags(key: str) -> list[str]:
    """List the flags of a server that keeps what is restricted for callers who send `key`."""
    return [
        f"--http-restricted-api={','.join(RESTRICTED_HTTP)}:{HEADER}={key}",
        f"--grpc-restricted-protocol={','.join(RESTRICTED_GRPC)}:{HEADER}={key}",
    ]


def mask_argument(pid: int, secret: str) -> None:
    """Overwrite `secret` in the arguments of a process started by this one, where /proc/PID/cmdline shows them to all.

    Triton takes the key as an argument alone and has its own copy as soon as it prints anything. Does nothing where the
    process is gone or the kernel does not allow it (Yama's ptrace_scope 2 and 3).
    """
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = ["", "", *stat.rpartition(")")[2].split()]  # the name before may hold spaces
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            place = arguments.find(secret.encode())
            while place >= 0:
                memory.seek(start + place)
                memory.write(b"*" * len(secret))
                place = arguments.find(secret.encode(), place + len(secret))
