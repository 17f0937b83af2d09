"""Memory and CPU time of a running Triton, its models' processes included."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ServerUsage:
    """Usage of the process `pid` and of its children, which are looked up once."""

    def __init__(self, pid: int) -> None:
        self._pids = [pid, *_children(pid)]
        self._before = self._now()

    def memory_mb(self) -> float:
        """Return the resident memory of all processes in MB; memory that they share counts for each."""
        total_kb = 0
        for pid in self._pids:
            with suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                total_kb += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return total_kb / 1000

    def lap(self) -> dict[str, float]:
        """Return how many cores the server, this process and all others used on average since the last lap."""
        before, self._before = self._before, self._now()
        (server_s, own_s, all_s), elapsed_s = (
            [after - earlier for after, earlier in zip(self._before[:3], before[:3], strict=True)],
            self._before[3] - before[3],
        )
        return {
            "server": server_s / elapsed_s,
            "generator": own_s / elapsed_s,
            "others": (all_s - server_s - own_s) / elapsed_s,
        }

    def _now(self) -> tuple[float, float, float, float]:
        own = os.times()
        return sum(map(_cpu_s, self._pids)), own.user + own.system, _machine_s(), time.perf_counter()


def _children(pid: int) -> list[int]:
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text(encoding="utf-8").split()):
            found += [child, *_children(child)]
    return found


def _cpu_s(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return 0.0


def _machine_s() -> float:
    """Return the CPU time of everything on this machine, without idling and waiting for disks."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_PER_S
