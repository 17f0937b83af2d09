"""Runs of the benchmark: every index in processes of its own, on the same vectors, with the same number of threads."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinspire._cores import usable_cores
from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.index.ann import Binary, IndexSpec, measured_speed, predict
from twinspire_bench.index.inputs import SyntheticVectors, VectorSet, generate, read_hdf5
from twinspire_bench.index.measurement import IndexTask, best_at, building, searching
from twinspire_bench.index.peers import Scann, check_scann
from twinspire_bench.worker import Target, Worker
from twinspire_eval.records import Record

ADD_BATCH = 256
_SPACE = "bench"


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """What to measure: `specs` (None: `default_specs`) and `peers`, on each of `synthetic` and on `hdf5`.

    `work` keeps vectors and built indexes, None: nothing is kept. `adds` is the number of vectors that the durable add
    is measured with. `build_only` leaves searching to a later run. `scann_python` is the interpreter that has ScaNN.
    """

    synthetic: Sequence[SyntheticVectors] = ()
    hdf5: Path | None = None
    specs: Sequence[str] | None = None
    peers: Sequence[str] = ("hnswlib", "usearch")
    scann_python: Path | None = None
    threads: int | None = None
    k: int = 10
    recall: float = 0.95
    adds: int = 20_000
    work: Path | None = None
    build_only: bool = False

    def __post_init__(self) -> None:
        if bool(self.synthetic) == (self.hdf5 is not None):
            raise InputError("vectors are either generated or read from a file: give one of --size and --hdf5")
        if not 0 < self.recall <= 1 or self.k < 1 or self.adds < 0 or (self.threads is not None and self.threads < 1):
            raise InputError(
                f"k {self.k}, recall {self.recall}, adds {self.adds}, threads {self.threads}: expected k and threads "
                "from 1 up, adds from 0 up, a recall above 0 and at most 1"
            )


def default_specs(count: int, dim: int) -> list[str]:
    """Return the specs to measure with `count` vectors of `dim` numbers if none are given."""
    binary = ["binary"] if count >= Binary.minimum_vectors else []
    return ["flat", f"ivf,pq{max(1, dim // 4)}x4", f"ivf,pq{max(1, dim // 8)}", "ivf,sq8", "hnsw", *binary]


def measure_index(request: IndexRequest, *, progress: Callable[[str], None] = lambda _: None) -> Record:
    """Build what is not built yet, then search, and return the record.

    Raises `InputError` for unknown specs, `MissingDependencyError`, `EngineError` where a process fails.
    """
    threads = request.threads or usable_cores()
    for name in [*(request.specs or ()), *request.peers]:  # before anything is generated
        family = IndexSpec.parse(name).family
        if family is Scann:
            check_scann(request.scann_python)
        else:
            family.require()
    with ExitStack() as stack:
        work = request.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinspire-index-")))
        found: dict[str, Any] = {}
        inputs = None
        for label, inputs in _inputs(request, work, progress):
            found[label] = _measured(label, inputs, threads, request, progress)
        assert inputs is not None
        added = None
        if request.adds and not request.build_only:
            progress("adding")
            added = add_rate(inputs, request.adds, work)
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


def _inputs(request: IndexRequest, work: Path, progress: Callable[[str], None]) -> Iterator[tuple[str, VectorSet]]:
    """Generate or read the vectors to search, and yield each set with its label."""
    for synthetic in request.synthetic:
        progress(f"{synthetic.distribution}: generating {synthetic.size} x {synthetic.dim}")
        yield synthetic.distribution.value, generate(synthetic, work / synthetic.name)
    if request.hdf5 is not None:
        progress(f"reading {request.hdf5}")
        yield request.hdf5.stem, read_hdf5(request.hdf5, work / re.sub(r"\W", "-", request.hdf5.stem))


def _measured(
    label: str, inputs: VectorSet, threads: int, request: IndexRequest, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Build and search every index over `inputs`."""
    count, dim = inputs.vectors.shape
    names = list(dict.fromkeys([*(request.specs or default_specs(count, dim)), *request.peers]))
    specs = {name: IndexSpec.parse(name) for name in names}
    for spec in specs.values():
        spec.check(dim)
    results: dict[str, Any] = {}
    speed = measured_speed()
    for name, spec in specs.items():
        progress(f"{label}: building {name}")
        predicted = predict(spec, count, dim, threads=threads, speed=speed)
        results[name] = _built(spec, inputs, threads, request) | {
            "predicted_build_s": predicted.build_s,
            "predicted_memory_bytes": predicted.memory_bytes,
        }
    for name, spec in specs.items() if not request.build_only else ():
        progress(f"{label}: searching {name}")
        found = _run(searching, spec, _task(spec, inputs, threads, request), request)
        best = best_at(found["points"], request.recall)
        results[name] |= found | {"queries_per_s": None if best is None else best["queries_per_s"], "at_recall": best}
    return {
        "data": inputs.name,
        "vectors": count,
        "dim": dim,
        "queries": len(inputs.queries),
        "flat_memory_bytes": 4 * count * dim,
        "variants": results,
    }


def add_rate(inputs: VectorSet, count: int, work: Path) -> float:
    """Return how many vectors a second `Index.add` makes durable, in batches of 256, on the disk of `work`."""
    vectors = np.array(inputs.vectors[:count])
    items = [Item(f"/images/{n:08}.jpg", ItemKind.IMAGE, content_hash=f"{n:064x}") for n in range(len(vectors))]
    with (
        tempfile.TemporaryDirectory(dir=work) as folder,
        Index.create(Path(folder, "index"), space=_SPACE, dim=vectors.shape[1]) as index,
    ):
        start = time.perf_counter()
        for at in range(0, len(vectors), ADD_BATCH):
            index.add(vectors[at : at + ADD_BATCH], items[at : at + ADD_BATCH], space=_SPACE)
        taken = time.perf_counter() - start
    return len(vectors) / taken


def _task(spec: IndexSpec, inputs: VectorSet, threads: int, request: IndexRequest) -> IndexTask:
    return IndexTask(
        spec=str(spec),
        module=spec.family.__module__,
        threads=threads,
        vectors=str(inputs.folder),
        file=f"{inputs.folder / re.sub(r'[^a-z0-9]+', '-', str(spec))}-{threads}.index",
        k=request.k,
        recall=request.recall,
    )


def _built(spec: IndexSpec, inputs: VectorSet, threads: int, request: IndexRequest) -> dict[str, Any]:
    """Build, or take what an earlier run in this folder built, with the time that it took then."""
    task = _task(spec, inputs, threads, request)
    known = Path(task.file).with_suffix(".built.json")
    if not known.exists():
        known.write_text(json.dumps(_run(building, spec, task, request)))
    found: dict[str, Any] = json.loads(known.read_text())
    return found


def _run(target: Target, spec: IndexSpec, task: IndexTask, request: IndexRequest) -> dict[str, Any]:
    """Return what `target` measures, in a process of its own."""
    python = request.scann_python if spec.family is Scann else None
    environment = {"OMP_NUM_THREADS": str(task.threads)}  # FAISS and BLAS obey it
    label = f"{target.__name__} {spec}"
    with Worker(target, asdict(task), label=label, python=python, environment=environment) as worker:
        found: dict[str, Any] = worker.call()
    return found
