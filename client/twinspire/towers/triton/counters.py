"""Counters of a client's servers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerCounters:
    """A client's counters of one server since it was opened.

    `calls` were begun on it, `failures` of them ended because it was away, overloaded or hung. `ejections` and
    `returns` count how often it was taken out and taken back; a client with one server and no fallback does neither.
    `pending` calls are in progress; `is_available` says whether calls go to it.
    """

    address: str
    calls: int
    failures: int
    ejections: int
    returns: int
    pending: int
    is_available: bool


@dataclass(frozen=True)
class ClientCounters:
    """A client's counters since it was opened.

    `fallbacks` counts how often it changed to the engines in this process because no server was available, `returns`
    how often it changed back; `local_calls` were computed here.
    """

    servers: tuple[ServerCounters, ...]
    fallbacks: int
    returns: int
    local_calls: int

    @property
    def is_falling_back(self) -> bool:
        """Whether calls are computed in this process at the moment."""
        return self.fallbacks > self.returns
