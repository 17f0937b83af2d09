"""The IPv4 addresses that a server's services listen on."""

from __future__ import annotations

import ipaddress

from twinspire.errors import InputError

LOOPBACK = "127.0.0.1"
_ALL = "0.0.0.0"  # noqa: S104


def checked_address(host: str) -> str:
    """Return the address. A name is refused: each of Triton's services would look it up in its own way."""
    try:
        return str(ipaddress.IPv4Address(LOOPBACK if host == "localhost" else host))
    except ValueError:
        raise InputError(f"cannot listen on {host!r}: expected an IPv4 address, such as {LOOPBACK} or {_ALL}") from None


def is_open(host: str) -> bool:
    """Whether other machines reach what listens on an address."""
    return not ipaddress.IPv4Address(host).is_loopback


def reached_at(host: str) -> str:
    """Return the address under which this machine reaches what listens on `host`."""
    return LOOPBACK if host == _ALL else host
