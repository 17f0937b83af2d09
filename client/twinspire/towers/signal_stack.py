"""A thread's alternate signal stack, kept where a library replaces it.

OpenVINO's CPU plugin gives the thread that loads it an alternate signal stack of its own, for AMX on old versions of
Python, and unmaps it when the plugin is unloaded. It takes the old one back only in that thread, and only when plugins
are unloaded in the reverse order of loading (`SigAltStackSetup` in src/plugins/intel_cpu/src/plugin.cpp, 2022 to 2026).
Otherwise the thread is left with a stack that is gone, and the next signal, Ctrl-C or SIGTERM for example, kills the
process with SIGSEGV: Python's handlers run on the alternate stack.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of Linux, sigaltstack(2)."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size_bytes", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give the thread its own alternate signal stack back at the end of the block; do nothing outside Linux."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)
