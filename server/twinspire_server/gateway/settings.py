"""Settings of a gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from twinspire._decode_mode import DecodeMode, as_decode
from twinspire.errors import InputError
from twinspire.towers import TlsOptions
from twinspire_server.gateway.safety.options import SafetyOptions


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """What a gateway serves, and its limits.

    Embeddings are computed by the Tritons at `servers` (HOST:PORT), over TLS with `server_tls`, or with `bundle`
    alone in this process. `bundle` beside `servers` saves asking them for the model's description. `index` is the
    folder or URI of the index that is searched; with neither `servers` nor `bundle` its own bundle computes in this
    process. The model is called by its bundle's name, or by one of `aliases`. `decode` is how images are decoded,
    as of `Client`: a DecodeMode or "auto". `uploads` is the folder for images that are added over HTTP, None to add
    none. `status_url` is the status port of `twinspire serve`. A request may have `max_inputs` texts and images;
    while `max_pending` of them are being computed or wait, further ones are refused. `host_names` are the names
    that the gateway may be called by, None for any.
    Raises InputError where there is nothing to serve, and for limits that exclude each other.
    """

    servers: tuple[str, ...] = ()
    bundle: Path | None = None
    server_tls: TlsOptions | None = None
    index: str | None = None
    aliases: tuple[str, ...] = ()
    decode: DecodeMode | str = DecodeMode.EXACT
    uploads: Path | None = None
    status_url: str | None = None
    max_inputs: int = 2048
    max_pending: int = 4096
    host_names: tuple[str, ...] | None = None
    safety: SafetyOptions = field(default_factory=SafetyOptions)

    def __post_init__(self) -> None:
        if not self.servers and self.bundle is None and self.index is None:
            raise InputError(
                "nothing to serve: name a server of models with --server, a bundle with --bundle, or an index with "
                "--index"
            )
        as_decode(self.decode, "--decode")
        if not 1 <= self.max_inputs <= self.max_pending:
            raise InputError(
                f"max_inputs {self.max_inputs}: expected from 1 to max_pending, {self.max_pending}", option="max_inputs"
            )
        if self.uploads is not None and (self.index is None or not self.uploads.is_dir()):
            problem = "needs --index" if self.index is None else "is no folder: create it first"
            raise InputError(f"--uploads {self.uploads} {problem}", option="--uploads", path=self.uploads)
        if self.status_url is not None and not _is_http(self.status_url):
            raise InputError(
                f"--status-url {self.status_url!r}: expected an address such as http://127.0.0.1:8003",
                option="--status-url",
            )


def _is_http(url: str) -> bool:
    try:
        address = urlsplit(url)
        return address.scheme == "http" and bool(address.hostname) and (address.port is None or address.port > 0)
    except ValueError:
        return False
