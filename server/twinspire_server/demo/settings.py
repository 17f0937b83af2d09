"""What the demo can be asked for."""

from __future__ import annotations

from enum import StrEnum


class DemoRuntime(StrEnum):
    """Where the towers run. `auto` is Triton where it can be started, else this process."""

    AUTO = "auto"
    TRITON = "triton"
    LOCAL = "local"
