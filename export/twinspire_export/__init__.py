"""Checkpoint to bundle: the only package that knows torch."""

from __future__ import annotations
