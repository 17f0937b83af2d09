"""A child process that answers in JSON, one line each way, with a time limit. It ends with all that it started."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from twinspire.errors import EngineError

_LOG_LINES = 5
_LOG_LINE_LENGTH = 300
_LOG_TAIL_BYTES = 1 << 16
_READ_BYTES = 1 << 16
_ENDING_S = 5.0
_ENDING_POLL_S = 0.01


class JsonProcess:
    """A started process; leaving the `with` block ends it and its descendants in its process group.

    It answers a line on its standard input with one line on its standard output, a JSON object; what it prints on
    standard error goes to a log, of which errors show the last lines. `label` names it in errors. `environment` is all
    that it gets. Raises EngineError where it cannot be started.
    """

    def __init__(self, command: Sequence[str], *, label: str, environment: Mapping[str, str]) -> None:
        self._label, self._buffer = label, b""
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"{label}: its process cannot be started: {error}") from error

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that the process itself has had resident, until now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(kib)

    def ask(self, line: str, *, time_limit_s: float | None = None) -> dict[str, Any]:
        """Send a line and return the answer.

        Raises EngineError, after which the process is of no more use, where it ends, does not answer within
        `time_limit_s` seconds, answers with anything but a JSON object, or with one that has an `error`.
        """
        deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            answer = self._read_line(deadline)
        except BrokenPipeError:
            answer = b""
        except TimeoutError:
            raise EngineError(
                f"{self._label}: no answer within the time limit of {time_limit_s:g} s; its last lines: {self._tail()}"
            ) from None
        if not answer:
            raise EngineError(f"{self._label}: its process ended with {_status(self._end())}: {self._tail()}")
        try:
            document = json.loads(answer)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            shown = answer[:_LOG_LINE_LENGTH].decode(errors="replace").strip()
            raise EngineError(f"{self._label}: it answered {shown!r}: expected a JSON object on one line")
        if "error" in document:
            raise EngineError(f"{self._label}: {document['error']}")
        return document

    def close(self) -> None:
        """End the process."""
        end_group(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # a line that was never read
                stream.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read_line(self, deadline: float | None) -> bytes:
        """Return the next line, empty where the output ends before. Raises TimeoutError after `deadline`."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        while b"\n" not in self._buffer:
            left_ms = None if deadline is None else max(0.0, 1000 * (deadline - time.monotonic()))
            if not waiting.poll(left_ms):
                raise TimeoutError
            part = os.read(descriptor, _READ_BYTES)
            if not part:
                return b""
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _end(self) -> int:
        """Return the status of the process, which is ending; by force after a while. Its descendants are ended too."""
        given_up = time.monotonic() + _ENDING_S
        while self._process.returncode is None and time.monotonic() < given_up:
            # Without reaping it: its number then still is that of the group.
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                break
            time.sleep(_ENDING_POLL_S)
        end_group(self._process)
        return int(self._process.returncode)

    def _tail(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()[-_LOG_LINES:]
        return " | ".join(line[:_LOG_LINE_LENGTH] for line in lines) or "it printed nothing"


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a session of its own, with all processes of its group, and wait for it."""
    if process.returncode is None:  # else the number may be another group's by now
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _status(status: int) -> str:
    """Describe an exit status: signals by their names, since a process without memory dies of SIGKILL."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
