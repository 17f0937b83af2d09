"""Trials: a recipe carried out and measured, and kept on the disk so that it need not be carried out again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError, InputError
from twinspire_eval.load import interleaved
from twinspire_eval.statistics import paired_ratio
from twinspire_export.certificate import EngineRunner, row_cosines
from twinspire_export.quantization.float_fallback import leave_out
from twinspire_export.quantization.quantizer import quantize_graph
from twinspire_export.quantization.recipe import Int8Recipe

if TYPE_CHECKING:
    import onnx

SCHEMA_VERSION = 2

Samples = Sequence[NDArray[Any]]
"""Inputs of an engine, each (1, ...)."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a quantized engine compares with another: cosines to the fp32 embeddings, and speed on the CPU provider.

    `speed` is the median, over rounds measured side by side, of the other engine's time over this one's: above 1 this
    one is faster. `rounds_s` holds the raw seconds a batch of both, this one's first.
    """

    mean_cosine: float
    min_cosine: float
    speed: float
    rounds_s: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A recipe, the engine that it gave and what was measured; `speed` is against the fp32 engine.

    `seconds` is what carrying it out took, measuring left out.
    """

    recipe: Int8Recipe
    engine: Path
    size_bytes: int
    measured: Measured
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What leaving one part of a quantized engine in float32 would give, estimated by taking its quantizers away.

    `speed` of `measured` is against the quantized engine itself: below 1 the part costs time in float32.
    """

    label: str
    measured: Measured


class TrialRunner:
    """Carries recipes out on one fp32 engine and measures them, each once: `work` keeps what is done.

    `calibration` and `measurement` are inputs of the engine. Speed is measured on the CPU provider with `batch` inputs
    at a time, in `rounds` rounds side by side with the engine that it is compared to. What is kept holds for this
    engine, these inputs and these versions of NNCF and the runtime; with others it is measured anew. `work` is the
    caller's to delete. Raises InputError where an argument is out of range.
    """

    def __init__(
        self,
        engine: Path,
        calibration: Samples,
        measurement: Samples,
        *,
        work: Path,
        batch: int = 8,
        rounds: int = 7,
    ) -> None:
        if not calibration or not measurement:
            raise InputError(f"{len(calibration)} samples to calibrate and {len(measurement)} to measure on: give some")
        if batch < 1 or rounds < 1:
            raise InputError(f"batch {batch}, rounds {rounds}: expected at least 1")
        self._engine = engine
        self._calibration = calibration
        self._measurement = measurement
        self._work = work
        self._batch = _stacked(measurement, batch)
        self._rounds = rounds
        self._fp32: EngineRunner | None = None
        self._expected: NDArray[np.float32] | None = None
        self._identity = self._identify()
        work.mkdir(parents=True, exist_ok=True)

    @property
    def engine(self) -> Path:
        """The fp32 engine."""
        return self._engine

    def known(self, recipe: Int8Recipe) -> Trial | None:
        """Give what is kept of a recipe, None where there is nothing."""
        document = _read(self._folder(recipe) / "trial.json")
        engine = self._folder(recipe) / "engine.onnx"
        if document is None or not engine.is_file():
            return None
        return Trial(
            recipe=recipe,
            engine=engine,
            size_bytes=engine.stat().st_size,
            measured=_measured_from(document["measured"]),
            seconds=document["seconds"],
        )

    def run(self, recipe: Int8Recipe) -> Trial:
        """Carry a recipe out and measure it, unless that is done already. Raises EngineError where it cannot be."""
        trial = self.known(recipe)
        if trial is not None:
            return trial
        import onnx

        began = time.perf_counter()
        model = load_engine(self._engine)
        name = model.graph.input[0].name
        made = quantize_graph(model, [{name: sample} for sample in self._calibration], recipe)
        folder = self._folder(recipe)
        folder.mkdir(exist_ok=True)
        engine = folder / "engine.onnx"
        onnx.save(made, engine)
        seconds = time.perf_counter() - began
        measured = self._compare(EngineRunner(engine), self._reference())
        _write(
            folder / "trial.json",
            {"recipe": recipe.to_json(), "measured": _measured_to(measured), "seconds": seconds},
        )
        trial = self.known(recipe)
        assert trial is not None
        return trial

    def sensitivity(self, trial: Trial, label: str, nodes: Collection[str]) -> Sensitivity:
        """Measure the trial's engine with the products `nodes` in float32, unless that is done already."""
        file = self._folder(trial.recipe) / f"without-{label.replace(':', '-')}.json"
        document = _read(file)
        if document is None:
            import onnx

            changed = file.with_suffix(".onnx")
            onnx.save(leave_out(load_engine(trial.engine), nodes), changed)
            try:
                measured = self._compare(EngineRunner(changed), EngineRunner(trial.engine))
            finally:
                changed.unlink()
            document = {"measured": _measured_to(measured)}
            _write(file, document)
        return Sensitivity(label=label, measured=_measured_from(document["measured"]))

    def _reference(self) -> EngineRunner:
        if self._fp32 is None:
            self._fp32 = EngineRunner(self._engine)
        return self._fp32

    def _compare(self, runner: EngineRunner, other: EngineRunner) -> Measured:
        if self._expected is None:
            self._expected = self._reference().embed(self._measurement)
        cosines = row_cosines(runner.embed(self._measurement), self._expected)
        figures = interleaved({"this": self._timed(runner), "other": self._timed(other)}, rounds=self._rounds, warmup=1)
        ours, theirs = figures["this"], figures["other"]
        return Measured(
            mean_cosine=float(cosines.mean()),
            min_cosine=float(cosines.min()),
            speed=paired_ratio(theirs, ours).value,
            rounds_s=(tuple(ours.tolist()), tuple(theirs.tolist())),
        )

    def _timed(self, runner: EngineRunner) -> Callable[[], float]:
        def seconds() -> float:
            # The first call after another engine's brings the weights back to the caches: 0.22 s against 0.18 s for
            # one that follows itself (ViT-B/32, batch 8), more than most parts make up.
            runner.embed([self._batch])
            began = time.perf_counter()
            runner.embed([self._batch])
            return time.perf_counter() - began

        return seconds

    def _folder(self, recipe: Int8Recipe) -> Path:
        return self._work / hashlib.sha256(f"{self._identity} {recipe.digest()}".encode()).hexdigest()[:20]

    def _identify(self) -> str:
        digest = hashlib.sha256()
        with self._engine.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        for samples in (self._calibration, self._measurement, [self._batch]):
            digest.update(str(len(samples)).encode())
            for sample in samples:
                digest.update(f"{sample.dtype} {sample.shape}".encode())
                digest.update(np.ascontiguousarray(sample).tobytes())
        versions = {package: version(package) for package in ("nncf", "onnx", "onnxruntime")}
        digest.update(json.dumps([SCHEMA_VERSION, self._rounds, versions], sort_keys=True).encode())
        return digest.hexdigest()


