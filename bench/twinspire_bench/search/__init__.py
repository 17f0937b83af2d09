"""What words beside vectors, captions in vectors, templates and filters bring to a search: `twinspire bench search`."""

from __future__ import annotations
