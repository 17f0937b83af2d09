"""Recall of vector, keyword and hybrid search, and the cost of filters: `twinspire bench search`."""

from __future__ import annotations