def load_engine(path: Path) -> onnx.ModelProto:
    """Read an ONNX file. Raises EngineError where it is none."""
    import onnx

    try:
        return onnx.load(path)
    except Exception as exc:  # protobuf's errors and onnx's share no base class
        raise EngineError(f"{path} is no valid ONNX file: {exc}") from exc


def _stacked(samples: Samples, batch: int) -> NDArray[Any]:
    """Stack samples of one shape to (batch, ...), the first ones as often as it takes."""
    first = samples[0]
    alike = [sample for sample in samples if sample.shape == first.shape]
    return np.concatenate([alike[position % len(alike)] for position in range(batch)])


def _read(file: Path) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return document


def _write(file: Path, document: dict[str, Any]) -> None:
    """Write whole or not at all: a search may be stopped at any time."""
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, file)  # noqa: PTH105 - pathlib's replace is the same call


def _measured_to(measured: Measured) -> dict[str, Any]:
    return {
        "mean_cosine": measured.mean_cosine,
        "min_cosine": measured.min_cosine,
        "speed": measured.speed,
        "rounds_s": [list(rounds) for rounds in measured.rounds_s],
    }


def _measured_from(document: dict[str, Any]) -> Measured:
    ours, theirs = (tuple(rounds) for rounds in document["rounds_s"])
    return Measured(**{**document, "rounds_s": (ours, theirs)})
