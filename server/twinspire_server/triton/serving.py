"""What `twinspire serve` runs: a supervised server of a release of a repository, which `twinspire reload` replaces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

from twinspire.errors import InputError, ServerError
from twinspire_server.repository.code import check_code, foreign_models
from twinspire_server.triton.accuracy import AccuracyCanary
from twinspire_server.triton.canary import CanaryOptions
from twinspire_server.triton.control import ControlSocket, Progress
from twinspire_server.triton.forwarding import Forwarder
from twinspire_server.triton.ports import LOOPBACK, Ports, checked_address, is_open, local_address, reserve_port
from twinspire_server.triton.releases import Releases
from twinspire_server.triton.reloading import Reloader
from twinspire_server.triton.server import TritonServer, check_repository
from twinspire_server.triton.status import ServerStatus, StatusServer
from twinspire_server.triton.supervisor import Supervisor
from twinspire_server.triton.wrong_vectors import AccuracyOptions


class Serving:
    """A server of a repository on fixed ports, supervised by `run`; a context manager.

    It serves a copy of the repository: the release that was taken last, at the first start and with `latest` what was
    built last, and also where another version of twinspire built that release. `state` is the folder of the releases,
    by default beside the repository. Connections to the HTTP and metrics ports are passed on to the Triton of the
    moment; `status_port` is that of the supervisor's own pages. Further `options` are those of `TritonServer`.
    `server.ports` are Triton's own. `report` is called with a message for people at each event.

    Raises what `TritonServer` and `Releases` raise.
    """

    def __init__(
        self,
        repository: Path,
        *,
        state: Path | None = None,
        latest: bool = False,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        status_port: int = 0,
        host: str = LOOPBACK,
        metrics_host: str = LOOPBACK,
        reuse_grpc_port: bool = False,
        connection_age_s: float | None = None,
        max_restarts: int = 10,
        canary: CanaryOptions | None = None,
        accuracy: AccuracyOptions | None = None,
        report: Callable[[str], None] = lambda _: None,
        **options: Any,  # noqa: ANN401 - those of TritonServer
    ) -> None:
        self._report = report
        self._metrics_host = checked_address(metrics_host)
        Ports(http=http_port, grpc=grpc_port, metrics=metrics_port)  # raises for impossible ones
        check_repository(repository.absolute())
        with ExitStack() as stack:
            # Checks the options before anything is written.
            options |= {"host": host, "reuse_grpc_port": True, "connection_age_s": connection_age_s}
            warnings = TritonServer(repository, **options).warnings()
            if is_open(self._metrics_host):
                warnings.append(f"anybody who can reach {metrics_host} can read the metrics, or exhaust this machine")
            for warning in warnings:
                report(f"warning: {warning}")
            self._releases = stack.enter_context(Releases(repository, state))
            reserved = stack.enter_context(
                closing(reserve_port("grpc", checked_address(host), grpc_port, shared=reuse_grpc_port))
            )
            release = self._first_release(latest)
            self.server = TritonServer(release, grpc_port=reserved.getsockname()[1], **options)
            checks = None if accuracy is None else AccuracyCanary(accuracy, report=report)
            self._supervisor = Supervisor(
                self.server, max_restarts=max_restarts, canary=canary, accuracy=checks, report=report
            )
            self._http = stack.enter_context(
                Forwarder("http", LOOPBACK, http_port, lambda: (LOOPBACK, self.server.ports.http))
            )
            self._metrics = stack.enter_context(
                Forwarder("metrics", self._metrics_host, metrics_port, lambda: (LOOPBACK, self.server.ports.metrics))
            )
            status = ServerStatus(self.server, self._supervisor, checks)
            self._status = stack.enter_context(StatusServer(status, host=self._metrics_host, port=status_port))
            self._reloader = stack.enter_context(
                Reloader(
                    self._releases, self.server, self._supervisor, connection_age_s=connection_age_s, report=report
                )
            )
            self._stack = stack.pop_all()

    @property
    def http_url(self) -> str:
        """The address of the HTTP service, for this machine alone: `http://127.0.0.1:8000`."""
        return f"http://{LOOPBACK}:{self._http.port}"

    @property
    def metrics_url(self) -> str:
        """The address of the metrics, in Prometheus' format: `http://127.0.0.1:8002/metrics`."""
        return f"http://{local_address(self._metrics_host)}:{self._metrics.port}/metrics"

    @property
    def status_url(self) -> str:
        """The address of the supervisor's own pages: `http://127.0.0.1:8003`."""
        return self._status.url

    def run(self) -> None:
        """Supervise the server. Raises what ended it when no restart is left."""
        self._supervisor.run()

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.server)
            release = self.server.repository
            if release != self._releases.taken:
                self._releases.take(release)
            else:
                self._compare()
            self._stack.enter_context(ControlSocket(self._releases.folder, self._command))
            self._stack.callback(self._reloader.abort)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _first_release(self, latest: bool) -> Path:
        """Return the release to start with: the one that was taken last if its code fits, else what was built last."""
        taken = self._releases.taken
        if taken is not None and not latest:
            if not foreign_models(taken):
                return taken
            check_code(self._releases.repository)
            self._report(
                "warning: what was served last was built by another version of twinspire than the installed one, and "
                "cannot be served any more: serving what was built last"
            )
        return self._releases.copy()

    def _compare(self) -> None:
        """Report where the repository holds another build than is served."""
        try:
            is_outdated = self._releases.is_outdated()
        except InputError as error:  # what is served does not need it
            self._report(f"warning: {error}")
            return
        if is_outdated:
            self._report(
                f"{self._releases.repository} holds another build than is served, which is the one that was served "
                "last: `twinspire reload` takes the new one, `twinspire serve --latest` starts with it"
            )

    def _command(self, command: dict[str, Any], progress: Progress) -> dict[str, Any]:
        if command["command"] != "reload":
            raise ServerError(f"unknown command {command['command']!r}: this server is of another version of twinspire")
        return self._reloader.reload(rollback=command["rollback"], keep=command["keep"], progress=progress).to_dict()
