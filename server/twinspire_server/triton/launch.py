"""A running Triton: started, waited for, ended, with nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from twinspire._arguments import as_list
from twinspire.errors import InputError, ServerError, ServerUnavailableError
from twinspire_server.triton import logs
from twinspire_server.triton.addresses import LOOPBACK, checked_address, is_open, reached_at
from twinspire_server.triton.admin import HEADER, new_key
from twinspire_server.triton.backends import available_backends, check_backends
from twinspire_server.triton.locate import TritonInstall, find_triton
from twinspire_server.triton.log_parsing import last_lines, reasons, taken_service
from twinspire_server.triton.options import flags, further_flags
from twinspire_server.triton.ports import Ports, taken
from twinspire_server.triton.process import TritonProcess
from twinspire_server.triton.readiness import ready_version
from twinspire_server.triton.tls import ServerTls

_ATTEMPTS = 5
"""How often a start is tried: another program may take a picked port first, and Triton may abort by chance."""
_LOST_RACE = "boost::interprocess::lock_exception"
"""What a starting Triton 2.51 sometimes aborts with: two threads of the Python backend, one shared memory."""
_LOOK_S = 0.05
_TRITON_LINE = re.compile(r"^[IWE]\d{4} \d\d:", re.MULTILINE)
_LOG_READ_BYTES = 1 << 20
"""How much of a log is searched for why a server ended, from its end."""


class _UnluckyStartError(Exception):
    """A start that failed by chance: another program took the port of `service`, or Triton lost a race of its own.

    `error` is what to raise where there is no further attempt.
    """

    def __init__(self, error: ServerError, *, service: str | None = None) -> None:
        super().__init__(str(error))
        self.error, self.service = error, service


class TritonServer:
    """A Triton Inference Server on this machine that serves one model repository; a context manager.

    `repository` is a folder of models; ports of 0 pick free ones. `host` is the IPv4 address that gRPC listens on and
    `metrics_host` that of the metrics; HTTP is for this machine alone. `tls` encrypts gRPC; an address that other
    machines reach needs it, or `insecure`. With `reuse_grpc_port` servers may share the gRPC port, so that one takes
    over from another without a break. `log_file` is appended to; without one the log is a temporary file that is
    removed at the end, unless the server failed. `triton_flags` are passed on (`log-verbose=1`), as are the environment
    variables that `pass_env` names. `backend_directory` is a folder of further Triton backends, used beside its own.
    The server does not outlive this process, however it ends. `start` may be called again after `stop`, and after the
    server died. Raises `InputError` for a repository without models, ports that cannot be, an open address without TLS,
    and flags that twinspire sets itself.
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
        log_file: Path | None = None,
        backend_directory: Path | None = None,
        ready_timeout_s: float = 120,
        triton_flags: Sequence[str] = (),
        pass_env: Sequence[str] = (),
    ) -> None:
        self.repository = repository.absolute()
        self.models = _models(self.repository)
        self.host = checked_address(host)
        self.metrics_host = checked_address(metrics_host)
        self.tls = tls
        if is_open(self.host) and tls is None and not insecure:
            raise InputError(
                f"other machines reach {self.host}, and connections would be neither encrypted nor authenticated: give "
                "a TLS certificate (--tls-certificate, --tls-key, and --tls-ca to let in known clients alone), or pass "
                "--insecure. SECURITY.md says what strangers can do"
            )
        self._further_flags = further_flags(as_list(triton_flags, "Triton flags"))
        self._reuse_grpc_port = reuse_grpc_port
        self._pass_env = as_list(pass_env, "environment variables")
        for name in self._pass_env:
            if "=" in name:
                raise InputError(f"the environment variable {name!r}: expected a name alone, whose value is passed on")
        self._key = new_key()
        self._wanted = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)
        self._log_wanted = log_file.absolute() if log_file is not None else None
        self._backend_directory = backend_directory.absolute() if backend_directory is not None else None
        self._ready_timeout_s = ready_timeout_s
        self._process: TritonProcess | None = None
        self._ports = self._wanted
        self._log: Path | None = None
        self._log_start = 0
        self._has_failed = False
        self._version = self._origin = ""

    def start(self) -> Self:
        """Start the server and wait until all its models are ready.

        Raises `MissingDependencyError` or `ServerError` where there is no Triton to start or it does not start, with
        Triton's own reason and the log's path; `ServerUnavailableError` where it is not ready in time; `InputError` for
        a host or log file that cannot be used. None of them leaves a process.
        """
        if self.running:
            raise ServerError(f"the server of {self.repository} runs already, at {self.grpc_url}: stop it first")
        self.stop()  # what an earlier one that died has left
        self._has_failed = False
        self._start(self._wanted)
        return self

    def restart(self) -> None:
        """Start a server that has ended or is to be ended at once again, on the ports that it has, with the same log.

        Raises what `start` raises.
        """
        self.kill()
        self._has_failed = True
        self._start(self._ports)

    def kill(self) -> None:
        """End the server at once, requests in flight too. Does nothing where it does not run."""
        if self._process is not None:
            self._process.end(kill=True)

    def stop(self) -> None:
        """End the server: requests in flight are finished, for 10 s at most, then it is killed. Does nothing twice."""
        if self._process is None:
            return
        process, self._process = self._process, None
        died = process.poll() is not None
        try:
            process.end()
        finally:
            if not died:
                self._remove_own_log()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the server has ended by itself; return its exit status, or 128 plus the signal that ended it.

        Raises `TimeoutError` where it still runs after `timeout_s`.
        """
        return self._started.wait(timeout_s)

    def ended(self, status: int) -> ServerError:
        """Build the error for a server that ended by itself with `status`, as `wait` returns it."""
        return self.failure(f"Triton ended by itself ({_described(status)}):")

    def failure(self, what: str) -> ServerError:
        """Build the error for a server that ended by itself: `what` happened, Triton's reasons, and the log's path."""
        return ServerError(self._explained(what))

    def warnings(self) -> list[str]:
        """Say what other machines may do with this server, a sentence each; nothing where they do not reach it."""
        found = []
        if is_open(self.host) and (self.tls is None or self.tls.client_ca is None):
            who = "read and change what is sent, and " if self.tls is None else ""
            found.append(
                f"whoever reaches {self.host} may {who}use the models, or crash a Triton older than 26.04 (SECURITY.md)"
            )
        if is_open(self.metrics_host):
            found.append(f"whoever reaches {self.metrics_host} may read the metrics, or exhaust the server's memory")
        return found

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of `tritonserver`."""
        return self._started.pid

    @property
    def ports(self) -> Ports:
        """The ports that it listens on."""
        return self._ports

    @property
    def grpc_url(self) -> str:
        """Where the gRPC service is, as tritonclient wants it: `127.0.0.1:8001`."""
        return f"{reached_at(self.host)}:{self._ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where the HTTP service is, for this machine alone: `http://127.0.0.1:8000`."""
        return f"http://{LOOPBACK}:{self._ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where the metrics are, in Prometheus' format: `http://127.0.0.1:8002/metrics`."""
        return f"http://{reached_at(self.metrics_host)}:{self._ports.metrics}/metrics"

    @property
    def admin_headers(self) -> dict[str, str]:
        """The HTTP header that opens what is closed to everybody else: inference, statistics, configs and more.

        Every start has a key of its own.
        """
        return {HEADER: self._key}

    @property
    def version(self) -> str:
        """The version of Triton, as it said itself: `2.51.0`."""
        return self._version

    @property
    def origin(self) -> str:
        """Where its `tritonserver` comes from: a path, or the wheel with its version."""
        return self._origin

    @property
    def log_file(self) -> Path:
        """The file with what the server and its Python models print."""
        assert self._log is not None, "start the server first"
        return self._log

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _started(self) -> TritonProcess:
        assert self._process is not None, "start the server first"
        return self._process

    def _start(self, wanted: Ports) -> None:
        install = find_triton()
        self._origin = install.origin
        check_backends(self.repository, self.models, install, available_backends(install, self._backend_directory))
        for attempt in range(1, _ATTEMPTS + 1):
            self._ports = wanted.claim(self.host, self.metrics_host, reuse_grpc=self._reuse_grpc_port)
            try:
                self._attempt(install)
            except _UnluckyStartError as unlucky:
                is_final = attempt == _ATTEMPTS or (unlucky.service and getattr(wanted, unlucky.service))
                if unlucky.service or not is_final:
                    self._remove_own_log()
                if is_final:
                    raise unlucky.error from None
            else:
                return

    def _attempt(self, install: TritonInstall) -> None:
        """Start the server and return when it is ready. Raises `_UnluckyStartError` where another attempt may do."""
        keep_log = False
        self._open_log()
        try:
            self._launch(install)
            self._wait_until_ready()
        except (ServerError, _UnluckyStartError):
            keep_log = True
            raise
        finally:
            if not self._version:
                self._abandon(keep_log=keep_log)
        self._started.models_loaded()

    def _launch(self, install: TritonInstall) -> None:
        self._key = new_key()
        arguments = flags(
            self.repository,
            key=self._key,
            host=self.host,
            metrics_host=self.metrics_host,
            http_port=self._ports.http,
            grpc_port=self._ports.grpc,
            metrics_port=self._ports.metrics,
        )
        arguments += ["--reuse-grpc-port=true"] if self._reuse_grpc_port else []
        arguments += [*(self.tls.flags() if self.tls is not None else []), *self._further_flags]
        with self.log_file.open("ab") as log:
            logs.claim(log)
            self._process = TritonProcess(
                install, arguments, log=log, backend_directory=self._backend_directory, pass_env=self._pass_env
            )

    def _wait_until_ready(self) -> None:
        process = self._started
        deadline_s = time.monotonic() + self._ready_timeout_s
        masked = False
        while True:
            version = ready_version(reached_at(self.metrics_host), self._ports, process.name)
            if not masked and (version is not None or self._has_read_its_arguments()):
                process.mask(self._key)
                masked = True
            status = process.poll()
            if status is not None:
                log = self._read_log()
                service = taken_service(log)
                if service is not None:
                    host = {"grpc": self.host, "metrics": self.metrics_host}.get(service, LOOPBACK)
                    raise _UnluckyStartError(taken(service, getattr(self._ports, service), host), service=service)
                failure = self.failure(f"Triton did not start ({_described(status)}) on {self.repository}:")
                raise _UnluckyStartError(failure) if _LOST_RACE in log else failure
            if version is not None:
                self._version = version
                return
            if time.monotonic() > deadline_s:
                late = (
                    f"Triton was not ready within {self._ready_timeout_s:g} s (--ready-timeout) on {self.repository}:"
                )
                raise ServerUnavailableError(self._explained(late))
            time.sleep(_LOOK_S)

    def _has_read_its_arguments(self) -> bool:
        """Whether Triton has printed a line of its own; unknown, so no, in a log that others may write to."""
        return self._log_wanted is None and _TRITON_LINE.search(self._read_log()) is not None

    def _abandon(self, *, keep_log: bool) -> None:
        """Kill a server that did not become ready."""
        process, self._process = self._process, None
        if process is not None:
            process.end(kill=True)
        if not keep_log:
            self._remove_own_log()

    def _open_log(self) -> None:
        """Name the log and see that it can be written."""
        self._version = ""
        try:
            if self._log is not None and self._has_failed:
                pass  # a restarted server goes on with its log
            elif self._log_wanted is None:
                self._log = logs.new_log()
            else:
                self._log = self._log_wanted
            self._log.open("ab").close()
            self._log_start = self._log.stat().st_size
        except OSError as error:
            raise InputError(f"cannot write the server's log {self._log_wanted or ''}: {error.strerror}") from error

    def _remove_own_log(self) -> None:
        if self._log_wanted is None and self._log is not None and not self._has_failed:
            self._log.unlink(missing_ok=True)

    def _read_log(self) -> str:
        """Return what this server has printed last; nothing where somebody removed the file."""
        with suppress(FileNotFoundError), self.log_file.open("rb") as file:
            file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - _LOG_READ_BYTES))
            return file.read().decode(errors="replace")
        return ""

    def _explained(self, what: str) -> str:
        said = self._read_log()
        told = reasons(said) or last_lines(said)
        lines = [f"  {line}" for reason in told for line in reason.splitlines()]
        return "\n".join([what, *lines, f"The whole log: {self.log_file}"])


def _described(status: int) -> str:
    """Say how a server ended: with a status, or by a signal where it is 128 plus its number."""
    try:
        name = signal.Signals(status - 128).name
    except ValueError:
        return f"status {status}"
    memory = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"status {status}: killed by {name}{memory}"


def _models(repository: Path) -> tuple[str, ...]:
    """List the models of a repository, by name."""
    if any(character.isspace() for character in str(repository)):
        # The Python backend hands the path to its processes in a command line that it splits at spaces: they die with
        # "stol", and the server waits for them.
        raise InputError(
            f"there is a space in the path {repository}, which Triton cannot take: rename it or link to it"
        )
    if not repository.is_dir():
        raise InputError(f"there is no folder {repository}: expected a model repository, which twinspire build makes")
    models = tuple(sorted(file.parent.name for file in repository.glob("*/config.pbtxt")))
    if not models:
        raise InputError(
            f"{repository} holds no model: expected a folder with a config.pbtxt per model, which twinspire build makes"
        )
    return models
