"""A contestant: a process of its own that measures itself once each time it is asked, and waits in between.

It is `python -m twinspire_bench.engines.contestant`. On standard input comes one JSON object, the task, then an empty
line for each measurement; on standard output goes a JSON object for each of them: {"ready": true}, then {"figure": x},
or {"error": "..."}, after which it ends. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TextIO

from twinspire.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a contestant computes. `name` is one of `peers.CONTESTANTS`; it reads of the rest what it needs.

    `pictures` is a .npy file, (N, S, S, 3) uint8; `captions` a JSON list of str; `folder` holds JPEG files; `engine`
    is the file that a foreign runtime opens.
    """

    name: str
    threads: int
    streams: int = 1
    bundle: Path | None = None
    checkpoint: Path | None = None
    engine: Path | None = None
    pictures: Path | None = None
    captions: Path | None = None
    folder: Path | None = None
    batch: int = 32
    part: int = 0  # how many captions a measurement takes; all of them with 0

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data; the inverse of `from_json`."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Task:
        """Make a task of what `to_json` gave."""
        paths = ("bundle", "checkpoint", "engine", "pictures", "captions", "folder")
        given: dict[str, Any] = {**document, **{key: Path(document[key]) for key in paths if document[key] is not None}}
        return cls(**given)

    def path(self, name: str) -> Path:
        """Return a path that this contestant cannot do without."""
        found = getattr(self, name)
        if not isinstance(found, Path):
            raise EngineError(f"{self.name} needs the path of its {name}: none came")
        return found


class Contestant:
    """A started contestant. `measure` returns its next figure; leaving the `with` block ends its process."""

    def __init__(self, task: Task) -> None:
        self._name = task.name
        command = [sys.executable, "-m", "twinspire_bench.engines.contestant"]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        try:
            self._tell(json.dumps(task.to_json()))
            self._answer()
        except BaseException:
            self.close()
            raise

    def measure(self) -> float:
        """Let it measure itself. Raises EngineError, with its own words, where it cannot."""
        self._tell("")
        return float(self._answer()["figure"])

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineError(f"{self._name} has ended: see what it printed above") from error

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"{self._name} ended without an answer: see what it printed above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self._name}: {answer['error']}")
        return answer


def _own_output() -> TextIO:
    """Return standard output for the answers alone; what others print there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer_to(tasks: IO[str], answers: TextIO) -> None:
    def say(**answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        from twinspire_bench.engines.peers import CONTESTANTS

        task = Task.from_json(json.loads(tasks.readline()))
        measure = CONTESTANTS[task.name](task)
        measure()  # warm
        say(ready=True)
        for _ in tasks:
            say(figure=measure())
    except Exception as error:  # whatever it is, the one who asked is told
        say(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    _answer_to(sys.stdin, _own_output())
