"""The measurement of a bundle's candidates, the choice among them, and the bundle that records it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinspire import Client
from twinspire._codec import decode, encode
from twinspire._cores import usable_cores
from twinspire.bundle import (
    Bundle,
    BundleWriter,
    DecodeCertificate,
    DecodeMode,
    Precision,
    RecommendedRuntime,
)
from twinspire.errors import EngineError, InputError, MissingDependencyError, ProviderError
from twinspire.towers import Provider
from twinspire.towers.openvino_support import uses_runtime
from twinspire.towers.providers import available, unavailable_error
from twinspire_eval.datasets import CaptionedImages
from twinspire_eval.machine import this_machine
from twinspire_eval.recall.benchmark import DatasetEmbeddings, OnProgress, RecallReport
from twinspire_export.dependencies import installed_version
from twinspire_export.precision.cache import MeasurementCache
from twinspire_export.precision.candidates import (
    EnginePair,
    PrecisionCandidate,
    RuntimeConfig,
    candidates_of,
    configs_of,
    distinct,
    engine_pairs,
    skip_reason,
)
from twinspire_export.precision.certificates import certificate, recommended_runtime
from twinspire_export.precision.measurement import (
    IMAGES,
    TEXTS,
    SpeedInputs,
    Throughput,
    embed,
    measure_speed,
    open_towers,
)
from twinspire_export.precision.merging import merging_engines, merging_sweep
from twinspire_export.precision.options import PrecisionOptions, check_inputs
from twinspire_export.precision.recipes import DYNAMIC, dynamic_engines, recipe_engines
from twinspire_export.precision.scaled_decoding import certify_scaled_decoding
from twinspire_export.precision.selection import (
    CandidateResult,
    accuracy_of,
    best_engines,
    best_of,
    rejected,
)

SCALED_DECODING = "scaled decoding"


@dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionResult:
    """All results and the choice. `skipped` maps what could not be measured to the reason."""

    bundle: Bundle
    choice: RecommendedRuntime
    best: CandidateResult
    reference: PrecisionCandidate
    results: Sequence[CandidateResult]
    skipped: Mapping[str, str]
    report: RecallReport
    options: PrecisionOptions
    recipes: int
    threads: int


def choose_precision(
    bundle: Bundle | str | Path,
    destination: str | Path,
    data: CaptionedImages,
    *,
    options: PrecisionOptions | None = None,
    work: str | Path | None = None,
    on_step: Callable[[str], None] | None = None,
    on_progress: OnProgress | None = None,
) -> PrecisionResult:
    """Measure every engine of `bundle` on every provider here, and write `destination`, whose `auto` is the best.

    The best is the fastest that loses no more recall than allowed, by the geometric mean of its speeds of images and
    texts, or of the only tower, relative to fp32 on the CPU with one stream; fp32 where no other does. The new bundle's
    certificates hold the measurements. `work` is a folder that caches each measurement, so that an interrupted run can
    resume; None is
    `destination` with `.work` appended, which is removed at the end. Nothing else should run meanwhile. `on_step` is
    called with a description of each step as it begins, `on_progress` as the data set is encoded.

    Raises BundleError where the bundle is damaged or has no fp32 engines, or `destination` exists, InputError and
    ImageError for the arguments, ProviderError and EngineError where fp32 cannot be run.
    """
    chosen = options or PrecisionOptions()
    base = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    target = Path(destination)
    check_inputs(base, target, data)
    if DecodeMode(chosen.decode) is DecodeMode.SCALED and not data.has_images:
        raise InputError(f"decode scaled: {data.name} has no images to decode. Leave it out", option="decode")
    folder = target.with_name(f"{target.name}.work") if work is None else Path(work)
    run = _Run(base, data, chosen, folder, on_step or (lambda _: None), on_progress or (lambda *_: None))
    result = run.choose(target)
    if work is None:
        shutil.rmtree(folder, ignore_errors=True)
    return result


@dataclass(eq=False)
class _Run:
    base: Bundle
    data: CaptionedImages
    options: PrecisionOptions
    work: Path
    step: Callable[[str], None]
    progress: OnProgress
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.threads = usable_cores() if self.options.threads is None else self.options.threads
        has_fp32_only = len(engine_pairs(self.base)) == 1
        self.recipes = int(has_fp32_only) if self.options.recipes is None else self.options.recipes
        self.hardware = this_machine()
        self.cache = MeasurementCache(self.work / "measured", self.hardware)
        fp32 = next(engines for engines in engine_pairs(self.base) if engines.precision is Precision.FP32)
        self.reference = PrecisionCandidate(RuntimeConfig(fp32, Provider.CPU), 1)

    def choose(self, destination: Path) -> PrecisionResult:
        error = unavailable_error(Provider.CPU)
        if error is not None:
            raise error
        found = self._embeddings(self._configs())
        self.step(f"ranking {len(self.data):,} images" if self.data.has_images else "ranking captions")
        embeddings = {str(config): embedded for config, embedded in found.items()}
        report = RecallReport.of(self.data, embeddings, reference=str(self.reference.config))
        fp32 = found[self.reference.config]
        accuracies = {config: accuracy_of(report, config, embedded, fp32) for config, embedded in found.items()}
        results = [
            CandidateResult(candidate=candidate, speed=speed, accuracy=accuracies[candidate.config])
            for candidate, speed in self._speeds(list(found)).items()
        ]
        best = best_of(results, self.options.max_recall_drop)
        scaled = self._scaled_decoding(best.candidate, fp32)
        self.step(f"writing {destination}")
        written = self._write(destination, results, best, report, scaled)
        assert written.manifest.auto is not None
        return PrecisionResult(
            bundle=written,
            choice=written.manifest.auto,
            best=best,
            reference=self.reference,
            results=results,
            skipped=self.skipped,
            report=report,
            options=self.options,
            recipes=self.recipes,
            threads=self.threads,
        )

    def _configs(self) -> list[RuntimeConfig]:
        """List the configurations that can be measured here, the reference first."""
        pairs = [self.reference.config.engines]
        pairs += [engines for engines in engine_pairs(self.base) if engines.precision is not Precision.FP32]
        options = self.options
        try:
            pairs += recipe_engines(
                self.base,
                self.recipes,
                self.work,
                images=options.images,
                captions=options.captions,
                on_step=self.step,
            )
        except MissingDependencyError as error:
            if options.recipes is not None:
                raise
            self.skipped[Precision.INT8] = str(error)
        pairs += self._merging(pairs)
        if options.baseline:
            try:
                pairs.append(dynamic_engines(self.base, self.work, on_step=self.step))
            except (EngineError, MissingDependencyError) as error:
                self.skipped[DYNAMIC] = str(error)
        configs = [self.reference.config]
        for config in configs_of(distinct(pairs), available()):
            if config == self.reference.config:
                continue
            reason = skip_reason(config)
            if reason is None:
                configs.append(config)
            else:
                self.skipped[str(config)] = reason
        return configs

    def _merging(self, pairs: Sequence[EnginePair]) -> list[EnginePair]:
        """List the engines that merge tokens, of the fp32 engines and of the first int8 ones."""
        numbers = self.options.merge_tokens
        if numbers is not None and not numbers:
            return []
        first = {pair.precision: pair for pair in reversed(pairs) if pair.precision.with_merged_tokens}
        try:
            chosen = merging_sweep(self.base) if numbers is None else numbers
            return [
                merged
                for pair in first.values()
                for merged in merging_engines(pair, chosen, self.work, on_step=self.step)
            ]
        except InputError as error:
            if numbers is not None:
                raise
            self.skipped["merging tokens"] = str(error)
            return []

    def _embeddings(self, configs: Sequence[RuntimeConfig]) -> dict[RuntimeConfig, DatasetEmbeddings]:
        found: dict[RuntimeConfig, DatasetEmbeddings] = {}
        for number, config in enumerate(configs, start=1):
            key, title = self._key(config), f"recall {number} of {len(configs)}: {config}"
            arrays = self.cache.get_arrays(key)
            if arrays is not None:
                self.step(f"{title}: measured before")
                found[config] = DatasetEmbeddings.from_arrays(arrays)
                continue
            self.step(title)
            with self._skipping(config):
                embedded = embed(config, self.data, threads=self.threads, on_progress=self.progress)
                self.cache.put_arrays(key, embedded.to_arrays())
                found[config] = embedded
        return found

    def _speeds(self, configs: Sequence[RuntimeConfig]) -> dict[PrecisionCandidate, Throughput]:
        candidates = [candidate for config in configs for candidate in candidates_of(config, self.threads)]
        speeds: dict[PrecisionCandidate, Throughput] = {}
        inputs: SpeedInputs | None = None
        for number, candidate in enumerate(candidates, start=1):
            key = {
                **self._key(candidate.config),
                "streams": candidate.streams,
                "fp32": self.reference.config.engines.engines_sha256,
                "rounds": self.options.rounds,
                "visit_s": self.options.visit_s,
                "images": IMAGES,
                "texts": TEXTS,
            }
            title = f"speed {number} of {len(candidates)}: {candidate}"
            cached = self.cache.get_json(key)
            if cached is not None:
                self.step(f"{title}: measured before")
                speeds[candidate] = Throughput(**{name: tuple(rounds) for name, rounds in cached.items()})
                continue
            self.step(title)
            if inputs is None:
                inputs = self._speed_inputs()
            with self._skipping(candidate):
                speed = measure_speed(
                    candidate,
                    self.reference,
                    inputs,
                    threads=self.threads,
                    rounds=self.options.rounds,
                    visit_s=self.options.visit_s,
                )
                self.cache.put_json(key, {name: list(rounds) for name, rounds in vars(speed).items()})
                speeds[candidate] = speed
        return speeds

    def _scaled_decoding(self, best: PrecisionCandidate, fp32: DatasetEmbeddings) -> DecodeCertificate | None:
        """Measure scaled decoding where it is asked for; None where it changes nothing, which `skipped` says."""
        if DecodeMode(self.options.decode) is DecodeMode.EXACT:
            return None
        key = {**self._key(best.config), "decode": DecodeMode.SCALED, "streams": best.streams}
        title = f"scaled decoding: {best}"
        cached = self.cache.get_json(key)
        if cached is not None:
            self.step(f"{title}: measured before")
            return decode(DecodeCertificate, cached, title)
        self.step(title)
        found = certify_scaled_decoding(best, self.data, fp32, threads=self.threads, on_progress=self.progress)
        if found is None:
            self.skipped[SCALED_DECODING] = (
                f"no image of {self.data.name} is a JPEG of four times the size that it is resized to: nothing "
                "to measure"
            )
            return None
        self.cache.put_json(key, encode(found))
        return found

    def _speed_inputs(self) -> SpeedInputs:
        with Client(self.base, open_towers(self.reference, threads=self.threads), threads=self.threads) as client:
            return SpeedInputs.of(self.data, client)

    def _key(self, config: RuntimeConfig) -> dict[str, Any]:
        """Return all that a measurement depends on besides the machine."""
        return {
            "engines": config.engines.engines_sha256,
            "files": {name: record.sha256 for name, record in config.engines.bundle.manifest.files.items()},
            "provider": config.provider,
            "inference_precision": config.inference_precision,
            "threads": self.threads,
            "data": self.data.sha256,
            "data_name": self.data.name,
        }

    @contextmanager
    def _skipping(self, measured: RuntimeConfig | PrecisionCandidate) -> Iterator[None]:
        """Record why something cannot be measured, and continue; the reference is required."""
        try:
            yield
        except (EngineError, ProviderError) as error:
            if measured in (self.reference, self.reference.config):
                raise
            self.step(f"skipped {measured}: {error}")
            self.skipped[str(measured)] = str(error)

    def _write(
        self,
        destination: Path,
        results: Sequence[CandidateResult],
        best: CandidateResult,
        report: RecallReport,
        scaled: DecodeCertificate | None,
    ) -> Bundle:
        max_drop = self.options.max_recall_drop
        chosen = best_engines(results, max_drop)
        chosen[best.engines.precision] = best.engines
        engines = {}
        with BundleWriter(destination, base=self.base) as writer:
            for precision, pair in chosen.items():
                own = [result for result in results if result.engines is pair]
                eligible = [result for result in own if result.meets_recall(max_drop)]
                if best in own:
                    shown = best
                elif eligible:
                    shown = best_of(eligible, max_drop)
                else:
                    shown = max(own, key=lambda result: result.speed.overall.value)
                for tower in self.base.towers:
                    record = pair.bundle.manifest.engines[tower][precision]
                    file = record.file
                    if pair.bundle is not self.base:
                        file = f"{tower}.{precision}.onnx"
                        writer.put_file(file, pair.bundle.path / record.file)
                    engines[tower, precision] = (
                        file,
                        certificate(
                            record.certificate,
                            tower,
                            shown,
                            own,
                            report,
                            hardware=self.hardware,
                            threads=self.threads,
                            versions=_versions(shown.candidate.config.provider),
                        ),
                    )
            choice = recommended_runtime(
                best,
                rejected=rejected(results, chosen, max_drop),
                report=report,
                max_recall_drop=max_drop,
                hardware=self.hardware,
                threads=self.threads,
                scaled=scaled,
            )
            return writer.commit(self.base.manifest.draft(), engines, auto=choice)


def _versions(provider: Provider) -> dict[str, str]:
    """Return the versions of the packages that ran an engine."""
    packages = ["onnxruntime"]
    if provider is Provider.OPENVINO:
        packages = ["openvino"] if uses_runtime() else ["onnxruntime", "onnxruntime-ep-openvino"]
    return {package: installed_version(package) for package in packages}
