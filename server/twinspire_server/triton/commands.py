"""`twinspire serve` and `twinspire reload`: serve a model repository with Triton, and change what is served."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire._arguments import as_whole
from twinspire._termination import EXIT_TERMINATED
from twinspire.cli.shared import JsonOption, print_json, printable
from twinspire.errors import InputError
from twinspire_server.triton.canary import CanaryOptions
from twinspire_server.triton.wrong_vectors import AccuracyOptions, OnWrong

if TYPE_CHECKING:
    from twinspire_server.triton import ServerTls, TritonServer
    from twinspire_server.triton.serving import Serving

_EXIT_REFUSED = 1


def serve(
    repository: Annotated[
        Path, typer.Argument(metavar="DIR", help="Model repository, as `twinspire build` writes it.")
    ] = Path("model_repository"),
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="IPv4 address on which gRPC listens. 0.0.0.0: all networks, IPv6 too; needs TLS or --insecure.",
        ),
    ] = "127.0.0.1",
    metrics_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="IPv4 address for the metrics. HTTP always listens on 127.0.0.1.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port of HTTP; 0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC; 0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics; 0 picks a free one.")] = 8002,
    status_port: Annotated[
        int,
        typer.Option(help="Port of /metrics (all of them), /readyz and /livez, at --metrics-host; 0 picks a free one."),
    ] = 8003,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Encrypt gRPC with this server certificate; needs --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Private key of the server certificate.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Admit only clients with a certificate signed by one of these.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines connect without TLS and use the models.")
    ] = False,
    reuse_grpc_port: Annotated[
        bool,
        typer.Option(
            "--reuse-grpc-port", help="Share the gRPC port with another server of the same models that has this flag."
        ),
    ] = False,
    connection_age: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds after which a client is asked to connect anew, which moves it to the new server after a "
            "reload; 0: never.",
        ),
    ] = 30,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for copies of what is served. Default: .NAME.serving beside NAME."),
    ] = None,
    latest: Annotated[
        bool, typer.Option("--latest", help="Serve what was built last, not what was last served or reloaded.")
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(help="Append the server's log to this file. Default: a temporary file, kept if the server fails."),
    ] = None,
    access_log: Annotated[
        Path | None,
        typer.Option(help="Append a line of JSON to this file for each request: time, model, id, rows, times, status."),
    ] = None,
    trace_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send OpenTelemetry spans of traced requests to this OTLP address, http://HOST:4318/v1/traces.",
        ),
    ] = None,
    backend_directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of further Triton backends, such as onnxruntime/.")
    ] = None,
    ready_timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the models to load.")] = 120,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="Maximum number of restarts of a server that dies or hangs, counted anew after 10 minutes of serving.",
        ),
    ] = 10,
    canary_interval: Annotated[
        float, typer.Option(min=0, help="Seconds between test inferences, which detect hung models; 0: none.")
    ] = CanaryOptions.interval_s,
    accuracy_interval: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Seconds between probes, which detect wrong vectors; 0: none. "
            f"[default: {AccuracyOptions.interval_s:g}, 0 with --canary-interval 0]",
            show_default=False,
        ),
    ] = None,
    on_wrong: Annotated[
        OnWrong,
        typer.Option(help="What follows wrong vectors beside the alarm: nothing, one restart, or the server's end."),
    ] = OnWrong.ALARM,
    triton_flag: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Further flag for tritonserver, such as log-verbose=1; repeatable."),
    ] = None,
    open_http: Annotated[
        bool,
        typer.Option(
            "--open-http",
            help="Open inference over HTTP to programs of this machine; needs Triton 26.09 or later.",
        ),
    ] = False,
    pass_env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Further environment variable that the models may see; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a model repository with Triton until Ctrl-C or SIGTERM.

    A server that dies, loses the process of a model or hangs is restarted on the same ports. Once all models are
    loaded, Ctrl-C and SIGTERM stop it with exit status 0.

    Uses the tritonserver on PATH or the one in the wheel nvidia-pytriton, whichever is newer.
    """
    from twinspire_server.triton.serving import Serving

    as_whole(status_port, "--status-port", minimum=0, maximum=65535)
    if accuracy_interval is None and canary_interval:
        accuracy_interval = AccuracyOptions.interval_s
    ready = False
    with _signals_raise():
        try:
            with Serving(
                repository,
                state=state,
                latest=latest,
                http_port=http_port,
                grpc_port=grpc_port,
                metrics_port=metrics_port,
                status_port=status_port,
                host=host,
                metrics_host=metrics_host,
                reuse_grpc_port=reuse_grpc_port,
                connection_age_s=connection_age or None,
                max_restarts=max_restarts,
                canary=CanaryOptions(interval_s=canary_interval) if canary_interval else None,
                accuracy=AccuracyOptions(interval_s=accuracy_interval, on_wrong=on_wrong)
                if accuracy_interval
                else None,
                report=lambda message: typer.echo(message, err=True),
                tls=_tls(tls_certificate, tls_key, tls_ca),
                insecure=insecure,
                log_file=log_file,
                access_log=access_log,
                trace_url=trace_url,
                backend_directory=backend_directory,
                ready_timeout_s=ready_timeout,
                triton_flags=triton_flag or (),
                pass_env=pass_env or (),
                open_http=open_http,
            ) as serving:
                ready = True
                _announce(serving, as_json=as_json)
                serving.run()
        except _Terminated:
            if not ready:
                raise typer.Exit(EXIT_TERMINATED) from None
        except KeyboardInterrupt:
            if not ready:
                raise
    typer.echo("stopped", err=True)


