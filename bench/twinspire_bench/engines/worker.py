"""A contestant: a process of its own that measures itself once each time it is asked, and waits in between."""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from twinspire.errors import EngineError
from twinspire_bench.engines.task import Task


class Contestant:
    """A started contestant. `measure` returns its next figure; leaving the `with` block ends its process."""

    def __init__(self, task: Task) -> None:
        self._name = task.name
        command = [sys.executable, "-m", "twinspire_bench.engines.runner"]
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
