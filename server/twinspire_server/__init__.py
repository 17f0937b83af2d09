"""Bundle to a running service, and the demo."""

from __future__ import annotations
