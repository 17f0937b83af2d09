"""A `tritonserver` process, and what is removed with it: its reaper, temporary folder and shared memory."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from twinspire.errors import ServerError
from twinspire_server.triton import reaper
from twinspire_server.triton.environment import inherited_variables, prepare
from twinspire_server.triton.locate import TritonInstall
from twinspire_server.triton.options import EXIT_TIMEOUT_S

_GRACE_S = EXIT_TIMEOUT_S + 5.0
"""The time before the server is killed: Triton's own for requests in flight, and that for unloading the models."""
_REAPER_S = 10.0
"""The further time for the reaper to clean up."""
_ARG_START, _ARG_END = 47, 48
"""The fields of /proc/PID/stat with the addresses of a process's arguments, counted from 0: proc(5)."""


class TritonProcess:
    """A started `tritonserver`, ready or not. It does not outlive this process.

    `arguments` are flags; `name` is the name that the server reports. Its output and its models' is written to `log`.
    `backend_directory` holds backends to use beside Triton's own, `pass_env` names environment variables to pass beside
    the usual ones, `set_env` are variables to set. Raises `ServerError` where it cannot be executed.
    """

    def __init__(
        self,
        install: TritonInstall,
        arguments: Sequence[str],
        *,
        log: IO[bytes],
        backend_directory: Path | None = None,
        pass_env: Collection[str] = (),
        set_env: Mapping[str, str] | None = None,
    ) -> None:
        token = secrets.token_hex(4)
        self.name = f"twinspire-{token}"
        self._shm_prefix = f"twinspire_triton_{token}_"
        with ExitStack() as cleanup:
            try:
                self._folder = tempfile.mkdtemp(prefix="twinspire-triton-")
                cleanup.callback(reaper.remove_leftovers, self._folder, self._shm_prefix)
                variables = inherited_variables(os.environ, pass_env) | dict(set_env or {})
                self._reaper = self._started_reaper(install, arguments, log, backend_directory, variables)
            except OSError as error:
                raise ServerError(f"cannot start tritonserver: {error}") from error
            cleanup.callback(self.end, kill=True)
            assert self._reaper.stdout is not None
            with self._reaper.stdout as output:
                report = json.loads(output.readline() or '{"error": "the reaper ended before it reported"}')
            if "error" in report:
                raise ServerError(f"cannot start tritonserver: {report['error']}")
            self.pid: int = report["pid"]
            cleanup.pop_all()

    def _started_reaper(
        self,
        install: TritonInstall,
        arguments: Sequence[str],
        log: IO[bytes],
        backend_directory: Path | None,
        variables: Mapping[str, str],
    ) -> subprocess.Popen[bytes]:
        environment = prepare(install, Path(self._folder), variables, backend_directory=backend_directory)
        own = [f"--id={self.name}", f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}"]
        if environment.backends is not None:
            own.append(f"--backend-directory={environment.backends}")
        launch = reaper.Launch(
            command=[str(install.executable), *arguments, *own],
            parent=os.getpid(),
            folder=self._folder,
            shm_prefix=self._shm_prefix,
            grace_s=_GRACE_S,
        )
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", reaper.__file__, json.dumps(asdict(launch))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment.variables,
            start_new_session=True,  # Ctrl-C at the terminal is for this process, which passes it on
        )

    def mask(self, secret: str) -> None:
        """Overwrite `secret` in the command lines that other users of this machine see, once Triton has read them."""
        for pid in (self.pid, self._reaper.pid):
            _mask_argument(pid, secret)

    def poll(self) -> int | None:
        """Return None while the server runs, then its exit status, or 128 plus the signal that ended it."""
        return self._reaper.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the server has ended and return its status as `poll` does. Raises `TimeoutError`."""
        try:
            return self._reaper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def models_loaded(self) -> None:
        """Let the reaper watch the processes of Python models from now on."""
        if self._reaper.poll() is None:
            self._reaper.send_signal(reaper.MODELS_LOADED)

    def end(self, *, kill: bool = False) -> None:
        """End the server, at once with `kill`, and return when nothing of it is left. Does nothing when called again.

        When interrupted, kill the server, wait for that and raise the interruption.
        """
        try:
            self._signal(2 if kill else 1)
            self._await()
        except BaseException:
            self._signal(2)
            self._await()
            raise

    def _signal(self, times: int) -> None:
        """Signal the reaper to end the server; the second signal makes it kill."""
        for number in (signal.SIGTERM, signal.SIGINT)[:times]:  # two different ones: two alike would become one
            if self._reaper.poll() is None:
                self._reaper.send_signal(number)

    def _await(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._reaper.wait(_GRACE_S + _REAPER_S)
        if self._reaper.poll() is None:  # stopped or stuck: the kernel ends the server with it
            self._reaper.kill()
            self._reaper.wait()
        reaper.remove_leftovers(self._folder, self._shm_prefix)  # where the reaper was killed before it did


def _mask_argument(pid: int, secret: str) -> None:
    """Overwrite `secret` in the arguments of a process started by this one, where /proc/PID/cmdline shows them to all.

    Triton takes the key as an argument alone and has its own copy as soon as it prints anything. Does nothing where the
    process has ended or the kernel does not allow it (Yama's ptrace_scope 2 and 3).
    """
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = ["", "", *stat.rpartition(")")[2].split()]  # the name before may hold spaces
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            position = arguments.find(secret.encode())
            while position >= 0:
                memory.seek(start + position)
                memory.write(b"*" * len(secret))
                position = arguments.find(secret.encode(), position + len(secret))


def describe_status(status: int) -> str:
    """Describe how a server ended: with a status, or by a signal where it is 128 plus its number."""
    try:
        name = signal.Signals(status - 128).name
    except ValueError:
        return f"status {status}"
    memory = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"status {status}: killed by {name}{memory}"
