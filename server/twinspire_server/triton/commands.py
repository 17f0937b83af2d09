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

if TYPE_CHECKING:
    from twinspire_server.triton import TritonServer

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
        str, typer.Option(help="The IPv4 address to listen on; 0.0.0.0 for every network of this machine.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8002,
    log_file: Annotated[
        Path | None,
        typer.Option(help="Append the server's log to it; without, a temporary one is kept if the server fails."),
    ] = None,
    backend_directory: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of further Triton backends, such as onnxruntime/, for the server."),
    ] = None,
    ready_timeout: Annotated[float, typer.Option(min=1, help="Seconds that the models may take to load.")] = 120,
    as_json: JsonOption = False,
) -> None:
    """Serve a model repository with Triton until Ctrl-C or SIGTERM.

    Uses the tritonserver on PATH, else the one in the wheel nvidia-pytriton.
    """
    from twinspire_server.triton import TritonServer

    server = TritonServer(
        repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log_file=log_file,
        backend_directory=backend_directory,
        ready_timeout_s=ready_timeout,
    )
    ready = False
    with _signals_raise():
        try:
            with server:
                ready = True
                _announce(server, as_json=as_json)
                status = server.wait()
                raise server.failure(f"Triton ended by itself (status {status}):")
        except _Terminated:
            if not ready:
                raise typer.Exit(_EXIT_TERMINATED) from None
        except KeyboardInterrupt:
            if not ready:
                raise
    typer.echo("stopped", err=True)


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
        ("gRPC", server.grpc_url),
        ("HTTP", server.http_url),
        ("metrics", server.metrics_url),
        ("log", printable(server.log_file)),
    ):
        typer.echo(f"{name:<8} {where}")
    typer.echo("Ctrl-C ends it", err=True)


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
