"""The flags with which twinspire starts `tritonserver`, here and in the container."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from twinspire.errors import InputError
from twinspire_server.triton.addresses import LOOPBACK
from twinspire_server.triton.admin import admin_flags

EXIT_TIMEOUT_S = 10
"""How long requests in flight may take to finish when the server is told to end."""
_FLAG = re.compile(r"(?:--)?(?P<name>[a-z][a-z0-9-]*)(?P<value>=.*)?", re.DOTALL)
_TLS = "the TLS of gRPC is set by --tls-certificate, --tls-key and --tls-ca"
_SERVICES = "twinspire asks all three services whether the server is ready"
_RESTRICTED = "twinspire keeps these parts of the API for itself: SECURITY.md"
_LOADED = "twinspire loads every model at the start and none later"
_OWN = {
    "id": "twinspire tells its own server from others by it",
    "model-repository": "the repository is the command's argument",
    "model-store": "the repository is the command's argument",
    "model-control-mode": _LOADED,
    "load-model": _LOADED,
    "exit-on-error": "a server with a model that did not load would count as ready",
    "strict-readiness": "a server with a model that did not load would count as ready",
    "disable-auto-complete-config": "twinspire's configs are complete",
    "strict-model-config": "twinspire's configs are complete",
    "exit-timeout-secs": "twinspire kills a server that takes longer",
    "http-address": f"HTTP is for this machine alone, {LOOPBACK}: SECURITY.md",
    "http-port": "the port is set by --http-port",
    "grpc-address": "the address is set by --host",
    "grpc-port": "the port is set by --grpc-port",
    "reuse-grpc-port": "it is set by --reuse-grpc-port",
    "metrics-address": "the address is set by --metrics-host",
    "metrics-port": "the port is set by --metrics-port",
    "allow-http": _SERVICES,
    "allow-grpc": _SERVICES,
    "allow-metrics": _SERVICES,
    "http-restricted-api": _RESTRICTED,
    "grpc-restricted-protocol": _RESTRICTED,
    "grpc-use-ssl": _TLS,
    "grpc-use-ssl-mutual": _TLS,
    "grpc-server-cert": _TLS,
    "grpc-server-key": _TLS,
    "grpc-root-cert": _TLS,
    "log-file": "the log is set by --log-file",
    "log-error": "the reason why a server fails is read from its log",
    "backend-directory": "twinspire lays the backends out: see --backend-directory of `twinspire serve`",
    "allow-sagemaker": "it opens another HTTP service: SECURITY.md",
    "allow-vertex-ai": "it opens another HTTP service: SECURITY.md",
}
"""The flags that are not passed on, and why."""


def flags(
    repository: PurePath,
    *,
    key: str,
    host: str = LOOPBACK,
    metrics_host: str = LOOPBACK,
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
) -> list[str]:
    """List the flags of a server for `repository`; `host` is for gRPC, `key` opens what is restricted.

    HTTP listens on this machine alone: a body of many small chunks takes 170 times its size in memory (2.51), on any
    endpoint, before anything asks for the key.

    All models are loaded at the start and none later; one that fails ends the server; ready means that all of them
    are. Nothing is guessed about a model: without `--disable-auto-complete-config` Triton starts each Python model once
    more just to ask it for its config, 1.2 s each.
    """
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
        *admin_flags(key),
    ]


def local_flags(*, server_id: str, backends: Path | None, shm_prefix: str) -> list[str]:
    """List what a server that this process watches gets on top: its name, its backends, its shared memory's name."""
    found = [f"--backend-directory={backends}"] if backends is not None else []
    return [*found, f"--id={server_id}", f"--backend-config=python,shm-region-prefix-name={shm_prefix}"]


def further_flags(given: Sequence[str]) -> list[str]:
    """Return flags that a user wants passed on, `NAME` or `NAME=VALUE`, with the dashes that Triton expects.

    Raises InputError for one that twinspire sets itself, and says why.
    """
    found = []
    for flag in given:
        match = _FLAG.fullmatch(flag)
        if match is None:
            raise InputError(f"Triton flag {flag!r}: expected NAME or NAME=VALUE, such as log-verbose=1")
        for name, reason in _OWN.items():
            if name.startswith(match["name"]):  # Triton takes unambiguous beginnings for the whole
                raise InputError(f"the Triton flag {flag!r}, --{name}, cannot be passed on: {reason}")
        if "shm-region-prefix-name" in (match["value"] or ""):
            raise InputError(
                f"the Triton flag {flag!r} cannot be passed on: twinspire removes shared memory by its prefix"
            )
        found.append(f"--{match['name']}{match['value'] or ''}")
    return found
