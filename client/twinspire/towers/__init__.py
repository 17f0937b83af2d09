"""Runtimes of the towers: uint8 images and token ids to unit vectors, in this process or on a server.

Image files and texts are prepared by `twinspire.client`.
"""

from __future__ import annotations

from twinspire.towers.auto_selection import Runtime
from twinspire.towers.local import LocalTowers
from twinspire.towers.protocol import AsyncTowers, Towers
from twinspire.towers.providers import InferencePrecision, OpenVinoOptions, Provider
from twinspire.towers.triton import (
    AsyncTritonTowers,
    ClientCounters,
    ModelStatistics,
    ServerCounters,
    TlsOptions,
    TritonTowers,
)

__all__ = [
    "AsyncTowers",
    "AsyncTritonTowers",
    "ClientCounters",
    "InferencePrecision",
    "LocalTowers",
    "ModelStatistics",
    "OpenVinoOptions",
    "Provider",
    "Runtime",
    "ServerCounters",
    "TlsOptions",
    "Towers",
    "TritonTowers",
]
