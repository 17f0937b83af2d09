"""The process between twinspire and `tritonserver`: however either of them ends, it removes what is left of the server.

Run as a script, with the standard library alone: `python -I -S reaper.py LAUNCH`, where LAUNCH is JSON of `Launch`. It
writes to standard output, in one line of JSON, the server's process id or why it could not be started. Standard error
is the log, also the server's.

- SIGINT and SIGTERM are passed on; after `grace_s`, or at the second one, the server is killed.
- From SIGUSR1 on, the signal that all models are loaded, the processes of Python models are watched. Triton 2.51 does
  not replace one that has ended and still reports that it is ready: the server is killed.
- The process that started the reaper is watched: when it has ended or was killed, the server is asked to stop.
- When the server has ended or was killed, its child processes are killed (the reaper is the subreaper of all of them),
  then its temporary folder and its shared memory are removed.
- Where the reaper itself is killed the kernel kills the server, and Triton's Python models notice within a second.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
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
MODELS_LOADED = signal.SIGUSR1
_WATCHED = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, MODELS_LOADED}
_POLL_S = 0.2
"""How often the reaper checks that its parent and the models' processes still run."""
_STUB = "triton_python_backend_stub"[:15]
"""The kernel's name, of at most 15 characters, for the process of a Python model: proc(5), comm."""
_INSTANCE = 8
"""The index of the argument of a stub with the model's instance: pb_stub.cc of Triton's Python backend."""
_EXIT_CODE = -1
"""The last field of /proc/PID/stat: the status of a process that has ended and is not waited for yet, proc(5)."""


@dataclass(frozen=True)
class Launch:
    """The server's command, the process that started the reaper, and what to remove at the end."""

    command: list[str]
    parent: int
    folder: str
    shm_prefix: str
    grace_s: float


@dataclass(frozen=True)
class ModelProcess:
    """The process of a Python model. `instance` is Triton's name for what runs in it: `scenes_image_0_0`."""

    pid: int
    instance: str


def main() -> int:
    """Run the server until it ends; return its exit status, or 128 plus the signal that ended it."""
    launch = Launch(**json.loads(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        try:
            server = subprocess.Popen(  # noqa: S603
                launch.command,
                cwd=launch.folder,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                process_group=0,
                preexec_fn=lambda: _become_server(libc),  # this process has one thread
            )
        except OSError as error:
            _report({"error": f"{launch.command[0]}: {error.strerror or error}"})
            return 1
        _report({"pid": server.pid})
        _watch(server.pid, launch)
        return _bury(server)
    finally:
        remove_leftovers(launch.folder, launch.shm_prefix)


def remove_leftovers(folder: str, shm_prefix: str) -> None:
    """Remove a server's temporary folder and shared memory. The server must have ended."""
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):  # noqa: S108
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _become_server(libc: ctypes.CDLL) -> None:
    """Prepare the server between fork and exec: let it die with the reaper, and reset the signals."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job of a shell script ignores SIGINT
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _report(document: dict[str, object]) -> None:
    with suppress(OSError):  # the process that reads it may have ended
        os.write(1, json.dumps(document).encode() + b"\n")
        os.close(1)


def _watch(server: int, launch: Launch) -> None:
    """Return when the server has ended, without waiting for it."""
    kill_at_s: float | None = None
    models: dict[int, ModelProcess] = {}  # by a descriptor that becomes readable when the process ends
    while os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        received = signal.sigtimedwait(_WATCHED, _POLL_S)
        number = received.si_signo if received is not None else None
        if number == MODELS_LOADED:
            models = _watched(server)
        end_signal = number if number in (signal.SIGINT, signal.SIGTERM) else None
        if kill_at_s is not None:
            if end_signal is not None or time.monotonic() >= kill_at_s:
                os.kill(server, signal.SIGKILL)
            continue
        ended = _ended(models)
        if ended is not None:
            print(
                f"twinspire: the process {ended.pid} of the Python model {ended.instance or '?'} "
                f"{how_ended(ended.pid)}. Triton does not replace it and would answer none of its requests: ending the "
                "server",
                file=sys.stderr,
                flush=True,
            )
            os.kill(server, signal.SIGKILL)
            models = {}
            continue
        if end_signal is None and os.getppid() != launch.parent:
            end_signal = signal.SIGTERM
        if end_signal is not None:
            os.kill(server, end_signal)
            kill_at_s = time.monotonic() + launch.grace_s


def model_processes(server: int) -> list[ModelProcess]:
    """List the processes in which a server's Python models run: its children, of whichever thread.

    One that has ended is listed too, without the name of its instance, until Triton waits for it: 2.51 never does.
    """
    found = []
    for task in Path(f"/proc/{server}/task").glob("*"):
        with suppress(OSError):
            for child in (task / "children").read_text(encoding="ascii").split():
                with suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text(encoding="ascii", errors="replace").strip() == _STUB:
                        arguments = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
                        found.append(ModelProcess(int(child), "".join(arguments[_INSTANCE : _INSTANCE + 1])))
    return found


def _watched(server: int) -> dict[int, ModelProcess]:
    """Return the processes of a server's models by descriptors that become readable when one ends."""
    found = {}
    for model in model_processes(server):
        with suppress(OSError):  # one that Triton has waited for, or a kernel without pidfd: the canary remains
            found[os.pidfd_open(model.pid)] = model
    return found


def how_ended(pid: int) -> str:
    """Describe how a process of this user has ended that its parent has not waited for yet."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").split()[_EXIT_CODE])
    except (OSError, ValueError):
        return "has ended"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        memory = ", as the kernel does when memory runs out" if number == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(number).name}{memory}"
    return f"has ended with status {os.waitstatus_to_exitcode(status)}"


def _ended(models: dict[int, ModelProcess]) -> ModelProcess | None:
    """Return one of the processes that has ended, None where all still run."""
    poll = select.poll()
    for descriptor in models:
        poll.register(descriptor, select.POLLIN)
    return next((models[descriptor] for descriptor, _ in poll.poll(0)), None)


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
