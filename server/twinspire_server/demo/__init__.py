"""The demo: generate images, index them through a server, search them with texts, and measure recall and speed.

The names below are loaded when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinspire_server.demo.run import QUERIES, DemoReport, run_demo

__all__ = ["QUERIES", "DemoReport", "DemoRuntime", "run_demo"]


class DemoRuntime(StrEnum):
    """Where the towers run: `auto` is Triton where it can be started, else this process."""

    AUTO = "auto"
    TRITON = "triton"
    LOCAL = "local"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type depends on the name (PEP 562)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.run"), name)
    globals()[name] = value
    return value
