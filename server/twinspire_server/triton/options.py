"""The flags with which twinspire starts `tritonserver`, here and in the container, and the key and TLS they set."""

from __future__ import annotations

import re
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from twinspire.errors import InputError
from twinspire.towers.triton.options import read_pem
from twinspire_server.triton.ports import LOOPBACK

EXIT_TIMEOUT_S = 10
"""How long requests in flight may take to finish when the server is asked to stop."""

ADMIN_HEADER = "twinspire-admin"
"""The header with the key that opens the restricted parts of a server's API.

Triton 2.51 can be crashed by a request to any HTTP endpoint that reads a body, lets anybody register shared memory of
other processes, and lets anybody change its logging and tracing (SECURITY.md). All of that needs the key.
"""
_RESTRICTED_GRPC = ("shared-memory", "logging", "trace", "model-repository")
_RESTRICTED_HTTP = (*_RESTRICTED_GRPC, "inference", "statistics", "model-config")
"""Over gRPC, inference and what clients ask about models stay open; over HTTP only health and names."""

HTTP_SINCE, HTTP_RELEASE = (2, 73), "26.09"
"""The first Triton whose HTTP inference may be opened, and its release. Requests to it crash or fill up earlier ones;
the last fault that is known: https://github.com/triton-inference-server/server/pull/8925"""

_FLAG = re.compile(r"(?:--)?(?P<name>[a-z][a-z0-9-]*)(?P<value>=.*)?", re.DOTALL)
_REASONS = {
    "twinspire recognises its server by it": "id",
    "the repository is the command's argument": "model-repository model-store",
    "twinspire loads every model at the start and none later": "model-control-mode load-model",
    "a server with a model that did not load would count as ready": "exit-on-error strict-readiness",
    "twinspire's configs are complete": "disable-auto-complete-config strict-model-config",
    "twinspire kills a server that takes longer": "exit-timeout-secs",
    f"HTTP is for this machine alone, {LOOPBACK}: SECURITY.md": "http-address",
    "the port is set by --http-port": "http-port",
    "the address is set by --host": "grpc-address",
    "the port is set by --grpc-port": "grpc-port",
    "it is set by --reuse-grpc-port": "reuse-grpc-port",
    "it is set by --connection-age": "grpc-max-connection-age",
    "the address is set by --metrics-host": "metrics-address",
    "the port is set by --metrics-port": "metrics-port",
    "twinspire asks all three services whether the server is ready": "allow-http allow-grpc allow-metrics",
    "twinspire restricts these parts of the API: SECURITY.md": "http-restricted-api grpc-restricted-protocol",
    "the TLS of gRPC is set by --tls-certificate, --tls-key and --tls-ca": (
        "grpc-use-ssl grpc-use-ssl-mutual grpc-server-cert grpc-server-key grpc-root-cert"
    ),
    "the log is set by --log-file": "log-file",
    "twinspire reads from the log why a server fails": "log-error",
    "it is set by --backend-directory of `twinspire serve`": "backend-directory",
    "it opens another HTTP service: SECURITY.md": "allow-sagemaker allow-vertex-ai",
}
_OWN = {name: reason for reason, names in _REASONS.items() for name in names.split()}
"""The flags that are not passed on, and why."""


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """TLS of a server's gRPC service; Triton 2.51 has none for HTTP. Each is the path of a PEM file.

    `certificate` and `key` are the server's own. With `client_ca`, clients must show a certificate that one of these
    has signed. Raises InputError for files that cannot be read and for a key of another certificate.
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
                "Expected a certificate in PEM and its private key without a password",
                path=self.key,
            ) from error
        try:
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except ssl.SSLError as error:
            raise InputError(
                f"the TLS file {self.client_ca} holds no certificate: {error}", path=self.client_ca
            ) from error

    def flags(self) -> list[str]:
        """List Triton's flags."""
        flags = ["--grpc-use-ssl=true", f"--grpc-server-cert={self.certificate}", f"--grpc-server-key={self.key}"]
        if self.client_ca is not None:
            flags += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_ca}"]
        return flags


