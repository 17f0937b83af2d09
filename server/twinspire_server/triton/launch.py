"""Starting `tritonserver` and waiting until it is ready; tried again where a start fails by chance."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import ServerError, ServerUnavailableError
from twinspire_server.repository.telemetry import ACCESS_LOG
from twinspire_server.triton import logs
from twinspire_server.triton.environment import available_backends, check_backends
from twinspire_server.triton.http import http_page
from twinspire_server.triton.locate import TritonInstall, find_triton, triton_version
from twinspire_server.triton.logs import ServerLog
from twinspire_server.triton.options import ServerTls, check_open_http, flags, new_key
from twinspire_server.triton.ports import LOOPBACK, Ports, local_address, port_taken_error
from twinspire_server.triton.process import TritonProcess, describe_status

_ATTEMPTS = 5
"""How often a start is tried: another program may take a picked port first, and Triton may abort by chance."""
_LOST_RACE = "boost::interprocess::lock_exception"
"""The exception of which a starting Triton 2.51 sometimes aborts: two threads of the Python backend use one shared
memory."""
_POLL_S = 0.05
_HTTP_TIMEOUT_S = 2.0
_TRITON_LINE = re.compile(r"^[IWE]\d{4} \d\d:", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What every start of one server has in common: see `TritonServer`. `aborted` ends a start, from another thread."""

    repository: Path
    models: tuple[str, ...]
    host: str
    metrics_host: str
    tls: ServerTls | None
    reuse_grpc_port: bool
    further_flags: tuple[str, ...]
    pass_env: tuple[str, ...]
    backend_directory: Path | None
    ready_timeout_s: float
    open_http: bool = False
    access_log: Path | None
    connection_age_s: float | None = None
    aborted: threading.Event | None = None


@dataclass(frozen=True, kw_only=True)
class ReadyServer:
    """A server that is ready: its process, ports and admin key, Triton's version and where it is installed."""

    process: TritonProcess
    ports: Ports
    key: str
    version: str
    origin: str


class _ChanceError(Exception):
    """A start that failed by chance: another program took the port of `service`, or Triton hit a race condition.

    `error` is the error to raise where there is no further attempt.
    """

    def __init__(self, error: ServerError, *, service: str | None = None) -> None:
        super().__init__(str(error))
        self.error, self.service = error, service


def launch(options: LaunchOptions, ports: Ports, log: ServerLog) -> ReadyServer:
    """Start a server on `ports`, of which those that are 0 are picked.

    Raises `MissingDependencyError` or `ServerError` where no Triton is installed or it does not start, with Triton's
    own reason and the log's path; `ServerUnavailableError` where it is not ready in time; `InputError` for an address
    or log that cannot be used. In all these cases no process is left.
    """
    install = find_triton()
    if options.open_http:
        check_open_http(triton_version(install), install.origin)
    backends = available_backends(install, options.backend_directory)
    check_backends(options.repository, options.models, install, backends)
    for attempt in range(1, _ATTEMPTS + 1):
        claimed = ports.claim(options.host, options.metrics_host, reuse_grpc=options.reuse_grpc_port)
        try:
            return _attempt(options, install, claimed, log)
        except _ChanceError as chance:
            is_final = attempt == _ATTEMPTS or (chance.service and getattr(ports, chance.service))
            if chance.service or not is_final:
                log.discard()
            if is_final:
                raise chance.error from None
    raise AssertionError("the last attempt returns or raises")


def _attempt(options: LaunchOptions, install: TritonInstall, ports: Ports, log: ServerLog) -> ReadyServer:
    """Start the server and return when it is ready. Raises `_ChanceError` where another attempt may succeed."""
    process: TritonProcess | None = None
    key = new_key()
    arguments = flags(
        options.repository,
        key=key,
        host=options.host,
        metrics_host=options.metrics_host,
        http_port=ports.http,
        grpc_port=ports.grpc,
        metrics_port=ports.metrics,
        open_http=options.open_http,
    )
    arguments += ["--reuse-grpc-port=true"] if options.reuse_grpc_port else []
    if options.connection_age_s is not None:
        arguments.append(f"--grpc-max-connection-age={round(options.connection_age_s * 1000)}")
    arguments += [*(options.tls.flags() if options.tls is not None else []), *options.further_flags]
    log.open()
    try:
        with log.path.open("ab") as file:
            logs.claim(file)
            process = TritonProcess(
                install,
                arguments,
                log=file,
                backend_directory=options.backend_directory,
                pass_env=options.pass_env,
                set_env={} if options.access_log is None else {ACCESS_LOG: str(options.access_log)},
            )
        version = _wait_until_ready(process, options, ports, key, log)
    except BaseException as error:
        if process is not None:
            process.end(kill=True)
        if not isinstance(error, ServerError | _ChanceError):  # those name the log
            log.discard()
        raise
    process.models_loaded()
    return ReadyServer(process=process, ports=ports, key=key, version=version, origin=install.origin)


def _wait_until_ready(process: TritonProcess, options: LaunchOptions, ports: Ports, key: str, log: ServerLog) -> str:
    """Wait until all services and models are ready; return Triton's version. Mask the key as soon as Triton has it."""
    deadline_s = time.monotonic() + options.ready_timeout_s
    is_masked = False
    while True:
        version = _ready_version(local_address(options.metrics_host), ports, process.name)
        if not is_masked and (version is not None or _has_read_arguments(log)):
            process.mask(key)
            is_masked = True
        status = process.poll()
        if status is not None:
            text = log.read()
            service = logs.taken_service(text)
            if service is not None:
                host = {"grpc": options.host, "metrics": options.metrics_host}.get(service, LOOPBACK)
                raise _ChanceError(port_taken_error(service, getattr(ports, service), host), service=service)
            summary = f"Triton did not start ({describe_status(status)}) on {options.repository}:"
            failure = ServerError(log.explain(summary))
            raise _ChanceError(failure) if _LOST_RACE in text else failure
        if version is not None:
            return version
        if options.aborted is not None and options.aborted.is_set():
            raise ServerError(f"the start of Triton on {options.repository} was interrupted")
        if time.monotonic() > deadline_s:
            limit = f"{options.ready_timeout_s:g} s (--ready-timeout)"
            raise ServerUnavailableError(
                log.explain(f"Triton was not ready within {limit} on {options.repository}:"),
                deadline_s=options.ready_timeout_s,
            )
        time.sleep(_POLL_S)


def _has_read_arguments(log: ServerLog) -> bool:
    """Whether Triton has printed a line of its own; unknown, so no, in a log that others may write to."""
    return log.is_temporary and _TRITON_LINE.search(log.read()) is not None


def _ready_version(metrics_address: str, ports: Ports, name: str) -> str | None:
    """Return the version of the server called `name` when all its services and models are ready, else None.

    Another server that took the HTTP port has another name. gRPC is started before HTTP, the metrics after it.
    """
    http = f"http://{LOOPBACK}:{ports.http}"
    if http_page(f"{http}/v2/health/ready", timeout_s=_HTTP_TIMEOUT_S) is None:
        return None
    try:
        about = json.loads(http_page(f"{http}/v2", timeout_s=_HTTP_TIMEOUT_S) or b"{}")
    except ValueError:
        return None
    metrics = http_page(f"http://{metrics_address}:{ports.metrics}/metrics", timeout_s=_HTTP_TIMEOUT_S)
    if about.get("name") != name or metrics is None or b"nv_" not in metrics:
        return None
    return str(about["version"])
