"""Keeps a server serving: notices when it has ended or hangs, and starts it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from twinspire.errors import InputError, ServerError, TwinspireError
from twinspire_server.triton.canary import Canary, CanaryOptions, CanaryTarget
from twinspire_server.triton.launch import TritonServer
from twinspire_server.triton.warm_up import first_sample

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_STABLE_S = 600.0
"""A server that has served so long has recovered: its restarts are counted from the start. Some hangs take 5 minutes to
be noticed."""
_POLL_S = 0.1


class Supervisor:
    """Restarts a started `TritonServer` whenever it ends by itself, a model's process ends, or a model hangs.

    Restarts wait 0.5 s, then twice as long each time, at most 30 s; after `max_restarts` in a row, with no ten minutes
    of serving between them, the last error is raised. `canary` says how models are asked; None does not ask them.
    `report` is told, in a sentence each, what happened and what is done. Raises InputError for a negative number.
    """

    def __init__(
        self,
        server: TritonServer,
        *,
        max_restarts: int = 10,
        canary: CanaryOptions | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        if max_restarts < 0:
            raise InputError(f"max_restarts {max_restarts}: expected a number from 0 up, where 0 never restarts")
        self._server, self._max_restarts, self._report = server, max_restarts, report
        self._options = canary
        samples = {} if canary is None else {name: first_sample(server.repository / name) for name in server.models}
        self._samples = {name: sample for name, sample in samples.items() if sample is not None}
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let `run` return. The server goes on; a start that is under way is waited for."""
        self._stopped.set()

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
                self._report(f"{failure}\nRestart {restarts} of at most {self._max_restarts} in {wait_s:g} s")
                if self._stopped.wait(wait_s):
                    return
                failure = self._restarted()
            started_s = time.monotonic()
            self._report(f"Triton serves again at {self._server.grpc_url}")

    def _restarted(self) -> TwinspireError | None:
        """Restart the server; return the error where it does not start."""
        try:
            self._server.restart()
        except TwinspireError as error:  # a full disk or an interface that is gone may be back in a moment
            return error
        return None

    def _failure(self) -> ServerError | None:
        """Wait until the server has ended, or end it where a model hangs; return why. None where `stop` was called."""
        hung: SimpleQueue[str] = SimpleQueue()
        canaries = [self._canary(name, hung) for name in self._samples]
        try:
            while not self._stopped.is_set():
                with suppress(Empty):
                    reason = hung.get(timeout=_POLL_S)
                    self._server.kill()
                    return ServerError(
                        f"Triton was ended: {reason.rstrip('.')}. The whole log: {self._server.log_file}"
                    )
                with suppress(TimeoutError):
                    return self._server.ended(self._server.wait(0))
            return None
        finally:
            for canary in canaries:
                canary.stop()

    def _canary(self, model: str, hung: SimpleQueue[str]) -> Canary:
        assert self._options is not None
        target = CanaryTarget(
            port=self._server.ports.http,
            headers=self._server.admin_headers,
            server_pid=self._server.pid,
        )
        return Canary(model, self._samples[model], target, self._options, on_failure=hung.put)
