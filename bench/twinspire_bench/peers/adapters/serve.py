"""The process of a peer: `python serve.py ADAPTER`, run with the Python of the peer's environment.

An adapter is a Python file with a function `open_peer`, which takes a task, a JSON object, and returns an
`EmbeddingPeer` or a `Store`, as the task's `kind` says. On standard input comes a line with the task, then a line for
each measurement, a JSON object that `embedding_calls` or `store_calls` takes. On standard output goes a JSON object for
each line: {"versions": {...}} once the peer is open, then results. A failure is {"error": "..."}, and ends the process.
What libraries print to standard output goes to standard error.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import IO, Any

_PACKAGE = "twinspire_peer_adapters"


def _package(name: str, folder: Path) -> None:
    """Make a package of the modules in a folder."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


def _load(adapter: Path) -> Any:  # noqa: ANN401 - a module
    """Import an adapter, for which `..` is this folder, wherever its file is."""
    parent = f"{_PACKAGE}.{adapter.parent.name}"
    _package(_PACKAGE, Path(__file__).parent)
    _package(parent, adapter.parent)
    spec = importlib.util.spec_from_file_location(f"{parent}.{adapter.stem}", adapter)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _serve(adapter: Path, requests: IO[str], answers: IO[str]) -> None:
    def answer(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    try:
        task = json.loads(requests.readline())
        # Whatever threads a library starts: all peers have the same processors.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
        peer = _load(adapter).open_peer(task)
        calls = importlib.import_module(f"{_PACKAGE}.{task['kind']}_calls")
        answer({"versions": {name: metadata.version(name) for name in task["packages"]}})
        for line in requests:
            answer(calls.measure(peer, task, json.loads(line)))
    except Exception as error:  # the caller reports it
        answer({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})


if __name__ == "__main__":
    own_input, own_output = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _serve(Path(sys.argv[1]), own_input, own_output)
