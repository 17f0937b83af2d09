"""How a server is reached: its address, deadlines and TLS."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import InputError

LONGEST_DEADLINE_S = 1e9
"""30 years: gRPC takes what overflows its clock for a deadline that has passed."""

_ADDRESS = re.compile(r"(?P<host>[^\s/:\[\]]+|\[[0-9a-fA-F:.%\w]+\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """Encrypt the connection. Each is the path of a PEM file.

    `root_certificates` are those that the server's certificate is checked against, None is gRPC's own list.
    `client_key` and `client_certificate` are shown to a server that asks who calls: both or neither.

    Raises InputError where only one of these two is given.
    """

    root_certificates: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    client_certificate: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.client_key is None) != (self.client_certificate is None):
            raise InputError("TLS with one of client_key and client_certificate: expected both, or neither")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Read the files: root certificates, key, certificate. Raises InputError that names what is unreadable."""
        paths = (self.root_certificates, self.client_key, self.client_certificate)
        root, key, certificate = (None if path is None else read_pem(path) for path in paths)
        return root, key, certificate


def checked_address(url: str) -> str:
    """Return `url` if it is `host:port`. Raises InputError otherwise, which says what to write."""
    match = _ADDRESS.fullmatch(url) if isinstance(url, str) else None
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise InputError(
            f"the server's address {url!r}: expected host:port of its gRPC service without a scheme, such as "
            "127.0.0.1:8001 or [::1]:8001"
        )
    return url


def read_pem(path: str | os.PathLike[str]) -> bytes:
    """Read a PEM file. Raises InputError where it cannot be read or holds no PEM."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"the TLS file {os.fspath(path)} cannot be read: {error.strerror or error}", path=path
        ) from error
    if b"-----BEGIN " not in data:  # gRPC would only log it and fail every call with another reason
        raise InputError(f"the TLS file {os.fspath(path)} holds no PEM: expected -----BEGIN and a type", path=path)
    return data
