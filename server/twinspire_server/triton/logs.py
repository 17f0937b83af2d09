"""The log of a server: a file that a user names or a temporary one, and the reasons for a failure read from it."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from twinspire._arguments import file_errors

_PREFIX, _SUFFIX = "twinspire-triton-", ".log"
_KEPT = 5
"""How many temporary logs of failed servers are kept."""
_READ_BYTES = 1 << 20
"""How much of a log is searched for the reasons of a failure, from its end."""

_LINE = re.compile(r'^E\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.]+:\d+\] +"?(?P<message>.*?)"?$', re.MULTILINE)
_FAILED = re.compile(r"^failed to load (?:model )?'|^Poll failed for model directory '")
_PLAIN = re.compile(
    r"^\[libprotobuf ERROR [^\]]*\] (?P<parser>.*)$|^(?P<plain>error: .*|.*error while loading shared libraries.*|"
    r"\S+: (?:unrecognized )?option '.*|Bad option: .*|Invalid option value.*)$",  # of flags that Triton rejects
    re.MULTILINE,
)
_ABORT = re.compile(
    r"^terminate called after throwing an instance of '(?P<type>[^']*)'$(?:\n  what\(\):  (?P<what>.*?)$)?",
    re.MULTILINE,
)
_FRAME = re.compile(r" ?\d+# ")
_TAKEN = re.compile(r"failed to start (HTTP|GRPC|Metrics) service: .*already in use")
_REAPER = re.compile(r"^twinspire: (?P<message>.*)$", re.MULTILINE)
_NOISE = ("CudaDriverHelper has not been initialized", "ERROR: Failed to create instance")
_SHOWN = 5


class ServerLog:
    """The file that a server and its models print to: `named`, appended to, or a temporary one.

    A temporary log is removed by `discard`, except after `keep`.
    """

    def __init__(self, named: Path | None) -> None:
        self.is_temporary = named is None
        self._path = named
        self._start = 0
        self._keep = False

    @property
    def path(self) -> Path:
        """The file."""
        assert self._path is not None, "open the log first"
        return self._path

    def open(self) -> None:
        """Make the file, a new temporary one unless the last is kept. Raises InputError where it cannot be written."""
        with file_errors(f"cannot write the server's log {self._path or ''}", self._path):
            if self.is_temporary and not (self._keep and self._path is not None):
                self._path = new_log()
            self.path.open("ab").close()
            self._start = self.path.stat().st_size

    def keep(self, keep: bool = True) -> None:
        """Keep a temporary log, as that of a server which has failed, and continue it at the next start."""
        self._keep = keep

    def discard(self) -> None:
        """Remove a temporary log that is not kept."""
        if self.is_temporary and self._path is not None and not self._keep:
            self._path.unlink(missing_ok=True)

    def read(self) -> str:
        """Return the end of what was printed since `open`; nothing where somebody has removed the file."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(max(self._start, file.seek(0, os.SEEK_END) - _READ_BYTES))
            return file.read().decode(errors="replace")
        return ""

    def explain(self, summary: str) -> str:
        """Return `summary` with the reasons that the log gives, and where the log is."""
        text = self.read()
        lines = [f"  {line}" for reason in reasons(text) or last_lines(text) for line in reason.splitlines()]
        return "\n".join([summary, *lines, f"Full log: {self.path}"])


def checked_log(path: Path | None) -> Path | None:
    """Return the absolute path of a log, made where it is missing. Raises InputError where it cannot be written."""
    if path is None:
        return None
    with file_errors(f"cannot write the access log {path}", path):
        path.open("ab").close()
    return path.absolute()


def new_log() -> Path:
    """Make a temporary log and remove all but the newest five of those that no server writes to any more."""
    handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX)
    os.close(handle)
    _prune(Path(name))
    return Path(name)


def claim(log: IO[bytes]) -> None:
    """Mark a log as in use, until every process that inherits the open file has ended."""
    with suppress(OSError):  # some network file systems know no locks
        fcntl.flock(log, fcntl.LOCK_SH)


def _prune(new: Path) -> None:
    times = {}
    for log in new.parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            if log != new and log.stat().st_uid == os.geteuid():
                times[log] = log.stat().st_mtime_ns
    for log in sorted(times, key=lambda log: times[log])[:-_KEPT]:
        with suppress(OSError), log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: a server writes to it
            log.unlink()


def reasons(log: str) -> list[str]:
    """List why a server ended, in Triton's words, most specific first; empty where the log gives no reason.

    A model that did not load is listed once, with its own error and without the traceback. Of an abort the list has the
    exception's type and its `what()`, and no stack.
    """
    from_reaper = [match["message"] for match in _REAPER.finditer(log)]  # the reaper has ended the server
    if from_reaper:
        return from_reaper
    aborts = [f"{match['type']}: {match['what'] or 'no message'}" for match in _ABORT.finditer(log)]
    if aborts:
        return list(dict.fromkeys(aborts))[-_SHOWN:]
    messages = [match["message"] for match in _LINE.finditer(log)]
    failed = [_readable(message) for message in messages if _FAILED.match(message)]
    parser = [match["parser"] for match in _PLAIN.finditer(log) if match["parser"]]
    if failed:
        return list(dict.fromkeys([*failed, *parser]))[:_SHOWN]
    errors = [_readable(message) for message in messages if not message.startswith(_NOISE)]
    plain = [match["plain"] for match in _PLAIN.finditer(log) if match["plain"]]
    return list(dict.fromkeys([*errors, *parser, *plain]))[-_SHOWN:]


def taken_service(log: str) -> str | None:
    """Return the service, `http`, `grpc` or `metrics`, whose port Triton found taken; None where none was."""
    found = _TAKEN.search(log)
    return found[1].lower() if found is not None else None


def last_lines(log: str) -> list[str]:
    """Return the last lines, for a log without an error; Triton's tables and stack frames are left out."""
    lines = [line for line in log.splitlines() if line.strip() and line[0] not in "|+" and not _FRAME.match(line)]
    return lines[-_SHOWN:] or ["(its log is empty)"]


def _readable(line: str) -> str:
    """Undo Triton's escapes and leave out where in its code a Python model raised the error."""
    text = line.replace("\\n", "\n").replace('\\"', '"')
    text = text.split("\n\nAt:\n")[0]
    return "\n".join(part.rstrip() for part in text.strip().splitlines())
