"""Reloading: a new build, or the previous one, takes the place of what is served, without losing a request.

The release is first loaded by a Triton of its own, which nobody else reaches, and probed there. Only then a second one
starts on the shared gRPC port, is probed again, and takes over. So nobody ever gets an embedding of a release that was
not probed; for some seconds there are two servers, never three.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from twinspire._arguments import as_whole
from twinspire.errors import InputError, ServerError, TwinspireError
from twinspire_server.triton.draining import count_connections, stop_listening
from twinspire_server.triton.interchange import check_interchangeable
from twinspire_server.triton.prober import Prober, unprobed_models
from twinspire_server.triton.releases import Releases, model_versions
from twinspire_server.triton.server import TritonServer
from twinspire_server.triton.supervisor import Supervisor
from twinspire_server.triton.wrong_vectors import ProbeResult

_POLL_S = 0.1
_PROBES_S = 60.0
"""How long the probes of a model may take: beside load, on few cores."""
_AGE_MARGIN, _AGE_MARGIN_S = 1.1, 3.0
"""gRPC ends connections at their age, give or take 10%; a client needs a moment to notice."""


@dataclass(frozen=True, kw_only=True)
class ReloadOutcome:
    """What a reload led to.

    `taken` is whether the release is served now, else `reason` says why not. `serving` has the version of each model
    that is served now, `probes` how the models of the release answered their probes, as far as it came. `took_s` is the
    time until the release was served or refused, `drained_s` how long the replaced server then ran on for the clients
    that were connected. `pruned` are the versions that were removed from the repository.
    """

    taken: bool
    reason: str | None
    serving: dict[str, int]
    probes: Sequence[ProbeResult]
    took_s: float
    drained_s: float | None = None
    pruned: Sequence[str] = ()
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "taken": self.taken,
            "reason": self.reason,
            "serving": self.serving,
            "probes": [result.to_dict() for result in self.probes],
            "took_s": round(self.took_s, 3),
            "drained_s": None if self.drained_s is None else round(self.drained_s, 3),
            "pruned": list(self.pruned),
            "notes": list(self.notes),
        }


class _RefusedError(Exception):
    """A release that must not be served, and what its models answered."""

    def __init__(self, reason: str, probes: Sequence[ProbeResult] = ()) -> None:
        super().__init__(reason)
        self.probes = probes


class Reloader:
    """Replaces the release that a supervised server serves; a context manager that waits for a reload at its end.

    `connection_age_s` is that of the server, `report` is called with a message for each step.
    """

    def __init__(
        self,
        releases: Releases,
        server: TritonServer,
        supervisor: Supervisor,
        *,
        connection_age_s: float | None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._releases, self._server, self._supervisor = releases, server, supervisor
        self._connection_age_s = connection_age_s
        self._report = report
        self._busy = threading.Lock()
        self._aborted = threading.Event()

    def reload(
        self, *, rollback: bool = False, keep: int = 1, progress: Callable[[str], None] = lambda _: None
    ) -> ReloadOutcome:
        """Load, probe and take what was built last, or with `rollback` the release that was taken before this one.

        Where it does not start or fails its probes it is refused, and the server goes on. `keep` is how many releases
        are kept to roll back to. Raises ServerError where another reload is under way or the server is being stopped,
        InputError where there is nothing to roll back to or the repository cannot be read.
        """
        as_whole(keep, "keep", minimum=0)
        if not self._busy.acquire(blocking=False):
            raise ServerError(f"another reload of {self._releases.repository} is under way: wait until it has ended")
        try:
            outcome = self._reload(rollback, keep, lambda message: self._tell(message, progress))
        finally:
            self._busy.release()
        return outcome

    def abort(self) -> None:
        """End a reload that is under way, as far as it has not taken over, and refuse others."""
        self._aborted.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
        self._busy.acquire()

    def _tell(self, message: str, progress: Callable[[str], None]) -> None:
        self._report(f"reload: {message}")
        progress(message)

    def _reload(self, rollback: bool, keep: int, tell: Callable[[str], None]) -> ReloadOutcome:
        start_s = time.monotonic()
        release = self._release(rollback, tell)
        try:
            successor, probes = self._probed_successor(release, tell)
        except _RefusedError as refused:
            self._releases.discard(release)
            self._check_running()
            tell(f"refused: {refused}")
            return ReloadOutcome(
                taken=False,
                reason=str(refused),
                serving=model_versions(self._server.repository),
                probes=refused.probes,
                took_s=time.monotonic() - start_s,
            )
        try:
            self._releases.take(release, keep=keep)
            former = self._supervisor.hand_over(successor, aborted=self._aborted)
            if former is None:
                raise self._stopping()
        except BaseException:
            successor.stop(kill=True)
            raise
        outcome = ReloadOutcome(
            taken=True,
            reason=None,
            serving=model_versions(release),
            probes=probes,
            took_s=time.monotonic() - start_s,
        )
        tell(f"serving {_listed(outcome.serving)}; the log is {self._server.log_file}")
        notes = self._drain(former, tell)
        drained_s = time.monotonic() - start_s - outcome.took_s
        pruned: list[str] = []
        try:
            pruned = self._releases.prune()
        except (OSError, TwinspireError) as error:
            notes.append(f"old versions could not be removed: {error}")
        return replace(outcome, drained_s=drained_s, pruned=pruned, notes=notes)

    def _release(self, rollback: bool, tell: Callable[[str], None]) -> Path:
        if self._aborted.is_set():
            raise self._stopping()
        if not rollback:
            return self._releases.copy(aborted=self._aborted)
        previous = self._releases.previous
        if previous is None:
            raise InputError(
                f"no earlier release of {self._releases.repository} is kept: nothing to roll back to. Build the bundle "
                "or precision that should be served, and reload",
                option="rollback",
            )
        tell(f"rolling back to {_listed(model_versions(previous))}")
        return previous

    def _probed_successor(
        self, release: Path, tell: Callable[[str], None]
    ) -> tuple[TritonServer, Sequence[ProbeResult]]:
        """Start a server that shares the port and whose models have passed their probes, there and before it."""
        tell(f"loading {_listed(model_versions(release))}")
        try:
            check_interchangeable(release, self._server.repository)
            candidate = self._server.candidate(release, aborted=self._aborted).start()
            try:
                probes = self._probe(candidate)
            finally:
                candidate.stop(kill=True)
            for result in probes:
                tell(str(result))
            for model in unprobed_models(candidate):
                tell(f"warning: {model} has no probes, so that nothing is known of its vectors: build it again")
            successor = self._server.successor(release, aborted=self._aborted).start()
            try:
                return successor, self._probe(successor)
            except BaseException:
                successor.stop(kill=True)
                raise
        except TwinspireError as error:
            raise _RefusedError(str(error)) from error

    def _probe(self, server: TritonServer) -> Sequence[ProbeResult]:
        with Prober(server, reference=self._server.repository) as prober:
            probes = list(prober.check(timeout_s=_PROBES_S).values())
        failed = [str(result) for result in probes if not (result.ok and result.is_answered)]
        if failed:
            raise _RefusedError("; ".join(failed), probes)
        return probes

    def _drain(self, former: TritonServer, tell: Callable[[str], None]) -> list[str]:
        """Let the clients of a replaced server move to its successor, then stop it. Return what went wrong."""
        notes: list[str] = []
        limit_s = 0.0 if self._connection_age_s is None else self._connection_age_s * _AGE_MARGIN + _AGE_MARGIN_S
        try:
            if former.running:
                stop_listening(former.pid, former.ports.grpc)
        except OSError as error:
            limit_s = 0.0
            notes.append(
                f"connections were not drained, so that requests may have failed that clients do not retry: {error}"
            )
        tell(f"waiting for connections to move, at most {limit_s:g} s")
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s and former.running and not self._aborted.is_set():
            if count_connections(former.pid, former.ports.grpc) == 0:
                break
            time.sleep(_POLL_S)
        former.stop()
        return notes

    def _check_running(self) -> None:
        if self._aborted.is_set():
            raise self._stopping()

    def _stopping(self) -> ServerError:
        return ServerError(f"the server of {self._releases.repository} is being stopped")


def _listed(versions: dict[str, int]) -> str:
    return ", ".join(f"{model} version {version}" for model, version in versions.items())
