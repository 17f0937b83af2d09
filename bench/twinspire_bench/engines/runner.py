"""The process of a contestant: `python -m twinspire_bench.engines.runner`.

On standard input comes one JSON object, the task, then an empty line for each measurement; on standard output goes a
JSON object for each of them: {"ready": true}, then {"figure": x}, or {"error": "..."}, after which it ends. What
libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, TextIO

from twinspire_bench.engines.task import Task


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
