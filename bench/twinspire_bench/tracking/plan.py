"""The steps of `twinspire bench run`: what each runs, in which suite, and what it needs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from twinspire_bench.scripts import TWINSPIRE


class Suite(StrEnum):
    """How much is measured: `smoke` in minutes, to see that nothing broke; `full` for figures that matter."""

    SMOKE = "smoke"
    FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a run measures: a bundle's folder, captioned images as `bench recall --data` takes them, a work folder."""

    bundle: Path
    data: str
    work: Path


@dataclass(frozen=True, kw_only=True)
class Step:
    """A benchmark of the plan.

    `command` is a command line without its bundle, data, work folder and record, which `uses` adds by name; `options`
    are by suite. `modules` are what must be installed, with the extra that brings it; `limit_s` ends one that hangs.
    """

    name: str
    command: tuple[str, ...]
    options: Mapping[Suite, tuple[str, ...]]
    uses: tuple[str, ...] = ("bundle",)
    modules: Mapping[str, str]
    limit_s: Mapping[Suite, float]

    def arguments(self, suite: Suite, target: Target) -> list[str]:
        """Return the command line, without --json."""
        given = {"bundle": str(target.bundle), "data": target.data, "work": str(target.work)}
        words = [word for name in self.uses for word in (f"--{name}", given[name])]
        return [*self.command, *self.options[suite], *words]

    def missing(self) -> str | None:
        """Return why the step cannot run here, None where it can."""
        for module, extra in self.modules.items():
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed: pip install 'twinspire[{extra}]'"
        return None


_PYTHON = (sys.executable, "-m")
_BENCH = (*TWINSPIRE, "bench")
_LIMITS = {Suite.SMOKE: 300.0, Suite.FULL: 3600.0}
_LOCAL = {"onnxruntime": "cpu"}
_SERVED = {"onnxruntime": "cpu", "pytriton": "server"}

STEPS: Sequence[Step] = (
    Step(
        name="engines",
        command=(*_BENCH, "latency"),
        options={
            Suite.SMOKE: ("--rounds", "5", "--visit", "0.1", "--batch", "1,32", "--lengths", "16"),
            Suite.FULL: ("--rounds", "10"),
        },
        modules=_LOCAL,
        limit_s=_LIMITS,
    ),
    Step(
        name="recall",
        command=(*_BENCH, "recall"),
        options={Suite.SMOKE: ("--limit", "500"), Suite.FULL: ()},
        uses=("bundle", "data"),
        modules=_LOCAL,
        limit_s=_LIMITS,
    ),
    Step(
        name="index",
        command=(*_BENCH, "index"),
        options={
            Suite.SMOKE: (
                *("--distribution", "clusters", "--size", "10000", "--dim", "128", "--adds", "2000", "--peer", "none"),
                *("--spec", "flat", "--spec", "ivf,pq32x4"),
            ),
            Suite.FULL: ("--size", "300000", "--peer", "none"),
        },
        uses=(),
        modules={"faiss": "cpu"},
        limit_s=_LIMITS,
    ),
    Step(
        name="ingest",
        command=(*_PYTHON, "twinspire_bench.ingest"),
        options={Suite.SMOKE: ("--rounds", "3", "--images", "150"), Suite.FULL: ("--images", "1000")},
        modules=_LOCAL,
        limit_s=_LIMITS,
    ),
    Step(
        name="serving",
        command=(*_PYTHON, "twinspire_bench.serving_overhead"),
        options={Suite.SMOKE: ("--rounds", "3", "--images", "160", "--texts", "128"), Suite.FULL: ()},
        uses=("bundle", "work"),
        modules=_SERVED,
        limit_s=_LIMITS,
    ),
    Step(
        name="gateway",
        command=(*_PYTHON, "twinspire_bench.gateway"),
        options={Suite.SMOKE: ("--rounds", "2", "--visit", "1"), Suite.FULL: ()},
        uses=("bundle", "work"),
        modules={**_SERVED, "fastapi": "gateway"},
        limit_s=_LIMITS,
    ),
)
"""All steps, in the order in which they run."""
