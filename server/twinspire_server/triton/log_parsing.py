"""Why Triton did not start or ended, read from its log."""

from __future__ import annotations

import re

_LINE = re.compile(r'^E\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.]+:\d+\] +"?(?P<said>.*?)"?$', re.MULTILINE)
_FAILED = re.compile(r"^failed to load (?:model )?'|^Poll failed for model directory '")
_PLAIN = re.compile(
    r"^\[libprotobuf ERROR [^\]]*\] (?P<parser>.*)$|^(?P<plain>error: .*|.*error while loading shared libraries.*|"
    r"\S+: (?:unrecognized )?option '.*|Bad option: .*|Invalid option value.*)$",  # of flags that Triton refuses
    re.MULTILINE,
)
_ABORT = re.compile(
    r"^terminate called after throwing an instance of '(?P<type>[^']*)'$(?:\n  what\(\):  (?P<what>.*?)$)?",
    re.MULTILINE,
)
_FRAME = re.compile(r" ?\d+# ")
_TAKEN = re.compile(r"failed to start (HTTP|GRPC|Metrics) service: .*already in use")
_OWN = re.compile(r"^twinspire: (?P<own>.*)$", re.MULTILINE)
_NOISE = ("CudaDriverHelper has not been initialized", "ERROR: Failed to create instance")
_SHOWN = 5


def reasons(log: str) -> list[str]:
    """List why a server ended, as Triton put it, most telling first; empty where the log does not say.

    A model that did not load is told once, with its own error; a traceback's place in the code stays in the log. Of
    an abort the exception is told, by its type and its `what()`, and no stack.
    """
    own = [match["own"] for match in _OWN.finditer(log)]  # the reaper's, which ended the server
    if own:
        return own
    aborts = [f"{match['type']}: {match['what'] or 'no message'}" for match in _ABORT.finditer(log)]
    if aborts:
        return list(dict.fromkeys(aborts))[-_SHOWN:]
    said = [match["said"] for match in _LINE.finditer(log)]
    failed = [_readable(line) for line in said if _FAILED.match(line)]
    parser = [match["parser"] for match in _PLAIN.finditer(log) if match["parser"]]
    if failed:
        return list(dict.fromkeys([*failed, *parser]))[:_SHOWN]
    errors = [_readable(line) for line in said if not line.startswith(_NOISE)]
    plain = [match["plain"] for match in _PLAIN.finditer(log) if match["plain"]]
    return list(dict.fromkeys([*errors, *parser, *plain]))[-_SHOWN:]


def taken_service(log: str) -> str | None:
    """Return the service, `http`, `grpc` or `metrics`, whose port Triton found taken; None where none was."""
    found = _TAKEN.search(log)
    return found[1].lower() if found is not None else None


def last_lines(log: str) -> list[str]:
    """Return the last lines, for a log without an error; Triton's tables and stack frames left out."""
    lines = [line for line in log.splitlines() if line.strip() and line[0] not in "|+" and not _FRAME.match(line)]
    return lines[-_SHOWN:] or ["(its log is empty)"]


def _readable(line: str) -> str:
    """Undo Triton's escapes and leave out where in the code a Python model raised."""
    text = line.replace("\\n", "\n").replace('\\"', '"')
    text = text.split("\n\nAt:\n")[0]
    return "\n".join(part.rstrip() for part in text.strip().splitlines())
