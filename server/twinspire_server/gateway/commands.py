"""`twinspire gateway`: serve embeddings and search over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinspire._decode_mode import DECODE_HELP
from twinspire.cli.client_options import with_options
from twinspire.errors import MissingDependencyError
from twinspire_server.gateway.safety.options import SafetyOptions


@with_options(SafetyOptions)
def gateway(
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Triton that computes, as `twinspire serve` starts it; repeatable."),
    ] = None,
    server_tls_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Connect to --server over TLS; verify it by these certificates.")
    ] = None,
    server_tls_certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Client certificate for --server, with --server-tls-key.")
    ] = None,
    server_tls_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Private key of the client certificate.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Without --server: the bundle to compute with in this process."),
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="INDEX", help="Folder of the index to search, or URI of another store.")
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name of the model in requests than its bundle's; repeatable."),
    ] = None,
    decode: Annotated[str, typer.Option(help=DECODE_HELP)] = "exact",
    uploads: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for images that are added over HTTP, with a key. Default: none are."),
    ] = None,
    status_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Status port of `twinspire serve`, shown by /v1/status: http://127.0.0.1:8003."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; others than loopback need --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8080,
    *,
    safety: SafetyOptions,
) -> None:
    """Serve embeddings over HTTP to existing clients (OpenAI's and others), and search of an index.

    Embeddings are computed by the Tritons at --server, or in this process: with --index alone by the index's bundle.
    Ctrl-C and SIGTERM stop it: what began is finished, and the exit status is 0.
    """
    from twinspire.towers import TlsOptions

    try:
        from twinspire_server.gateway.running import run
        from twinspire_server.gateway.settings import GatewaySettings
    except ImportError as error:
        raise MissingDependencyError(error.name or "fastapi", "gateway", "The gateway") from error
    tls_files = (server_tls_ca, server_tls_certificate, server_tls_key)
    settings = GatewaySettings(
        servers=tuple(server or ()),
        bundle=bundle,
        server_tls=None
        if tls_files == (None, None, None)
        else TlsOptions(
            root_certificates=server_tls_ca, client_certificate=server_tls_certificate, client_key=server_tls_key
        ),
        index=index,
        aliases=tuple(alias or ()),
        decode=decode,
        uploads=uploads,
        status_url=status_url,
        safety=safety,
    )
    run(
        settings,
        host=host,
        port=port,
        announce=lambda url: typer.echo(f"gateway at {url}"),
        announce_metrics=lambda url: typer.echo(f"metrics at {url}"),
    )
