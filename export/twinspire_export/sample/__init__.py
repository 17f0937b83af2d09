"""The sample model: how the bundle that ships with twinspire was trained."""

from __future__ import annotations
