"""A running Triton: started, waited for, ended, with nothing left behind."""

from __future__ import annotations

import ipaddress
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from twinspire.errors import InputError, ServerError, ServerUnavailableError
from twinspire_server.triton.backends import available_backends, check_backends
from twinspire_server.triton.locate import TritonInstall, find_triton
from twinspire_server.triton.options import flags
from twinspire_server.triton.ports import Ports, taken
from twinspire_server.triton.process import TritonProcess
from twinspire_server.triton.readiness import ready_version
from twinspire_server.triton.reasons import last_lines, reasons, taken_service

_ATTEMPTS = 5
"""How often free ports are picked anew because another program took one before Triton did."""
_LOOK_S = 0.05


class TritonServer:
    """A Triton Inference Server on this machine that serves one model repository; a context manager.

    `repository` is a folder of models; ports of 0 pick free ones; `host` is the IPv4 address to listen on. `log_file`
    is appended to; without one the log is a temporary file that is removed at the end, unless the server failed.
    `backend_directory` is a folder of further Triton backends, used beside Triton's own.
    The server does not outlive this process, however it ends. `start` may be called again after `stop`, and after the
    server died. Raises `InputError` for a repository without models and for ports that cannot be.
    """

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
        log_file: Path | None = None,
        backend_directory: Path | None = None,
        ready_timeout_s: float = 120,
    ) -> None:
        self.repository = repository.absolute()
        self.models = _models(self.repository)
        self.host = _checked(host)
        self._wanted = Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)
        self._log_wanted = log_file.absolute() if log_file is not None else None
        self._backend_directory = backend_directory.absolute() if backend_directory is not None else None
        self._ready_timeout_s = ready_timeout_s
        self._process: TritonProcess | None = None
        self._ports = self._wanted
        self._log: Path | None = None
        self._log_start = 0
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
        install = find_triton()
        self._origin = install.origin
        check_backends(self.repository, self.models, install, available_backends(install, self._backend_directory))
        for attempt in range(1, _ATTEMPTS + 1):
            self._ports = self._wanted.claim(self.host)
            service = self._attempt(install)
            if service is None:
                break
            if getattr(self._wanted, service) or attempt == _ATTEMPTS:
                raise taken(service, getattr(self._ports, service), self.host)
        return self

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

    def failure(self, what: str) -> ServerError:
        """Build the error for a server that ended by itself: `what` happened, Triton's reasons, and the log's path."""
        return ServerError(self._explained(what))

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
        return f"{self._address}:{self._ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where the HTTP service is: `http://127.0.0.1:8000`."""
        return f"http://{self._address}:{self._ports.http}"

    @property
    def metrics_url(self) -> str:
        """Where the metrics are, in Prometheus' format: `http://127.0.0.1:8002/metrics`."""
        return f"http://{self._address}:{self._ports.metrics}/metrics"

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

    @property
    def _address(self) -> str:
        """The address under which this machine reaches the server."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104

    def _attempt(self, install: TritonInstall) -> str | None:
        """Start the server and return None when it is ready, or the service whose port another program took."""
        keep_log = False
        self._open_log()
        try:
            self._launch(install)
            service = self._wait_until_ready()
            if service is None:
                return None
        except ServerError:
            keep_log = True
            raise
        finally:
            if not self._version:
                self._abandon(keep_log=keep_log)
        return service

    def _launch(self, install: TritonInstall) -> None:
        arguments = flags(
            self.repository,
            host=self.host,
            http_port=self._ports.http,
            grpc_port=self._ports.grpc,
            metrics_port=self._ports.metrics,
        )
        with self.log_file.open("ab") as log:
            self._process = TritonProcess(install, arguments, log=log, backend_directory=self._backend_directory)

    def _wait_until_ready(self) -> str | None:
        process = self._started
        deadline_s = time.monotonic() + self._ready_timeout_s
        while True:
            version = ready_version(self._address, self._ports, process.name)
            status = process.poll()
            if status is not None:
                service = taken_service(self._read_log())
                if service is not None:
                    return service
                raise self.failure(f"Triton did not start (status {status}) on {self.repository}:")
            if version is not None:
                self._version = version
                return None
            if time.monotonic() > deadline_s:
                late = f"Triton was not ready within {self._ready_timeout_s:g} s on {self.repository}:"
                raise ServerUnavailableError(self._explained(late))
            time.sleep(_LOOK_S)

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
            if self._log_wanted is None:
                handle, name = tempfile.mkstemp(prefix="twinspire-triton-", suffix=".log")
                os.close(handle)
                self._log = Path(name)
            else:
                self._log = self._log_wanted
                self._log.open("ab").close()
            self._log_start = self._log.stat().st_size
        except OSError as error:
            raise InputError(f"cannot write the server's log {self._log_wanted or ''}: {error.strerror}") from error

    def _remove_own_log(self) -> None:
        if self._log_wanted is None and self._log is not None:
            self._log.unlink(missing_ok=True)

    def _read_log(self) -> str:
        """Return what this server has printed; nothing where somebody removed the file."""
        with suppress(FileNotFoundError), self.log_file.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")
        return ""

    def _explained(self, what: str) -> str:
        said = self._read_log()
        told = reasons(said) or last_lines(said)
        lines = [f"  {line}" for reason in told for line in reason.splitlines()]
        return "\n".join([what, *lines, f"The whole log: {self.log_file}"])


def _checked(host: str) -> str:
    """Return the address: names would be looked up by each of Triton's services in its own way."""
    try:
        return str(ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host))
    except ValueError:
        raise InputError(f"cannot listen on {host!r}: expected an IPv4 address, such as 127.0.0.1 or 0.0.0.0") from None


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
