"""Limits of this machine: processor, memory, and what a container or the shell allows of them."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from twinspire import _cuda
from twinspire._cores import usable_cores
from twinspire.towers.auto_selection import instruction_sets

_CPUINFO = Path("/proc/cpuinfo")
_CGROUP = Path("/sys/fs/cgroup")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - asked for its size alone
_UNLIMITED_BYTES = 1 << 60
"""Control groups of version 1 say so much where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """What this process may use. `cpu_quota` is a control group's, in processors; None is no limit, or unknown.

    `cores` are those of the affinity mask. A Triton's models exchange tensors in `shm_bytes`; a client and a server
    need a file of `open_files` for each connection. `gpu_unavailable` is why no GPU can be used, None where one can.
    """

    cpu_model: str
    cores: int
    cpu_quota: float | None
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    memory_limit_bytes: int | None
    shm_bytes: int | None
    shm_free_bytes: int | None
    open_files: int
    gpu_unavailable: str | None

    def notes(self) -> list[str]:
        """Return what of this slows a service down or breaks it, a sentence each."""
        found = []
        if self.cpu_quota is not None and self.cpu_quota < self.cores:
            found.append(
                f"the control group allows {self.cpu_quota:g} of {self.cores} processors: engines start a thread for "
                f"each of {self.cores} and are throttled. Pass --threads {max(1, int(self.cpu_quota))}"
            )
        if platform.machine() in ("x86_64", "AMD64") and not {"avx512_vnni", "avx_vnni", "amx_int8"} & {
            *self.instruction_sets
        }:
            found.append("the processor has no VNNI: int8 engines may overflow, and auto takes fp32")
        if self.shm_free_bytes is not None and self.shm_free_bytes < _NEEDED_SHM_BYTES:
            free = f"{self.shm_free_bytes / 2**20:.0f} MiB"
            found.append(
                f"{_SHARED_MEMORY} has {free} free, Triton's models need 64 and more: start the container with "
                "--shm-size=1g"
            )
        if self.open_files < _NEEDED_FILES:
            found.append(f"a process may open {self.open_files} files: raise it with ulimit -n {_NEEDED_FILES}")
        return found


_NEEDED_SHM_BYTES = 64 * 2**20
_NEEDED_FILES = 1024


def machine_limits(cgroup: Path = _CGROUP) -> MachineLimits:
    """Read the limits of this machine. What the system does not say is None."""
    shm = shutil.disk_usage(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
    return MachineLimits(
        cpu_model=cpu_model(),
        cores=usable_cores(),
        cpu_quota=_cpu_quota(cgroup),
        instruction_sets=instruction_sets(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        memory_limit_bytes=_memory_limit(cgroup),
        shm_bytes=None if shm is None else shm.total,
        shm_free_bytes=None if shm is None else shm.free,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        gpu_unavailable=_cuda.unavailable_reason(),
    )


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """Return the processor's name, or its architecture where Linux does not report the name."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, platform.machine())


def _cpu_quota(cgroup: Path) -> float | None:
    """Return the processors that a control group allows, of version 2 or 1: docs.kernel.org, cgroup-v2, cpu.max."""
    quota, _, period = (_read(cgroup / "cpu.max") or "").partition(" ")
    if not period:
        quota = _read(cgroup / "cpu" / "cpu.cfs_quota_us") or ""
        period = _read(cgroup / "cpu" / "cpu.cfs_period_us") or ""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _memory_limit(cgroup: Path) -> int | None:
    text = _read(cgroup / "memory.max") or _read(cgroup / "memory" / "memory.limit_in_bytes") or ""
    return int(text) if text.isdigit() and int(text) < _UNLIMITED_BYTES else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
