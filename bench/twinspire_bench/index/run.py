"""Measures variants one after the other, each in processes of its own, on one material, with one number of threads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import twinspire
import twinspire_bench
from twinspire._cores import usable_cores
from twinspire.errors import EngineError, InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.index.ann import IndexSpec, measured_speed, predict
from twinspire_bench.index.inputs import Drawn, Material, drawn_material, hdf5_material
from twinspire_bench.index.scann_peer import check_interpreter
from twinspire_bench.index.variants import is_peer, variant
from twinspire_bench.index.worker import Task, best_at
from twinspire_eval.records import Record

ADD_BATCH = 256
_SPACE = "bench"
_PACKAGES = (str(twinspire.__file__), str(twinspire_bench.__file__))


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """What to measure, on each of `drawn` or on `hdf5`. `work` keeps vectors and built indexes; None: nothing is kept.

    `adds` is how many vectors the durable add is measured with. `build_only` leaves searching to a later run.
    `scann_python` is the interpreter that ScaNN is measured with.
    """

    drawn: Sequence[Drawn] = ()
    hdf5: Path | None = None
    kinds: Sequence[str] | None = None
    peers: Sequence[str] = ("hnswlib", "usearch")
    scann_python: Path | None = None
    threads: int | None = None
    k: int = 10
    recall: float = 0.95
    adds: int = 20_000
    work: Path | None = None
    build_only: bool = False

    def __post_init__(self) -> None:
        if bool(self.drawn) == (self.hdf5 is not None):
            raise InputError("what is searched is either drawn or read from a file: give one of --size and --hdf5")
        if not 0 < self.recall <= 1 or self.k < 1 or self.adds < 0 or (self.threads is not None and self.threads < 1):
            raise InputError(
                f"k {self.k}, recall {self.recall}, adds {self.adds}, threads {self.threads}: expected k and threads "
                "from 1 up, adds from 0 up, a recall above 0 and at most 1"
            )


def usual_kinds(dim: int) -> list[str]:
    """Return the kinds that are measured if none are named."""
    return ["flat", f"ivf,pq{max(1, dim // 4)}x4", f"ivf,pq{max(1, dim // 8)}", "ivf,sq8", "hnsw"]


def measure_index(request: IndexRequest, *, tell: Callable[[str], None] = lambda _: None) -> Record:
    """Build what is not built yet, then search, and return the record.

    Raises InputError for what is not known, MissingDependencyError, EngineError where a process fails.
    """
    threads = request.threads or usable_cores()
    for name in [*(request.kinds or ()), *request.peers]:
        if name == "scann":
            check_interpreter(request.scann_python)
        variant(name, threads)  # unknown ones are an error before anything is measured
    with ExitStack() as stack:
        work = request.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinspire-index-")))
        found: dict[str, Any] = {}
        material = None
        for name, material in _materials(request, work, tell):
            found[name] = _measured(name, material, threads, request, tell)
        assert material is not None
        added = None
        if request.adds and not request.build_only:
            tell("adding")
            added = add_rate(material, request.adds, work)
        return Record(
            kind="index",
            parameters={
                "distributions": list(found),
                "k": request.k,
                "recall": request.recall,
                "threads": threads,
            },
            results={"distributions": found, "durable_add_per_s": added, "add_batch": ADD_BATCH},
        )


def _materials(request: IndexRequest, work: Path, tell: Callable[[str], None]) -> Iterator[tuple[str, Material]]:
    """Yield what is searched, each under its name."""
    for drawn in request.drawn:
        tell(f"{drawn.distribution}: generating {drawn.size} x {drawn.dim}")
        yield drawn.distribution.value, drawn_material(drawn, work / drawn.name)
    if request.hdf5 is not None:
        tell(f"reading {request.hdf5}")
        yield request.hdf5.stem, hdf5_material(request.hdf5, work / re.sub(r"\W", "-", request.hdf5.stem))


def _measured(
    label: str, material: Material, threads: int, request: IndexRequest, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Build and search each variant on `material`."""
    count, dim = material.vectors.shape
    names = list(dict.fromkeys([*(request.kinds or usual_kinds(dim)), *request.peers]))
    for name in names:
        if not is_peer(name):
            IndexSpec.parse(name).check(dim)
    results: dict[str, Any] = {}
    speed = measured_speed()
    for name in names:
        tell(f"{label}: building {name}")
        results[name] = _built(name, material, threads, request)
        if not is_peer(name):
            predicted = predict(IndexSpec.parse(name), count, dim, threads=threads, speed=speed)
            results[name]["predicted_build_s"] = predicted.build_s
            results[name]["predicted_memory_bytes"] = predicted.memory_bytes
    for name in names if not request.build_only else []:
        tell(f"{label}: searching {name}")
        found = _run("search", _task(name, material, threads, request), request)
        points = found.pop("points")
        best = best_at(points, request.recall)
        results[name] |= found | {
            "queries_per_s": None if best is None else best["queries_per_s"],
            "at_recall": best,
            "points": points,
        }
    return {
        "material": material.name,
        "vectors": count,
        "dim": dim,
        "queries": len(material.queries),
        "flat_memory_bytes": 4 * count * dim,
        "variants": results,
    }


def add_rate(material: Material, count: int, work: Path) -> float:
    """Return how many vectors a second `Index.add` makes durable, in batches of 256, on the disk of `work`."""
    vectors = np.array(material.vectors[:count])
    items = [Item(f"/pictures/{n:08}.jpg", ItemKind.IMAGE, content_hash=f"{n:064x}") for n in range(len(vectors))]
    with (
        tempfile.TemporaryDirectory(dir=work) as folder,
        Index.create(Path(folder, "index"), space=_SPACE, dim=vectors.shape[1]) as index,
    ):
        start = time.perf_counter()
        for at in range(0, len(vectors), ADD_BATCH):
            index.add(vectors[at : at + ADD_BATCH], items[at : at + ADD_BATCH], space=_SPACE)
        taken = time.perf_counter() - start
    return len(vectors) / taken


def _task(name: str, material: Material, threads: int, request: IndexRequest) -> Task:
    base = material.folder / f"{re.sub(r'[^a-z0-9]+', '-', name)}-{threads}"
    return Task(
        name=name,
        threads=threads,
        material=str(material.folder),
        file=f"{base}.index",
        answer=f"{base}.json",
        k=request.k,
        recall=request.recall,
    )


def _built(name: str, material: Material, threads: int, request: IndexRequest) -> dict[str, Any]:
    """Build, or take what an earlier run in this folder built, with the time that it took then."""
    task = _task(name, material, threads, request)
    known = Path(task.file).with_suffix(".built.json")
    if not known.exists():
        known.write_text(json.dumps(_run("build", task, request)))
    found: dict[str, Any] = json.loads(known.read_text())
    return found


def _run(stage: str, task: Task, request: IndexRequest) -> dict[str, Any]:
    python, environment = sys.executable, dict(os.environ)
    if task.name == "scann":
        python = str(request.scann_python)
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(file).parents[1]) for file in _PACKAGES)
    command = [python, "-m", "twinspire_bench.index.worker", stage, task.to_json()]
    done = subprocess.run(  # noqa: S603
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise EngineError(f"{task.name}: the process to {stage} it failed: {words[-1] if words else done.returncode}")
    answer = Path(task.answer)
    found: dict[str, Any] = json.loads(answer.read_text())
    answer.unlink()
    return found
