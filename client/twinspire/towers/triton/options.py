"""Connection options of a server: its address, the longest deadline, TLS."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinspire._arguments import file_errors
from twinspire.errors import InputError

LONGEST_DEADLINE_S = 1e9
"""30 years: gRPC treats a deadline that overflows its clock as one that has passed."""

_ADDRESS = re.compile(r"(?P<host>[^\s/:\[\]]+|\[[0-9a-fA-F:.%\w]+\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """TLS of the connection. Each option is the path of a PEM file.

    The server's certificate is checked against `root_certificates`; None is gRPC's own list. `client_key` and
    `client_certificate`, both or neither, identify the client to a server that requires it.

    Raises InputError where only one of these two is given.
    """

    root_certificates: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    client_certificate: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.client_key is None) != (self.client_certificate is None):
            message = "TLS with one of client_key and client_certificate: expected both, or neither"
            raise InputError(message, option="client_certificate" if self.client_key else "client_key")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Read the files: root certificates, key, certificate. Raises InputError with the path of an unusable one."""
        root_certificates, key, certificate = (
            None if path is None else read_pem(path)
            for path in (self.root_certificates, self.client_key, self.client_certificate)
        )
        return root_certificates, key, certificate


def checked_address(url: str) -> str:
    """Return `url`. Raises InputError unless it is `host:port`."""
    match = _ADDRESS.fullmatch(url) if isinstance(url, str) else None
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise InputError(
            f"the server's address {url!r}: expected host:port of its gRPC service without a scheme, such as "
            "127.0.0.1:8001 or [::1]:8001",
            option="url",
        )
    return url


def checked_addresses(url: str | Sequence[str]) -> tuple[str, ...]:
    """Return one address or several as a tuple. Raises InputError unless each is `host:port` and given once."""
    addresses = (url,) if isinstance(url, str) or not isinstance(url, Sequence) else tuple(url)
    if not addresses:
        raise InputError("no server's address: expected one or more of host:port", option="url")
    for address in addresses:
        checked_address(address)
        if addresses.count(address) > 1:
            raise InputError(f"the server's address {address!r} was given twice: expected each once", option="url")
    return addresses


def read_pem(path: str | os.PathLike[str]) -> bytes:
    """Read a PEM file. Raises InputError with its path where it cannot be read or is not PEM."""
    with file_errors(f"the TLS file {os.fspath(path)} cannot be read", path):
        data = Path(path).read_bytes()
    if b"-----BEGIN " not in data:  # gRPC would only log it and fail every call for another reason
        raise InputError(
            f"the TLS file {os.fspath(path)} is not PEM: expected a line such as -----BEGIN CERTIFICATE-----", path=path
        )
    return data
