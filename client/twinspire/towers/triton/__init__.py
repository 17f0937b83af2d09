"""The towers on Triton Inference Servers, for threads and for asyncio. gRPC is loaded when towers are opened."""

from __future__ import annotations

from twinspire.towers.triton.async_towers import AsyncTritonTowers
from twinspire.towers.triton.counters import ClientCounters, ServerCounters
from twinspire.towers.triton.options import TlsOptions
from twinspire.towers.triton.statistics import ModelStatistics
from twinspire.towers.triton.towers import TritonTowers

__all__ = ["AsyncTritonTowers", "ClientCounters", "ModelStatistics", "ServerCounters", "TlsOptions", "TritonTowers"]
