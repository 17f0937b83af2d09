"""Recall of vector, keyword and hybrid search, cost of filters, groups of copies: `twinspire bench search`."""

from __future__ import annotations
