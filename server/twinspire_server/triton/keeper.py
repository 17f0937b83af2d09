"""The process between twinspire and `tritonserver`: whatever ends either of them, nothing of the server is left.

Run as a script, with the standard library alone: `python -I -S keeper.py SPEC`, where SPEC is JSON of `Spec`. It says
on standard output, in one line of JSON, the server's process id or why it could not be started. Standard error is the
log, the server's too.

- SIGINT and SIGTERM are passed on; after `grace_s`, or at the second one, the server is killed.
- The process that started the keeper is watched: when it is gone, killed too, the server is told to end.
- When the server is gone, killed too, what it started goes (the keeper is the subreaper of all of it), then
  its temporary folder and its shared memory.
- Where the keeper itself is killed the kernel kills the server, and Triton's Python models notice within a second.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_WATCHED = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
_LOOK_S = 0.2
"""How often the keeper looks whether its parent is still there."""


@dataclass(frozen=True)
class Spec:
    """What a keeper keeps: the server's command, the process that wants it, and what is to be removed at the end."""

    command: list[str]
    parent: int
    folder: str
    shm_prefix: str
    grace_s: float


def main() -> int:
    """Run the server until it ends; return its exit status, or 128 plus the signal that ended it."""
    spec = Spec(**json.loads(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        try:
            server = subprocess.Popen(  # noqa: S603
                spec.command,
                cwd=spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                process_group=0,
                preexec_fn=lambda: _become_server(libc),  # this process has one thread
            )
        except OSError as error:
            _report({"error": f"{spec.command[0]}: {error.strerror or error}"})
            return 1
        _report({"pid": server.pid})
        _watch(server.pid, spec)
        return _bury(server)
    finally:
        remove_leftovers(spec.folder, spec.shm_prefix)


def remove_leftovers(folder: str, shm_prefix: str) -> None:
    """Remove a server's temporary folder and shared memory. The server must be gone."""
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):  # noqa: S108
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _become_server(libc: ctypes.CDLL) -> None:
    """Between fork and exec: die with the keeper, and take signals as any program does."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job of a shell script ignores SIGINT
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _report(document: dict[str, object]) -> None:
    with suppress(OSError):  # nobody may be left to read it
        os.write(1, json.dumps(document).encode() + b"\n")
        os.close(1)


def _watch(server: int, spec: Spec) -> None:
    """Return when the server has ended, which is left to be waited for."""
    kill_at_s: float | None = None
    while os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        got = signal.sigtimedwait(_WATCHED, _LOOK_S)
        wanted = got.si_signo if got is not None and got.si_signo != signal.SIGCHLD else None
        if kill_at_s is None:
            if wanted is None and os.getppid() != spec.parent:
                wanted = signal.SIGTERM
            if wanted is not None:
                os.kill(server, wanted)
                kill_at_s = time.monotonic() + spec.grace_s
        elif wanted is not None or time.monotonic() >= kill_at_s:
            os.kill(server, signal.SIGKILL)


def _bury(server: subprocess.Popen[bytes]) -> int:
    """Kill what the ended server left running, wait for all of it, and return the server's status."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
    status = server.wait()
    while True:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
        for child in map(int, children):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