def reload(
    repository: Annotated[
        Path, typer.Argument(metavar="DIR", help="Model repository that `twinspire serve` serves.")
    ] = Path("model_repository"),
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Return to what was served before the last reload.")
    ] = False,
    keep: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of earlier releases to keep for --rollback.")
    ] = 1,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder that `twinspire serve` was given as --state.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let a running `twinspire serve` take what was built last, without losing a request.

    The new models are loaded beside those that are served and have to answer the probes of their bundle. Where they do
    not, they are refused with exit status 1, and the server goes on as before.
    """
    from twinspire_server.triton.control import send_command
    from twinspire_server.triton.releases import releases_folder

    outcome = send_command(
        releases_folder(repository) if state is None else state,
        {"command": "reload", "rollback": rollback, "keep": keep},
        progress=lambda text: typer.echo(text, err=True),
        repository=repository,
    )
    if as_json:
        print_json(outcome)
    else:
        served = ", ".join(f"{model} version {version}" for model, version in outcome["serving"].items())
        if outcome["taken"]:
            typer.echo(f"serving {served} after {outcome['took_s']:.1f} s")
        else:
            typer.echo(f"refused, still serving {served}: {outcome['reason']}")
        for note in outcome["notes"]:
            typer.echo(f"warning: {note}", err=True)
    if not outcome["taken"]:
        raise typer.Exit(_EXIT_REFUSED)


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    from twinspire_server.triton import ServerTls

    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise InputError(
            "TLS needs the server's --tls-certificate and its --tls-key: expected both", option="tls_certificate"
        )
    return ServerTls(certificate=certificate, key=key, client_ca=client_ca)


def _announce(serving: Serving, *, as_json: bool) -> None:
    server = serving.server
    if as_json:
        print_json(
            {
                "grpc": server.grpc_url,
                "http": serving.http_url,
                "metrics": serving.metrics_url,
                "status": serving.status_url,
                "log": printable(server.log_file),
                "pid": server.pid,
                "models": list(server.models),
                "triton_version": server.version,
                "triton_origin": server.origin,
            }
        )
        return
    typer.echo(f"Triton {server.version} ({server.origin}) serves {', '.join(server.models)}")
    for name, address in (
        ("gRPC", f"{server.grpc_url}{_access(server)}"),
        ("HTTP", serving.http_url),
        ("metrics", serving.metrics_url),
        ("status", f"{serving.status_url}/metrics /readyz /livez"),
        ("log", printable(server.log_file)),
    ):
        typer.echo(f"{name:<8} {address}")
    typer.echo("stop it with Ctrl-C", err=True)


def _access(server: TritonServer) -> str:
    """Describe who can reach the gRPC service, and how, unless it is this machine alone without TLS."""
    found = ["every network of this machine"] if server.host == "0.0.0.0" else []  # noqa: S104 - compared only
    if server.tls is not None:
        found.append("TLS" if server.tls.client_ca is None else "TLS, only known clients")
    return f" ({', '.join(found)})" if found else ""


class _Terminated(BaseException):
    """SIGTERM was received. Not an `Exception`, so that no handler of failures catches it."""


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Raise an exception on SIGTERM and SIGINT, so that the program cleans up.

    Python's default for SIGTERM ends it at once, and a background job of a shell script ignores SIGINT.
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
