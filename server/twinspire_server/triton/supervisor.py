"""Supervision of a server: it notices when the server has ended or hangs, and starts it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from queue import Empty, SimpleQueue

from twinspire._arguments import as_whole
from twinspire.errors import ServerError, TwinspireError
from twinspire_server.repository.config import ready_check
from twinspire_server.triton.accuracy import AccuracyCanary
from twinspire_server.triton.canary import Canary, CanaryOptions
from twinspire_server.triton.server import TritonServer
from twinspire_server.triton.wrong_vectors import OnWrong

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_STABLE_S = 600.0
"""A server that has run so long counts as recovered: its restarts are counted from 0 again. It takes up to 5 minutes to
notice some hangs."""
_POLL_S = 0.1


class RestartCause(StrEnum):
    """Why a server is started again: it ended, a model hung, vectors were wrong, or the last start failed."""

    ENDED = "ended"
    HUNG = "hung"
    WRONG = "wrong"
    START = "start"


class Supervisor:
    """Restarts a started `TritonServer` whenever it ends by itself, a model's process ends, or a model hangs.

    Restarts wait 0.5 s, then twice as long each time, at most 30 s; after `max_restarts` in a row, with no ten minutes
    of serving between them, the last error is raised. `canary` sets how models are checked for hangs; None does not
    check them. `accuracy` checks their vectors while the server runs; where they are wrong, its options say whether the
    server is restarted or ended. `report` is called with a message for each failure and each restart. Raises InputError
    for a negative number.
    """

    def __init__(
        self,
        server: TritonServer,
        *,
        max_restarts: int = 10,
        canary: CanaryOptions | None = None,
        accuracy: AccuracyCanary | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._max_restarts = as_whole(max_restarts, "max_restarts", minimum=0)
        self._server, self._report = server, report
        self._canary, self._accuracy = canary, accuracy
        self._stopped = threading.Event()
        self._handover: _Handover | None = None
        self._handing_over = threading.Lock()
        self._cause = RestartCause.ENDED
        self.restarts = dict.fromkeys(RestartCause, 0)
        """How often the server was restarted since `run` began, by cause."""

    def stop(self) -> None:
        """Let `run` return, after a start that is under way. The server goes on."""
        self._stopped.set()

    def hand_over(self, successor: TritonServer, *, aborted: threading.Event) -> TritonServer | None:
        """Let `run` adopt a started successor; return the server that it was, still to be stopped.

        None where `aborted` is set before `run` has done so. For another thread than that of `run`.
        """
        handover = _Handover(successor)
        self._handover = handover
        while not handover.done.wait(_POLL_S):
            if aborted.is_set():
                with self._handing_over:
                    self._handover = None
                break
        return handover.former

    def run(self) -> None:
        """Supervise until `stop`; when no restart is left, raise what ended the server or kept it from starting."""
        restarts = 0
        started_s = time.monotonic()
        failure: TwinspireError | None
        while (failure := self._failure()) is not None:
            if time.monotonic() - started_s >= _STABLE_S:
                restarts = 0
            while failure is not None:
                if restarts == self._max_restarts:
                    raise failure
                wait_s = min(_FIRST_WAIT_S * 2**restarts, _LONGEST_WAIT_S)
                restarts += 1
                self.restarts[self._cause] += 1
                self._report(f"{failure}\nRestart {restarts} of at most {self._max_restarts} in {wait_s:g} s")
                if self._pause(wait_s):
                    return
                failure = None if self._adopt() else self._restart()
            started_s = time.monotonic()
            self._report(f"Triton serves again at {self._server.grpc_url}")

    def _restart(self) -> TwinspireError | None:
        """Restart the server; return the error where it does not start."""
        try:
            self._server.restart()
        except TwinspireError as error:  # a full disk or a missing network interface may be temporary
            self._cause = RestartCause.START
            return error
        return None

    def _failure(self) -> ServerError | None:
        """Wait until the server has ended, or end it where a model hangs; return why. None where `stop` was called."""
        while not self._stopped.is_set():
            failure = self._watch()
            if failure is not None:
                return failure
            self._adopt()
        return None

    def _watch(self) -> ServerError | None:
        """Return why the server has ended; None where `stop` was called or a successor waits."""
        hung: SimpleQueue[str] = SimpleQueue()
        wrong: SimpleQueue[str] = SimpleQueue()
        checks = {name: ready_check(self._server.repository / name) for name in self._server.models}
        canaries = [
            Canary(name, request, self._server, self._canary, on_failure=hung.put)
            for name, request in checks.items()
            if request is not None and self._canary is not None
        ]
        if self._accuracy is not None:
            self._accuracy.start(self._server, on_wrong=wrong.put)
        try:
            while not self._stopped.is_set() and self._handover is None:
                with suppress(Empty):
                    return self._wrong(wrong.get_nowait())
                with suppress(Empty):
                    reason = hung.get(timeout=_POLL_S)
                    self._server.kill()
                    self._cause = RestartCause.HUNG
                    return ServerError(f"ended Triton because {reason.rstrip('.')}. Full log: {self._server.log_file}")
                with suppress(TimeoutError):
                    status = self._server.wait(0)
                    self._cause = RestartCause.ENDED
                    return self._server.ended_error(status)
            return None
        finally:
            if self._accuracy is not None:
                self._accuracy.stop()
            for canary in canaries:
                canary.stop()

    def _wrong(self, reason: str) -> ServerError:
        """End the server; return why, for a restart, or raise it."""
        assert self._accuracy is not None
        self._server.kill()
        self._cause = RestartCause.WRONG
        error = ServerError(f"ended Triton because its vectors are wrong: {reason}. Full log: {self._server.log_file}")
        if self._accuracy.options.on_wrong is OnWrong.STOP:
            raise error
        return error

    def _adopt(self) -> bool:
        """Adopt the successor that waits, where there is one."""
        with self._handing_over:
            handover, self._handover = self._handover, None
            if handover is None:
                return False
            handover.former = self._server.adopt(handover.successor)
            handover.done.set()
            return True

    def _pause(self, limit_s: float) -> bool:
        """Wait, no longer than until a successor is there; return whether `stop` was called."""
        deadline_s = time.monotonic() + limit_s
        while self._handover is None and (left_s := deadline_s - time.monotonic()) > 0:
            if self._stopped.wait(min(left_s, _POLL_S)):
                return True
        return self._stopped.is_set()


class _Handover:
    """A successor that waits to be adopted, and the server that it replaced."""

    def __init__(self, successor: TritonServer) -> None:
        self.successor = successor
        self.former: TritonServer | None = None
        self.done = threading.Event()
