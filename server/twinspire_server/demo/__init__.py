"""The demo: generate images, index them through a server, search them with texts, and measure recall and speed.

The names below are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from twinspire._lazy import lazy_names

if TYPE_CHECKING:
    from twinspire_server.demo.run import QUERIES, DemoReport, run_demo

__all__ = ["QUERIES", "DemoReport", "DemoRuntime", "run_demo"]


class DemoRuntime(StrEnum):
    """Where the towers run: `auto` is Triton where it can be started, else this process."""

    AUTO = "auto"
    TRITON = "triton"
    LOCAL = "local"


__getattr__ = lazy_names(__name__, {"run": ["QUERIES", "DemoReport", "run_demo"]})
