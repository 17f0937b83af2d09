"""The instruments: drawn scenes, data sets, recall, and the benchmarks built on them."""

from __future__ import annotations
