"""The demo: images drawn, indexed through a server, found in words, and measured.

The names below are loaded when they are first used: the command line is to come at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinspire_server.demo.run import QUERIES, DemoReport, run_demo
    from twinspire_server.demo.settings import DemoRuntime

__all__ = ["QUERIES", "DemoReport", "DemoRuntime", "run_demo"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for (PEP 562)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "settings" if name == "DemoRuntime" else "run"
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
