"""A Triton Inference Server on this machine: started, stopped and restarted."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from twinspire._arguments import as_list
from twinspire.errors import InputError, ServerError
from twinspire_server.repository.code import check_code
from twinspire_server.repository.config import CONFIG
from twinspire_server.triton.launch import LaunchOptions, ReadyServer, launch
from twinspire_server.triton.logs import ServerLog, checked_log
from twinspire_server.triton.options import ADMIN_HEADER, ServerTls, further_flags, trace_flags
from twinspire_server.triton.ports import LOOPBACK, Ports, checked_address, is_open, local_address
from twinspire_server.triton.process import TritonProcess, describe_status


class TritonServer:
    """A Triton Inference Server on this machine that serves one model repository; a context manager.

    `repository` is a folder of models; ports of 0 pick free ones. `host` is the IPv4 address that gRPC listens on and
    `metrics_host` that of the metrics; HTTP is for this machine alone. `tls` encrypts gRPC; an address that other
    machines reach needs it, or `insecure`. With `reuse_grpc_port` servers may share the gRPC port, so that one takes
    over from another without a break. Clients are asked to connect anew every `connection_age_s`, give or take 10%, so
    that they find the other one; None does not ask them. `log_file` is appended to; without one the log is a temporary
    file that is removed at the end, unless the server failed. `triton_flags` are passed on (`log-verbose=1`), as are
    the environment variables that `pass_env` names. `backend_directory` is a folder of further Triton backends, used
    beside its own.
    `access_log` is a file that the models append a line of JSON to for each request. `trace_url` is the OTLP address
    that Triton sends the spans of requests to whose clients trace them: `http://127.0.0.1:4318/v1/traces`. `open_http`
    opens inference over HTTP to programs of this machine, on a Triton without the known faults.
    The server does not outlive this process, however it ends. `start` may be called again after `stop`, and after the
    server died. Raises `InputError` for a repository without models, impossible ports, an open address without TLS, and
    flags that twinspire sets itself.
    """

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = LOOPBACK,
        metrics_host: str = LOOPBACK,
        tls: ServerTls | None = None,
        insecure: bool = False,
        reuse_grpc_port: bool = False,
        connection_age_s: float | None = None,
        log_file: Path | None = None,
        backend_directory: Path | None = None,
        ready_timeout_s: float = 120,
        triton_flags: Sequence[str] = (),
        pass_env: Sequence[str] = (),
        open_http: bool = False,
        access_log: Path | None = None,
        trace_url: str | None = None,
    ) -> None:
        self.repository = repository.absolute()
        self.models = check_repository(self.repository)
        self.host = checked_address(host)
        self.metrics_host = checked_address(metrics_host)
        self.tls = tls
        if is_open(self.host) and tls is None and not insecure:
            raise InputError(
                f"other machines can reach {self.host}, and connections would be neither encrypted nor authenticated: "
                "set up TLS (--tls-certificate, --tls-key, and --tls-ca to admit only known clients), or pass "
                "--insecure. SECURITY.md lists what strangers could do",
                option="insecure",
            )
        variables = as_list(pass_env, "environment variables")
        for name in variables:
            if "=" in name:
                raise InputError(
                    f"the environment variable {name!r}: expected a name alone, whose value is passed on",
                    option="pass_env",
                )
        self._options = LaunchOptions(
            repository=self.repository,
            models=self.models,
            host=self.host,
            metrics_host=self.metrics_host,
            tls=tls,
            reuse_grpc_port=reuse_grpc_port,
            connection_age_s=connection_age_s,
            further_flags=(*trace_flags(trace_url), *further_flags(as_list(triton_flags, "Triton flags"))),
            pass_env=tuple(variables),
            backend_directory=backend_directory.absolute() if backend_directory is not None else None,
            ready_timeout_s=ready_timeout_s,
            open_http=open_http,
            access_log=checked_log(access_log),
        )
        self._requested = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)
        self._log = ServerLog(log_file.absolute() if log_file is not None else None)
        self._process: TritonProcess | None = None
        self._ready: ReadyServer | None = None  # the last start that succeeded

    def start(self) -> Self:
        """Start the server and wait until all its models are ready.

        Raises `MissingDependencyError` or `ServerError` where no Triton is installed or it does not start, with
        Triton's own reason and the log's path; `ServerUnavailableError` where it is not ready in time; `InputError` for
        a host or log file that cannot be used, or a repository that another version of twinspire built. In all these
        cases no process is left.
        """
        if self.running:
            raise ServerError(
                f"the server of {self.repository} is running already, at {self.grpc_url}: stop it first",
                address=self.grpc_url,
            )
        check_code(self.repository)
        self.stop()  # what is left of one that died
        self._log.keep(False)
        self._start(self._requested)
        return self

    def candidate(self, repository: Path, *, aborted: threading.Event) -> TritonServer:
        """Return a server of another repository with this one's options, to try it out: it is not started yet.

        Only this machine reaches it, on free ports and without TLS. `aborted` ends its start with a ServerError.
        """
        options = {"host": LOOPBACK, "metrics_host": LOOPBACK, "tls": None, "reuse_grpc_port": False}
        return self._other(repository, Ports(http=0, grpc=0, metrics=0), aborted=aborted, **options)

    def successor(self, repository: Path, *, aborted: threading.Event) -> TritonServer:
        """Return a server of another repository that shares this one's gRPC port: it is not started yet.

        Raises InputError where this one does not share its port.
        """
        if not self._options.reuse_grpc_port:
            raise InputError("this server does not share its gRPC port: start it with reuse_grpc_port=True")
        return self._other(repository, Ports(http=0, grpc=self.ports.grpc, metrics=0), aborted=aborted)

    def adopt(self, successor: TritonServer) -> TritonServer:
        """Become a started successor; return what this one was, which still runs and is to be stopped."""
        former = copy.copy(self)
        for name in ("repository", "models", "_options", "_requested", "_log", "_process", "_ready"):
            setattr(self, name, getattr(successor, name))
        return former

    def restart(self) -> None:
        """Start the server again on its ports and with the same log; one that still runs is killed first.

        Raises what `start` raises.
        """
        self.kill()
        self._log.keep()
        self._start(self.ports)

    def kill(self) -> None:
        """End the server at once, without finishing its requests. Does nothing where it does not run."""
        if self._process is not None:
            self._process.end(kill=True)

    def stop(self, *, kill: bool = False) -> None:
        """End the server: requests in flight get 10 s to finish, then it is killed. Does nothing when called again.

        With `kill` it is killed at once.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        has_died = process.poll() is not None
        try:
            process.end(kill=kill)
        finally:
            if not has_died:
                self._log.discard()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the server has ended by itself; return its exit status, or 128 plus the signal that ended it.

        Raises `TimeoutError` where it still runs after `timeout_s`.
        """
        return self._started.wait(timeout_s)

    def ended_error(self, status: int) -> ServerError:
        """Return the error for a server that ended by itself with `status`, as `wait` returns it."""
        return ServerError(self._log.explain(f"Triton ended by itself ({describe_status(status)}):"))

    def warnings(self) -> list[str]:
        """List what other machines can do with this server, a sentence each; empty where they cannot reach it."""
        found = []
        if is_open(self.host) and (self.tls is None or self.tls.client_ca is None):
            read = "read and change requests, and " if self.tls is None else ""
            found.append(
                f"anybody who can reach {self.host} can {read}use the models, or crash a Triton older than 26.04 "
                "(SECURITY.md)"
            )
        if is_open(self.metrics_host):
            found.append(
                f"anybody who can reach {self.metrics_host} can read the metrics, or exhaust the server's memory"
            )
        return found

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def name(self) -> str:
        """The name that it reports to clients, of its own at each start: `twinspire-1a2b3c4d`."""
        return self._started.name

    @property
    def pid(self) -> int:
        """The process id of `tritonserver`."""
        return self._started.pid

    @property
    def ports(self) -> Ports:
        """The ports that it listens on."""
        return self._requested if self._ready is None else self._ready.ports

    @property
    def grpc_url(self) -> str:
        """The address of the gRPC service, as tritonclient expects it: `127.0.0.1:8001`."""
        return f"{local_address(self.host)}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """The address of the HTTP service, for this machine alone: `http://127.0.0.1:8000`."""
        return f"http://{LOOPBACK}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """The address of the metrics, in Prometheus' format: `http://127.0.0.1:8002/metrics`."""
        return f"http://{local_address(self.metrics_host)}:{self.ports.metrics}/metrics"

    @property
    def admin_headers(self) -> dict[str, str]:
        """The HTTP header that opens the restricted API: inference, statistics, configs and more.

        Every start has a key of its own.
        """
        return {ADMIN_HEADER: self._last_start.key}

    @property
    def version(self) -> str:
        """The version that Triton reports: `2.51.0`."""
        return self._last_start.version

    @property
    def origin(self) -> str:
        """The source of its `tritonserver`: a path, or the wheel with its version."""
        return self._last_start.origin

    @property
    def log_file(self) -> Path:
        """The file with the output of the server and its Python models."""
        return self._log.path

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _started(self) -> TritonProcess:
        assert self._process is not None, "start the server first"
        return self._process

    @property
    def _last_start(self) -> ReadyServer:
        assert self._ready is not None, "start the server first"
        return self._ready

    def _other(self, repository: Path, ports: Ports, **options: Any) -> TritonServer:  # noqa: ANN401 - of LaunchOptions
        other = copy.copy(self)
        other.repository, other.models = repository, check_repository(repository)
        other._options = replace(self._options, repository=other.repository, models=other.models, **options)
        other._requested, other._process, other._ready = ports, None, None
        other._log = ServerLog(None if self._log.is_temporary else self._log.path)
        return other

    def _start(self, ports: Ports) -> None:
        self._process = None
        self._ready = launch(self._options, ports, self._log)
        self._process = self._ready.process


def check_repository(repository: Path) -> tuple[str, ...]:
    """Return the names of a repository's models. Raises InputError where Triton cannot serve it."""
    if any(character.isspace() for character in str(repository)):
        # The Python backend hands the path to its processes in a command line that it splits at spaces: they die with
        # "stol", and the server waits for them.
        raise InputError(
            f"the path {repository} contains a space, which Triton does not support: rename the folder or link to it",
            path=repository,
        )
    if not repository.is_dir():
        raise InputError(
            f"{repository} is not a folder: expected a model repository, as `twinspire build` writes it",
            path=repository,
        )
    models = tuple(sorted(file.parent.name for file in repository.glob(f"*/{CONFIG}")))
    if not models:
        raise InputError(
            f"{repository} holds no model: expected a folder with a {CONFIG} per model, as `twinspire build` writes it",
            path=repository,
        )
    return models
