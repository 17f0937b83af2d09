"""Addresses and ports of a server's three services: checked before anything is loaded, free ones picked."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import ExitStack
from dataclasses import dataclass, fields

from twinspire._arguments import as_whole
from twinspire.errors import InputError, ServerError

LOOPBACK = "127.0.0.1"
_ALL = "0.0.0.0"  # noqa: S104


def checked_address(host: str) -> str:
    """Return an IPv4 address. A host name is an InputError: each of Triton's services would resolve it differently."""
    try:
        return str(ipaddress.IPv4Address(LOOPBACK if host == "localhost" else host))
    except ValueError:
        raise InputError(f"cannot listen on {host!r}: expected an IPv4 address, such as {LOOPBACK} or {_ALL}") from None


def is_open(host: str) -> bool:
    """Whether other machines can reach a service that listens on an address."""
    return not ipaddress.IPv4Address(host).is_loopback


def local_address(host: str) -> str:
    """Return the address at which this machine reaches a service that listens on `host`."""
    return LOOPBACK if host == _ALL else host


@dataclass(frozen=True)
class Ports:
    """The port numbers of a server's three services; 0 picks a free one."""

    http: int
    grpc: int
    metrics: int

    def __post_init__(self) -> None:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, number in named.items():
            as_whole(number, f"{name}_port", minimum=0, maximum=65535)
        numbers = [number for number in named.values() if number]
        if len(set(numbers)) < len(numbers):
            listed = ", ".join(f"{name} {number}" for name, number in named.items())
            raise InputError(f"two services have the same port ({listed}): expected three different ones, or 0")

    def claim(self, host: str, metrics_host: str = LOOPBACK, *, reuse_grpc: bool = False) -> Ports:
        """Return these ports with free ones in place of 0; `host` is where gRPC listens, HTTP does on loopback.

        With `reuse_grpc` the gRPC port may be that of another server which shares it. Nothing reserves them afterwards:
        another program may still take one. Raises `ServerError` where a port is taken or not allowed, and `InputError`
        where an address is no IPv4 address of this machine.
        """
        hosts = {"http": LOOPBACK, "grpc": host, "metrics": metrics_host}
        picked = {}
        with ExitStack() as held:  # all at once, so that they differ
            for field in sorted(fields(self), key=lambda field: getattr(self, field.name) == 0):
                number = getattr(self, field.name)
                host_of = hosts[field.name]
                if field.name == "grpc" and reuse_grpc:  # listening, it would receive connections for the other server
                    bound = held.enter_context(bound_socket(field.name, host_of, number, shared=True))
                else:
                    bound = held.enter_context(listening_socket(field.name, host_of, number))
                picked[field.name] = bound.getsockname()[1]
        return Ports(**picked)


def bound_socket(name: str, host: str, port: int, *, shared: bool = False, reuse_address: bool = True) -> socket.socket:
    """Return a TCP socket bound to an address; `shared` lets other sockets that share the port have it too.

    With `reuse_address`, as Triton binds, connections that were closed a moment ago do not count as taking the port.
    Raises as `Ports.claim` does.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise bind_error(error, name, port, host) from error
    return bound


def listening_socket(name: str, host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens on an address. Raises as `Ports.claim` does."""
    bound = bound_socket(name, host, port)
    try:
        bound.listen()
    except OSError as error:
        bound.close()
        raise bind_error(error, name, port, host) from error
    return bound


def reserve_port(name: str, host: str, port: int, *, shared: bool) -> socket.socket:
    """Bind a port for servers that will share it, and keep other programs from taking it until `close`.

    The socket does not listen, so that it receives no connections. A port of 0 picks a free one. `shared`: other
    servers that share the port may have it already. Raises as `Ports.claim` does.
    """
    try:
        reserved = bound_socket(name, host, port, shared=shared, reuse_address=False)
    except ServerError:  # taken, or by nothing but connections that were closed a moment ago
        reserved = bound_socket(name, host, port, shared=shared)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def port_taken_error(name: str, number: int, host: str) -> ServerError:
    """Return the error for a port that another program listens on."""
    share = ", or start both with --reuse-grpc-port" if name == "grpc" else ""
    return ServerError(
        f"the {name} port {number} on {host} is taken by another program, perhaps another server: stop that one, "
        f"choose another port with --{name}-port, where 0 picks a free one{share}",
        address=f"{host}:{number}",
    )


def bind_error(error: OSError, name: str, number: int, host: str) -> ServerError | InputError:
    """Return the error for a port of the service `name` that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return port_taken_error(name, number, host)
    if error.errno in (errno.EACCES, errno.EPERM):
        return ServerError(f"the {name} port {number} needs rights that this user lacks: choose one of 1024 or above")
    return InputError(
        f"cannot listen on {host}: {error.strerror or error}. Expected an IPv4 address of this machine: {LOOPBACK} for "
        f"this machine alone, {_ALL} for every network it is on"
    )
