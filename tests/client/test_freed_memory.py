"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
from pathlib import Path

from twinspire._freed_memory import return_freed_memory

BLOCKS, BLOCK_BYTES = 60_000, 2_000


def test_freed_blocks_are_returned() -> None:
    """Blocks below one that is still in use stay with the process when they are freed, until they are returned."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK_BYTES) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK_BYTES)
    *freed, kept = blocks
    for block in freed:
        libc.free(block)
    before = _resident_bytes()
    return_freed_memory()
    assert before - _resident_bytes() > 0.8 * BLOCKS * BLOCK_BYTES
    libc.free(kept)


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(kib)
