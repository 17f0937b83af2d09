"""A `tritonserver` process with its reaper, its temporary folder and its shared memory, which go together."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from twinspire.errors import ServerError
from twinspire_server.triton import reaper
from twinspire_server.triton.admin import mask_argument
from twinspire_server.triton.environment import passed_on, prepare
from twinspire_server.triton.locate import TritonInstall
from twinspire_server.triton.options import EXIT_TIMEOUT_S, local_flags

_GRACE_S = EXIT_TIMEOUT_S + 5.0
"""Until the server is killed: Triton's own time for requests in flight, and what unloading the models takes."""
_REAPER_S = 10.0
"""What the reaper gets on top of that to clear away."""


class TritonProcess:
    """A started `tritonserver`; it does not outlive this process. Knows nothing of when it is ready.

    `arguments` are flags; `name` is what the server says it is called. Its output and its models' goes to `log`.
    `backend_directory` holds backends to use beside Triton's own, `pass_env` names environment variables that it gets
    beside the usual ones. Raises `ServerError` where it cannot be executed.
    """

    def __init__(
        self,
        install: TritonInstall,
        arguments: Sequence[str],
        *,
        log: IO[bytes],
        backend_directory: Path | None = None,
        pass_env: Collection[str] = (),
    ) -> None:
        token = secrets.token_hex(4)
        self.name = f"twinspire-{token}"
        self._shm_prefix = f"twinspire_triton_{token}_"
        try:
            self._folder = tempfile.mkdtemp(prefix="twinspire-triton-")
        except OSError as error:
            raise ServerError(f"no temporary folder for tritonserver could be made: {error}") from error
        try:
            variables = passed_on(os.environ, pass_env)
            around = prepare(install, Path(self._folder), variables, backend_directory=backend_directory)
            own = local_flags(server_id=self.name, backends=around.backends, shm_prefix=self._shm_prefix)
            spec = reaper.Spec(
                command=[str(install.executable), *arguments, *own],
                parent=os.getpid(),
                folder=self._folder,
                shm_prefix=self._shm_prefix,
                grace_s=_GRACE_S,
            )
            self._reaper = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", reaper.__file__, json.dumps(asdict(spec))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=around.environment,
                start_new_session=True,  # Ctrl-C at the terminal is for this process, which passes it on
            )
        except OSError as error:
            reaper.remove_leftovers(self._folder, self._shm_prefix)
            raise ServerError(f"tritonserver could not be started: {error}") from error
        except BaseException:
            reaper.remove_leftovers(self._folder, self._shm_prefix)
            raise
        try:
            assert self._reaper.stdout is not None
            with self._reaper.stdout as output:
                report = json.loads(output.readline() or '{"error": "the reaper ended before it reported"}')
            if "error" in report:
                raise ServerError(f"tritonserver could not be started: {report['error']}")
            self.pid: int = report["pid"]
        except BaseException:
            self.end(kill=True)
            raise

    def mask(self, secret: str) -> None:
        """Overwrite `secret` in the command lines that other users of this machine see. It has been read by then."""
        for pid in (self.pid, self._reaper.pid):
            mask_argument(pid, secret)

    def poll(self) -> int | None:
        """Return None while the server runs, then its exit status, or 128 plus the signal that ended it."""
        return self._reaper.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for its end and return what `poll` then gives. Raises `TimeoutError`."""
        try:
            return self._reaper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def models_loaded(self) -> None:
        """Let the reaper watch the processes of Python models from now on."""
        if self._reaper.poll() is None:
            self._reaper.send_signal(reaper.MODELS_LOADED)

    def end(self, *, kill: bool = False) -> None:
        """End the server, at once with `kill`, and return when nothing of it is left. Does nothing twice.

        Interrupted, it kills the server, waits for that and raises the interruption.
        """
        try:
            self._tell(2 if kill else 1)
            self._await()
        except BaseException:
            self._tell(2)
            self._await()
            raise

    def _tell(self, times: int) -> None:
        """Ask the reaper to end the server; asked a second time it kills."""
        for number in (signal.SIGTERM, signal.SIGINT)[:times]:  # two different ones: two alike would become one
            if self._reaper.poll() is None:
                self._reaper.send_signal(number)

    def _await(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._reaper.wait(_GRACE_S + _REAPER_S)
        if self._reaper.poll() is None:  # stopped or stuck: the kernel ends the server with it
            self._reaper.kill()
            self._reaper.wait()
        reaper.remove_leftovers(self._folder, self._shm_prefix)  # there still where the reaper was killed
