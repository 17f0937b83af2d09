"""Worker processes of benchmarks: calls, what they print, and how they fail."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from twinspire.errors import EngineError
from twinspire_bench.worker import Worker

TARGETS = """
import os, sys

def counting(task):
    print("loading")
    counts = iter(range(task["start"], 100))
    def measure():
        print("measuring", flush=True)
        return [next(counts), os.environ.get("SETTING")]
    return measure

def failing(task):
    raise ValueError("no such model")

def dying(task):
    def measure():
        print("first\\nout of memory", file=sys.stderr, flush=True)
        os._exit(9)
    return measure
"""


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a module of targets from a folder that only this process has on its path."""
    (tmp_path / "worker_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "worker_targets", raising=False)
    return importlib.import_module("worker_targets")


def test_calls_of_one_process_go_on_where_the_last_ended(targets: ModuleType) -> None:
    """Each call measures in the same process, with its environment; what it prints disturbs no result."""
    with Worker(targets.counting, {"start": 3}, label="counting", environment={"SETTING": "on"}) as worker:
        assert [worker.call(), worker.call()] == [[3, "on"], [4, "on"]]


def test_an_error_of_the_target_is_raised_with_the_label(targets: ModuleType) -> None:
    """What the target raises while it starts is an EngineError with the label and the cause."""
    with pytest.raises(EngineError, match=r"text tower.*ValueError.*model"):
        Worker(targets.failing, {}, label="text tower")


def test_a_process_that_dies_leaves_its_last_words(targets: ModuleType) -> None:
    """A process that ends without an answer is an EngineError with its status and the last lines that it printed."""
    with Worker(targets.dying, {}, label="image tower") as worker:
        for _ in range(2):  # the second time, nothing is left to write to
            with pytest.raises(EngineError, match=r"image tower.*9.*memory"):
                worker.call()
