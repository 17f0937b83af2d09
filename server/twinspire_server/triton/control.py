"""Commands to a running `twinspire serve`, over a Unix socket that its user alone can open.

A connection carries one command, a line of JSON, and its answers, further lines: `{"progress": TEXT}` any number of
times, then `{"outcome": {...}}` or `{"error": TEXT, "type": NAME}`.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from twinspire.errors import InputError, ServerError, ServerUnavailableError, TwinspireError
from twinspire_server.triton.releases import CONTROL

_LARGEST_BYTES = 1 << 20
_READ_TIMEOUT_S = 5.0

Progress = Callable[[str], None]


class ControlSocket:
    """The socket in a folder, and the thread that accepts commands there; a context manager.

    `run` is called, in a thread of its own, with each command and a function for messages on the way; what it returns
    is the outcome, a TwinspireError that it raises is passed on. Raises ServerError where the socket cannot be made.
    """

    def __init__(self, folder: Path, run: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> None:
        self._run = run
        self._path = folder / CONTROL
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)  # of a process that was killed: the folder's lock is held
            with _short_path(self._path) as path:
                self._socket.bind(path)
            self._path.chmod(0o600)
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise ServerError(f"cannot make the socket {self._path}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="control", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), name="command", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        def send(document: dict[str, Any]) -> None:
            with suppress(OSError):  # nobody listens any more: the command goes on
                connection.sendall(json.dumps(document).encode() + b"\n")

        with closing(connection):
            try:
                connection.settimeout(_READ_TIMEOUT_S)
                command = json.loads(connection.makefile("rb").readline(_LARGEST_BYTES))
                send({"outcome": self._run(command, lambda text: send({"progress": text}))})
            except TwinspireError as error:
                send({"error": str(error), "type": type(error).__name__})
            except (OSError, ValueError, LookupError, TypeError) as error:
                send({"error": f"the command failed: {error!r}", "type": "ServerError"})


def send_command(folder: Path, command: dict[str, Any], *, progress: Progress, repository: Path) -> dict[str, Any]:
    """Send a command to the process that serves a repository; return the outcome.

    Raises ServerUnavailableError where none does, ServerError where it belongs to another user or ends meanwhile, and
    the error of the command.
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        try:
            with _short_path(folder / CONTROL) as path:
                connection.connect(path)
        except PermissionError as error:
            raise ServerError(
                f"{repository} is served by the user {_owner(folder)}: only that user can change what it serves"
            ) from error
        except OSError as error:
            raise ServerUnavailableError(
                f"no server of {repository} runs here: start one with `twinspire serve {repository}`, or name the "
                "folder of its releases with --state"
            ) from error
        try:
            connection.sendall(json.dumps(command).encode() + b"\n")
            for line in connection.makefile("rb"):
                document = json.loads(line)
                if "progress" in document:
                    progress(document["progress"])
                elif "error" in document:
                    raise (InputError if document["type"] == "InputError" else ServerError)(document["error"])
                else:
                    outcome: dict[str, Any] = document["outcome"]
                    return outcome
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ServerError(f"the server of {repository} cannot be understood: {error!r}") from error
    raise ServerError(
        f"the server of {repository} ended before the command did. It serves what it served before, or the new "
        "release, when it is started again"
    )


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Give a short name of a socket's path: the kernel takes no more than 107 bytes."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _owner(folder: Path) -> str:
    with suppress(OSError):
        number = folder.stat().st_uid
        with suppress(KeyError):
            return pwd.getpwuid(number).pw_name
        return str(number)
    return "unknown"
