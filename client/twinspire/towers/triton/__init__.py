"""Both towers on a Triton Inference Server. gRPC is loaded when towers are opened."""

from __future__ import annotations

from twinspire.towers.triton.description import describe_server
from twinspire.towers.triton.options import TlsOptions
from twinspire.towers.triton.statistics import ModelStatistics
from twinspire.towers.triton.towers import TritonTowers

__all__ = ["ModelStatistics", "TlsOptions", "TritonTowers", "describe_server"]
