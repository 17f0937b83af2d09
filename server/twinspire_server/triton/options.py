"""The flags with which twinspire starts `tritonserver`, here and in the container."""

from __future__ import annotations

from pathlib import Path, PurePath

EXIT_TIMEOUT_S = 10
"""How long requests in flight may take to finish when the server is told to end."""


def flags(
    repository: PurePath,
    *,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    exit_timeout_s: int = EXIT_TIMEOUT_S,
) -> list[str]:
    """List the flags of a server for `repository`.

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
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--http-address={host}",
        f"--http-port={http_port}",
        f"--grpc-address={host}",
        f"--grpc-port={grpc_port}",
        f"--metrics-address={host}",
        f"--metrics-port={metrics_port}",
    ]


def local_flags(*, server_id: str, backends: Path | None, shm_prefix: str) -> list[str]:
    """List what a server that this process watches gets on top: its name, its backends, its shared memory's name."""
    found = [f"--backend-directory={backends}"] if backends is not None else []
    return [*found, f"--id={server_id}", f"--backend-config=python,shm-region-prefix-name={shm_prefix}"]
