"""A `tritonserver` process with its keeper, its temporary folder and its shared memory, which go together."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from twinspire.errors import ServerError
from twinspire_server.triton import keeper
from twinspire_server.triton.environment import prepare
from twinspire_server.triton.locate import TritonInstall
from twinspire_server.triton.options import EXIT_TIMEOUT_S, local_flags

_GRACE_S = EXIT_TIMEOUT_S + 5.0
"""Until the server is killed: Triton's own time for requests in flight, and what unloading the models takes."""
_KEEPER_S = 10.0
"""What the keeper gets on top of that to clear away."""


class TritonProcess:
    """A started `tritonserver`; it does not outlive this process. Knows nothing of when it is ready.

    `arguments` are flags; `name` is what the server says it is called. Its output and its models' goes to `log`.
    `backend_directory` holds backends to use beside Triton's own. Raises `ServerError` where it cannot be executed.
    """

    def __init__(
        self,
        install: TritonInstall,
        arguments: Sequence[str],
        *,
        log: IO[bytes],
        backend_directory: Path | None = None,
    ) -> None:
        token = secrets.token_hex(4)
        self.name = f"twinspire-{token}"
        self._shm_prefix = f"twinspire_triton_{token}_"
        self._folder = tempfile.mkdtemp(prefix="twinspire-triton-")
        try:
            around = prepare(install, Path(self._folder), os.environ, backend_directory=backend_directory)
            own = local_flags(server_id=self.name, backends=around.backends, shm_prefix=self._shm_prefix)
            spec = keeper.Spec(
                command=[str(install.executable), *arguments, *own],
                parent=os.getpid(),
                folder=self._folder,
                shm_prefix=self._shm_prefix,
                grace_s=_GRACE_S,
            )
            self._keeper = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", keeper.__file__, json.dumps(asdict(spec))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=around.environment,
                start_new_session=True,  # Ctrl-C at the terminal is for this process, which passes it on
            )
        except BaseException:
            keeper.remove_leftovers(self._folder, self._shm_prefix)
            raise
        try:
            assert self._keeper.stdout is not None
            with self._keeper.stdout as told:
                said = json.loads(told.readline() or '{"error": "the process that keeps it ended"}')
            if "error" in said:
                raise ServerError(f"tritonserver could not be started: {said['error']}")
            self.pid: int = said["pid"]
        except BaseException:
            self.end(kill=True)
            raise

    def poll(self) -> int | None:
        """Return None while the server runs, then its exit status, or 128 plus the signal that ended it."""
        return self._keeper.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for its end and return what `poll` then gives. Raises `TimeoutError`."""
        try:
            return self._keeper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

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
        """Ask the keeper to end the server; asked a second time it kills."""
        for number in (signal.SIGTERM, signal.SIGINT)[:times]:  # two different ones: two alike would become one
            if self._keeper.poll() is None:
                self._keeper.send_signal(number)

    def _await(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(_GRACE_S + _KEEPER_S)
        if self._keeper.poll() is None:  # stopped or stuck: the kernel ends the server with it
            self._keeper.kill()
            self._keeper.wait()
        keeper.remove_leftovers(self._folder, self._shm_prefix)  # there still where the keeper was killed
