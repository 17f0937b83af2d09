"""TLS of a server's gRPC service: the files, checked before anything is started, and Triton's flags for them.

Triton 2.51 has no TLS for HTTP.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import InputError
from twinspire.towers.triton.options import read_pem


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """Encrypt gRPC. Each is the path of a PEM file.

    `certificate` and `key` are the server's own. With `client_ca`, clients too must show a certificate, one that these
    certificates have signed. Raises InputError for files that cannot be read and for a key of another certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        for name in ("certificate", "key", "client_ca"):
            path = getattr(self, name)
            if path is not None:
                read_pem(path)
                object.__setattr__(self, name, path.absolute())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise InputError(
                f"the TLS certificate {self.certificate} and the key {self.key} cannot be used together: {error}. "
                "Expected a certificate in PEM and its private key without a password"
            ) from error
        try:
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except ssl.SSLError as error:
            raise InputError(f"the TLS file {self.client_ca} holds no certificate: {error}") from error

    def flags(self) -> list[str]:
        """List Triton's flags."""
        flags = [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.key}",
        ]
        if self.client_ca is not None:
            flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        return flags
