"""Draining: letting the clients of a server that is being replaced move to the next one without losing a request.

Two servers share a port and the kernel deals new connections out to both. So the listening sockets of the old one are
shut down first. From then on a client that connects reaches the new one, and each client connects anew when the old
server closes its connection at the age of `--grpc-max-connection-age`, in HTTP/2's way: GOAWAY, which lets requests in
flight finish (https://github.com/grpc/proposal/blob/master/A9-server-side-conn-mgt.md). Triton itself would stop
answering on open connections before it closes them: 2.3 s in which every request fails (2.51, sample bundle).
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

_PIDFD_GETFD = 438  # on every architecture, include/uapi/asm-generic/unistd.h
_ESTABLISHED, _LISTEN = "01", "0A"  # include/net/tcp_states.h


def stop_listening(pid: int, port: int) -> None:
    """Shut down a server's listening sockets of a TCP port; its connections stay open.

    Raises OSError where the kernel does not give the sockets out: before Linux 5.6, with Yama's ptrace_scope 2 or 3, or
    where a container's seccomp profile forbids `pidfd_getfd`.
    """
    process = os.pidfd_open(pid)
    try:
        for number in _sockets(pid, port, _LISTEN):
            with closing(_copy(process, number)) as listener:
                listener.shutdown(socket.SHUT_RD)
    finally:
        os.close(process)


def count_connections(pid: int, port: int) -> int:
    """Count a server's open connections of a TCP port; 0 where its process has ended."""
    return sum(1 for _ in _sockets(pid, port, _ESTABLISHED))


def _sockets(pid: int, port: int, state: str) -> Iterator[int]:
    """Yield the file descriptors of a process's TCP sockets of a local port in a state."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):  # a kernel without IPv6
            for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == state and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                if os.readlink(entry.path) in inodes:  # noqa: PTH115 - a socket's name is no path
                    yield int(entry.name)


def _copy(process: int, number: int) -> socket.socket:
    """Return the socket that another process has under a file descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    copied = libc.syscall(_PIDFD_GETFD, process, number, 0)
    if copied < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return socket.socket(fileno=copied)
