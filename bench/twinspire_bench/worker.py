"""Process that measures one thing, idle between measurements: `python -m twinspire_bench.worker MODULE:FUNCTION`.

On standard input comes one line, a JSON object, which FUNCTION takes; it returns what to call for each line after it.
On standard output goes one JSON object a line: {"ready": true}, then {"result": x} for each call, or {"error": "..."},
after which the process ends. What libraries print to standard output goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import twinspire
import twinspire_bench
from twinspire_bench.json_process import JsonProcess

Target: TypeAlias = Callable[[dict[str, Any]], Callable[[], Any]]
"""Function of a module that takes a JSON object and returns what measures: a function whose result JSON can hold."""


class Worker(JsonProcess):
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
        packages = (twinspire, twinspire_bench)
        path = sys.path if python is None else [str(Path(str(package.__file__)).parents[1]) for package in packages]
        super().__init__(
            [str(python or sys.executable), "-m", __name__, f"{target.__module__}:{target.__qualname__}"],
            label=label,
            environment={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **(environment or {})},
        )
        try:
            self.ask(json.dumps(task))
        except BaseException:
            self.close()
            raise

    def call(self) -> Any:  # noqa: ANN401 - JSON
        """Let the process measure once, and return the result."""
        return self.ask("")["result"]


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
