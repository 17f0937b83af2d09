"""`twinspire serve`: a model repository on a real Triton."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.shared import JsonOption, print_json, printable
from twinspire.errors import InputError
from twinspire_server.triton.canary import CanaryOptions

if TYPE_CHECKING:
    from twinspire_server.triton import ServerTls, TritonServer

_EXIT_TERMINATED = 128 + signal.SIGTERM

RepositoryArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The model repository, as `twinspire build` makes it.")
]


def register(app: typer.Typer) -> None:
    """Add `serve` to `app`."""
    app.command()(serve)


def serve(
    repository: RepositoryArgument = Path("model_repository"),
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The IPv4 address for gRPC; 0.0.0.0 for every network, IPv6 too, with TLS or --insecure.",
        ),
    ] = "127.0.0.1",
    metrics_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The IPv4 address for the metrics. HTTP is for this machine alone.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8002,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Encrypt gRPC with this server certificate and --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Private key of the server certificate.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Let in only clients whose certificate one of these has signed.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines connect without TLS; any of them may use the models.")
    ] = False,
    reuse_grpc_port: Annotated[
        bool,
        typer.Option(
            "--reuse-grpc-port",
            help="Listen on the port of a running server of the same models, which has this flag too, to replace it.",
        ),
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(help="Append the server's log to it; without, a temporary one is kept if the server fails."),
    ] = None,
    backend_directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of further Triton backends, such as onnxruntime/, for the server."),
    ] = None,
    ready_timeout: Annotated[float, typer.Option(min=1, help="Seconds that the models may take to load.")] = 120,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="How often a server that dies or hangs is started again without 10 minutes of serving in between.",
        ),
    ] = 10,
    canary_interval: Annotated[
        float, typer.Option(min=0, help="Seconds between the inferences that look for hung models; 0 for none.")
    ] = CanaryOptions.interval_s,
    triton_flag: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A further flag for tritonserver, such as log-verbose=1; repeatable."),
    ] = None,
    pass_env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further environment variable that the models may see; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a model repository with Triton until Ctrl-C or SIGTERM.

    A server that dies, loses the process of a model or hangs is started again, on the same ports. Once it serves,
    Ctrl-C and SIGTERM end it with status 0.

    Uses the tritonserver on PATH or the one in the wheel nvidia-pytriton, whichever is newer.
    """
    from twinspire_server.triton import Supervisor, TritonServer

    server = TritonServer(
        repository,
        host=host,
        metrics_host=metrics_host,
        tls=_tls(tls_certificate, tls_key, tls_ca),
        insecure=insecure,
        reuse_grpc_port=reuse_grpc_port,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_file=log_file,
        backend_directory=backend_directory,
        ready_timeout_s=ready_timeout,
        triton_flags=triton_flag or (),
        pass_env=pass_env or (),
    )
    supervisor = Supervisor(
        server,
        max_restarts=max_restarts,
        canary=CanaryOptions(interval_s=canary_interval) if canary_interval else None,
        report=lambda message: typer.echo(message, err=True),
    )
    for warning in server.warnings():
        typer.echo(f"warning: {warning}", err=True)
    ready = False
    with _signals_raise():
        try:
            with server:
                ready = True
                _announce(server, as_json=as_json)
                supervisor.run()
        except _Terminated:
            if not ready:
                raise typer.Exit(_EXIT_TERMINATED) from None
        except KeyboardInterrupt:
            if not ready:
                raise
    typer.echo("stopped", err=True)


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    from twinspire_server.triton import ServerTls

    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise InputError("TLS needs the server's --tls-certificate and its --tls-key: expected both")
    return ServerTls(certificate=certificate, key=key, client_ca=client_ca)


def _announce(server: TritonServer, *, as_json: bool) -> None:
    """Say where the server is."""
    if as_json:
        print_json(
            {
                "grpc": server.grpc_url,
                "http": server.http_url,
                "metrics": server.metrics_url,
                "log": printable(server.log_file),
                "pid": server.pid,
                "models": list(server.models),
                "triton_version": server.version,
                "triton_origin": server.origin,
            }
        )
        return
    typer.echo(f"Triton {server.version} ({server.origin}) serves {', '.join(server.models)}")
    for name, where in (
        ("gRPC", f"{server.grpc_url}{_openness(server)}"),
        ("HTTP", server.http_url),
        ("metrics", server.metrics_url),
        ("log", printable(server.log_file)),
    ):
        typer.echo(f"{name:<8} {where}")
    typer.echo("Ctrl-C ends it", err=True)


def _openness(server: TritonServer) -> str:
    """Say who reaches the gRPC service, and how, where that is not this machine in the clear."""
    found = ["every network of this machine"] if server.host == "0.0.0.0" else []  # noqa: S104 - compared only
    if server.tls is not None:
        found.append("TLS" if server.tls.client_ca is None else "TLS, known clients alone")
    return f" ({', '.join(found)})" if found else ""


class _Terminated(BaseException):
    """SIGTERM came; no `Exception`, so that nothing on the way takes it for a failure."""


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGINT unwind the program.

    Python's default for SIGTERM would end it on the spot, and a background job of a shell script ignores SIGINT.
    """

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, unwind),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
