"""Process that measures one thing, idle between measurements: `python -m twinspire_bench.worker MODULE:FUNCTION`.

On standard input comes one line, a JSON object, which FUNCTION takes; it returns what to call for each line after it.
On standard output goes one JSON object a line: {"ready": true}, then {"result": x} for each call, or {"error": "..."},
after which the process ends. What libraries print to standard output goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeAlias

import twinspire
import twinspire_bench
from twinspire.errors import EngineError

Target: TypeAlias = Callable[[dict[str, Any]], Callable[[], Any]]
"""Function of a module that takes a JSON object and returns what measures: a function whose result JSON can hold."""
_LOG_LINES = 5


class Worker:
    """A started worker process; `call` measures once, leaving the `with` block ends the process.

    `label` names it in errors. `python` is another interpreter than ours, which imports our packages from where they
    are and everything else from its own environment. Raises `EngineError` where the process fails.
    """

    def __init__(
        self,
        target: Target,
        task: Mapping[str, Any],
        *,
        label: str,
        python: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._label = label
        packages = (twinspire, twinspire_bench)
        path = sys.path if python is None else [str(Path(str(package.__file__)).parents[1]) for package in packages]
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [str(python or sys.executable), "-m", __name__, f"{target.__module__}:{target.__qualname__}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **(environment or {})},
        )
        try:
            self._ask(json.dumps(task))
        except BaseException:
            self.close()
            raise

    def call(self) -> Any:  # noqa: ANN401 - JSON
        """Let the process measure once, and return the result."""
        return self._ask("")["result"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            self._log.seek(0)
            last = " | ".join(self._log.read().strip().splitlines()[-_LOG_LINES:])
            raise EngineError(f"{self._label}: its process ended with status {status}: {last or 'it printed nothing'}")
        document: dict[str, Any] = json.loads(answer)
        if "error" in document:
            raise EngineError(f"{self._label}: {document['error']}")
        return document


def _serve(target: str, tasks: IO[str], answers: IO[str]) -> None:
    def answer(**document: object) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    try:
        module, _, function = target.partition(":")
        measure = getattr(importlib.import_module(module), function)(json.loads(tasks.readline()))
        answer(ready=True)
        for _ in tasks:
            answer(result=measure())
    except Exception as error:  # the caller raises it
        answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    own_output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.argv[1], sys.stdin, own_output)