def new_key() -> str:
    """Return a random key for the restricted parts of the API."""
    return secrets.token_hex(16)


def flags(
    repository: PurePath,
    *,
    key: str,
    host: str = LOOPBACK,
    metrics_host: str = LOOPBACK,
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    open_http: bool = False,
) -> list[str]:
    """List the flags of a server for `repository`; `host` is for gRPC, `key` opens what is restricted.

    With `open_http` inference over HTTP needs no key.

    HTTP listens on this machine alone: a body of many small chunks takes 170 times its size in memory (2.51), on any
    endpoint, before the key is checked.

    All models are loaded at the start and none later; one that fails ends the server; ready means that all of them
    are. Without `--disable-auto-complete-config` Triton would start each Python model once more to ask it for its
    config, 1.2 s each.
    """
    restricted_http = [api for api in _RESTRICTED_HTTP if not (open_http and api == "inference")]
    return [
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--http-address={LOOPBACK}",
        f"--http-port={http_port}",
        f"--grpc-address={host}",
        f"--grpc-port={grpc_port}",
        f"--metrics-address={metrics_host}",
        f"--metrics-port={metrics_port}",
        f"--http-restricted-api={','.join(restricted_http)}:{ADMIN_HEADER}={key}",
        f"--grpc-restricted-protocol={','.join(_RESTRICTED_GRPC)}:{ADMIN_HEADER}={key}",
    ]


def check_open_http(version: tuple[int, ...] | None, origin: str) -> None:
    """Raise InputError unless inference over HTTP may be opened on a Triton of this version, None where unknown."""
    if version is not None and version >= HTTP_SINCE:
        return
    found = "of unknown version" if version is None else ".".join(map(str, version))
    raise InputError(
        f"--open-http on Triton {found} ({origin}): expected {'.'.join(map(str, HTTP_SINCE))} (release "
        f"{HTTP_RELEASE}) or later, since HTTP requests crash earlier ones (SECURITY.md). Leave it out and use gRPC, "
        "put an HTTP gateway in front of gRPC, or put a newer tritonserver on PATH",
        option="open_http",
    )


def trace_flags(url: str | None) -> list[str]:
    """List the flags that send OpenTelemetry spans to an OTLP address over HTTP; none without one.

    With a rate of 0 Triton traces those requests alone that carry a trace's context (`traceparent`). Raises InputError
    for what is no address.
    """
    if url is None:
        return []
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"the trace address {url!r}: expected a URL of an OTLP collector, such as http://127.0.0.1:4318/v1/traces",
            option="trace_url",
        )
    settings = ("mode=opentelemetry", f"opentelemetry,url={url}", "level=TIMESTAMPS", "rate=0")
    return [f"--trace-config={setting}" for setting in settings]


def further_flags(values: Sequence[str]) -> list[str]:
    """Return a user's flags, `NAME` or `NAME=VALUE`, with the dashes that Triton expects.

    Raises InputError for one that twinspire sets itself, with the reason.
    """
    found = []
    for flag in values:
        match = _FLAG.fullmatch(flag)
        if match is None:
            raise InputError(
                f"Triton flag {flag!r}: expected NAME or NAME=VALUE, such as log-verbose=1", option="triton_flags"
            )
        for name, reason in _OWN.items():
            if name.startswith(match["name"]):  # Triton accepts unambiguous abbreviations
                raise InputError(
                    f"the Triton flag {flag!r}, --{name}, cannot be passed on: {reason}", option="triton_flags"
                )
        if "shm-region-prefix-name" in (match["value"] or ""):
            raise InputError(
                f"the Triton flag {flag!r} cannot be passed on: twinspire removes shared memory by its prefix",
                option="triton_flags",
            )
        found.append(f"--{match['name']}{match['value'] or ''}")
    return found
