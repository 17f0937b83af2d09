"""Several servers as one: calls go to the least busy, away from those that fail, and at last to this process.

gRPC's own client-side balancing knows `pick_first` and `round_robin` only, and no models to inspect.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire._telemetry import count
from twinspire.errors import ServerUnavailableError, TwinspireError
from twinspire.towers.protocol import Towers
from twinspire.towers.triton.counters import ClientCounters, ServerCounters
from twinspire.towers.triton.retries import (
    CLOCKS_DIFFER_S,
    Deadline,
    OneAttempt,
    RetryPolicy,
    TransientServerError,
    backoff_s,
)
from twinspire.towers.triton.server import ModelCall, Server
from twinspire.towers.triton.steps import Background, Compute, Sleep, Steps

_log = logging.getLogger("twinspire")

# The longest wait for a server's configurations where there is something else to go to: a loaded server sends them in
# milliseconds.
_INSPECTION_S = 2.0


@dataclass(eq=False)
class _Member:
    """A server of the group and its counters, changed under the group's lock."""

    server: Server
    calls: int = 0
    failures: int = 0
    failures_in_row: int = 0
    ejections: int = 0
    returns: int = 0
    pending: int = 0
    used: int = 0
    is_available: bool = True


class ServerGroup:
    """Servers of one space, equal for the caller, and a fallback in this process or None.

    A call goes to the available server with the fewest calls pending. Where that is away or hung, it is ejected: it
    gets no calls until a probe in the background, repeated with backoff, has inspected it again. The call begins anew
    on the next server; where none is available, on the fallback, or else on ejected ones until the deadline. An
    overloaded server is not ejected: the call tries the others and then waits, with a fallback for at most half of the
    deadline. Any other error is the call's own. One server without fallback is asked until the deadline.
    """

    def __init__(self, servers: Sequence[Server], *, fallback: Towers | None, max_retries: int | None) -> None:
        self._members = [_Member(server) for server in servers]
        self._fallback = fallback
        self._max_retries = max_retries
        self._addresses = ", ".join(server.address for server in servers)
        self._has_others = len(servers) > 1 or fallback is not None
        self._lock = threading.Lock()
        self._uses = itertools.count(1)
        self._fallbacks = self._returns = self._local_calls = 0

    @property
    def servers(self) -> list[Server]:
        """The servers, in the order given."""
        return [member.server for member in self._members]

    def counters(self) -> ClientCounters:
        """Return a snapshot of the counters."""
        with self._lock:
            servers = tuple(
                ServerCounters(
                    member.server.address,
                    member.calls,
                    member.failures,
                    member.ejections,
                    member.returns,
                    member.pending,
                    member.is_available,
                )
                for member in self._members
            )
            return ClientCounters(servers, self._fallbacks, self._returns, self._local_calls)

    def policy(self, deadline: Deadline) -> RetryPolicy:
        """Return the retries of a call that is not tied to one server."""
        return RetryPolicy(self._addresses, deadline, max_retries=self._max_retries)

    def open(self, deadline: Deadline) -> Steps[None]:
        """Inspect every server; those that are away are ejected. Raises as the towers' opening does.

        Without a fallback one server at least must answer within the deadline.
        """
        policy = self.policy(deadline)
        if not self._has_others:
            yield from self.servers[0].inspect(deadline, policy)
            return
        while True:
            away: dict[_Member, TransientServerError] = {}
            for member in self._members:
                inspection = _inspection(deadline)
                try:
                    yield from member.server.inspect(inspection, OneAttempt(member.server.address, inspection))
                except TransientServerError as failure:
                    away[member] = failure
            if self._fallback is not None or len(away) < len(self._members):
                break
            yield from policy.wait(list(away.values())[-1])
        for member in away:
            yield from self._eject(member, away[member])

    def infer(self, call: ModelCall, deadline: Deadline) -> Steps[NDArray[np.float32]]:
        """Compute a call's rows on a server, or in this process."""
        if not self._has_others:
            (only,) = self._members
            with self._counted(only):
                return (yield from only.server.infer(call, deadline, self.policy(deadline)))
        # With a fallback overloaded servers have half of the time: the rest is for computing here.
        patient = deadline if self._fallback is None else deadline.within(deadline.left_s / 2)
        policy = self.policy(patient)
        failed: dict[_Member, TransientServerError] = {}
        while True:
            member = self._pick(failed)
            if member is None:
                overloads = [failure for failure in failed.values() if failure.is_overload]
                if self._fallback is not None and not overloads:
                    break
                try:
                    yield from policy.wait((overloads or list(failed.values()))[-1])
                except ServerUnavailableError:
                    if self._fallback is None:
                        raise
                    break
                failed.clear()
                continue
            is_last = self._fallback is None and len(failed) + 1 == len(self._members)
            if failed:
                count("retries")
            try:
                return (yield from self._attempt(member, call, deadline, is_last=is_last))
            except TransientServerError as failure:
                if failure.error.code is None and deadline.left_s < CLOCKS_DIFFER_S:  # the call's time, not the server
                    raise self.policy(deadline).deadline_error() from failure.__cause__
                failed[member] = failure
                if not failure.is_overload:
                    yield from self._eject(member, failure)
        with self._lock:
            self._local_calls += 1
        fallback = self._fallback
        results: NDArray[np.float32] = yield Compute(lambda: call.compute(fallback))
        return results

    def _attempt(
        self, member: _Member, call: ModelCall, deadline: Deadline, *, is_last: bool
    ) -> Steps[NDArray[np.float32]]:
        """Compute on one server. Raises TransientServerError where it is away, hung or overloaded.

        It is hung where no answer comes for half of the time left: of a long call, answers come all the time.
        """
        patience_s = math.inf if is_last else deadline.left_s / 2
        with self._counted(member):
            return (
                yield from member.server.infer(
                    call,
                    deadline,
                    OneAttempt(member.server.address, deadline),
                    inspection=_inspection(deadline),
                    patience_s=patience_s,
                )
            )

    def _pick(self, failed: Collection[_Member]) -> _Member | None:
        """Return the available server with the fewest pending calls that has not failed this call, None if none is.

        Without a fallback ejected servers are tried last. Of equals, the one that was not used for longest.
        """
        with self._lock:
            candidates = [
                member
                for member in self._members
                if member not in failed and (member.is_available or self._fallback is None)
            ]
            if not candidates:
                return None
            member = min(candidates, key=lambda member: (not member.is_available, member.pending, member.used))
            member.used = next(self._uses)
            return member

    @contextmanager
    def _counted(self, member: _Member) -> Iterator[None]:
        """Count a call on a server, and its outcome."""
        with self._lock:
            member.calls += 1
            member.pending += 1
        try:
            yield
        except (ServerUnavailableError, TransientServerError):
            with self._lock:
                member.failures += 1
                member.failures_in_row += 1
            raise
        else:
            with self._lock:
                member.failures_in_row = 0
        finally:
            with self._lock:
                member.pending -= 1

    def _eject(self, member: _Member, failure: TransientServerError) -> Steps[None]:
        with self._lock:
            if not member.is_available:
                return
            member.is_available = False
            member.ejections += 1
            available = sum(other.is_available for other in self._members)
            is_fallback = available == 0 and self._fallback is not None
            self._fallbacks += is_fallback
        consequence = f"It gets no calls until it answers again, {available} other servers do"
        if is_fallback:
            count("fallbacks", to="local")
            consequence = "Calls are computed in this process until a server answers again"
        elif available == 0:
            consequence = "Calls wait until a server answers again"
        _log.warning("%s %s", failure, consequence)
        yield Background(self._probe(member))

    def _probe(self, member: _Member) -> Steps[None]:
        """Inspect an ejected server until it answers, then take it back."""
        server = member.server
        # Failures of calls count: of a server that answers questions and fails calls, the waits grow.
        for failures in itertools.count(max(1, member.failures_in_row)):
            try:
                yield Sleep(backoff_s(failures))
                deadline = Deadline.after(_INSPECTION_S)
                yield from server.inspect(deadline, OneAttempt(server.address, deadline))
            except TransientServerError:
                continue
            except TwinspireError as error:  # the calls' own: a wrong configuration must not pass for an absent server
                if server.is_closed:
                    return
                _log.error("the server at %s answers again and cannot be used: %s", server.address, error)
            break
        with self._lock:
            is_return = self._fallback is not None and not any(other.is_available for other in self._members)
            member.is_available = True
            member.returns += 1
            self._returns += is_return
        if is_return:
            count("fallbacks", to="server")
        note = "; calls are computed on servers again" if is_return else ""
        _log.info("the server at %s gets calls again%s", server.address, note)


def _inspection(deadline: Deadline) -> Deadline:
    """Return the deadline of an inspection that something else may follow."""
    return deadline.within(min(_INSPECTION_S, deadline.left_s / 2))
