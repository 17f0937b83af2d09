"""From a bundle to one that says what `auto` is: candidates, measurements, the choice, the new bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from twinspire import Client
from twinspire.bundle import Bundle, BundleWriter, Precision, RecommendedRuntime, Tower
from twinspire.errors import BundleError, EngineError, InputError, MissingDependencyError, ProviderError
from twinspire.images import ImageItem
from twinspire.towers import Provider
from twinspire.towers.providers import available, unavailable_error
from twinspire_eval.datasets import CaptionedImages
from twinspire_eval.machine import this_machine, usable_cores
from twinspire_eval.recall.benchmark import OnProgress, RecallReport
from twinspire_export.precision.cache import MeasurementCache
from twinspire_export.precision.candidates import (
    Candidate,
    Setting,
    candidates_of,
    settings_of,
    skip_reason,
    variants_of,
    without_repeats,
)
from twinspire_export.precision.certificates import auto_choice, certificate
from twinspire_export.precision.measurement import (
    IMAGES,
    TEXTS,
    Embedded,
    Speed,
    Work,
    embed,
    measure_speed,
    open_towers,
)
from twinspire_export.precision.recipes import DYNAMIC, MOST, made_by_recipes, made_dynamically
from twinspire_export.precision.selection import (
    Measured,
    best_of,
    best_variants,
    rank,
    recalled,
    rejected,
)

_RUNTIMES = {Provider.OPENVINO: "onnxruntime-ep-openvino"}


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """How a precision is chosen.

    `max_recall_drop` is how much of fp32's R@1 may be lost, pooled over languages and directions: 0.005 is half a
    point. `recipes` is how many int8 engines are made on the way, calibrated on `images` and `captions` (drawn
    scenes where None); None is one where the bundle has fp32 alone, else none. `baseline` also measures what
    onnxruntime's `quantize_dynamic` makes, which is never chosen. `threads` is how many a call computes with, None is
    all cores. Speed is measured in `rounds` rounds of at least `visit_s` seconds for each tower and engine.

    Raises InputError where a value is out of range.
    """

    max_recall_drop: float = 0.005
    recipes: int | None = None
    pictures: Sequence[ImageItem] | None = None
    captions: Sequence[str] | None = None
    baseline: bool = True
    threads: int | None = None
    rounds: int = 10
    visit_s: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.max_recall_drop < 1:
            raise InputError(
                f"max_recall_drop {self.max_recall_drop:g}: expected a share of R@1 from 0 up to 1, such as 0.005 for "
                "half a point"
            )
        if self.recipes is not None and not 0 <= self.recipes <= MOST:
            raise InputError(f"recipes {self.recipes}: expected 0 to {MOST}")
        if self.rounds < 1 or not self.visit_s >= 0 or (self.threads is not None and self.threads < 1):
            raise InputError(
                f"rounds {self.rounds}, visit_s {self.visit_s}, threads {self.threads}: expected 1 round and thread or "
                "more"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class PrecisionResult:
    """What was measured and chosen. `skipped` says of what could not be measured why."""

    bundle: Bundle
    choice: RecommendedRuntime
    best: Measured
    reference: Candidate
    measured: Sequence[Measured]
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

    The best is the fastest that loses no more recall than allowed, fast in images and texts alike (the geometric
    mean of both, against fp32 on the CPU in one stream); fp32 where no other does. The new bundle's certificates say
    what was measured. `work` is a folder where each measurement is kept as it is made, so that a run that was ended
    goes on there; None is `destination` with `.work` behind its name, which is removed in the end. Nothing else should
    run meanwhile. `on_step` is told in a few words what begins, `on_progress` how far the data set is encoded.

    Raises BundleError where the bundle is not intact or has no fp32 engines, or `destination` exists, InputError and
    ImageError for what is given, ProviderError and EngineError where fp32 cannot be run.
    """
    chosen = options or PrecisionOptions()
    base = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    target = Path(destination)
    _check(base, target)
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
        is_alone = len(variants_of(self.base)) == 1
        self.recipes = int(is_alone) if self.options.recipes is None else self.options.recipes
        self.hardware = this_machine()
        self.kept = MeasurementCache(self.work / "measured", self.hardware)
        fp32 = next(variant for variant in variants_of(self.base) if variant.precision is Precision.FP32)
        self.reference = Candidate(Setting(fp32, Provider.CPU), 1)

    def choose(self, destination: Path) -> PrecisionResult:
        cause = unavailable_error(Provider.CPU)
        if cause is not None:
            raise cause
        found = self._embedded(self._settings())
        report = self._ranked(found)
        fp32 = found[self.reference.setting]
        recalls = {setting: recalled(report, setting, embedded, fp32) for setting, embedded in found.items()}
        speeds = self._speeds(list(found))
        measured = [
            Measured(candidate=candidate, speed=speed, recalled=recalls[candidate.setting])
            for candidate, speed in speeds.items()
        ]
        best = best_of(measured, self.options.max_recall_drop)
        self.step(f"writing {destination}")
        written = self._write(destination, measured, best, report)
        assert written.manifest.auto is not None
        return PrecisionResult(
            bundle=written,
            choice=written.manifest.auto,
            best=best,
            reference=self.reference,
            measured=measured,
            skipped=self.skipped,
            report=report,
            options=self.options,
            recipes=self.recipes,
            threads=self.threads,
        )

    def _settings(self) -> list[Setting]:
        """List what can be opened here; the reference comes first and must be."""
        variants = [self.reference.setting.variant]
        variants += [each for each in variants_of(self.base) if each.precision is not Precision.FP32]
        options = self.options
        try:
            variants += made_by_recipes(
                self.base,
                self.recipes,
                self.work,
                pictures=options.pictures,
                captions=options.captions,
                on_step=self.step,
            )
        except MissingDependencyError as error:
            if options.recipes is not None:
                raise
            self.skipped[Precision.INT8] = str(error)
        if options.baseline:
            try:
                variants.append(made_dynamically(self.base, self.work, on_step=self.step))
            except (EngineError, MissingDependencyError) as error:
                self.skipped[DYNAMIC] = str(error)
        settings = [self.reference.setting]
        for setting in settings_of(without_repeats(variants), available()):
            if setting == self.reference.setting:
                continue
            reason = skip_reason(setting)
            if reason is None:
                settings.append(setting)
            else:
                self.skipped[str(setting)] = reason
        return settings

    def _embedded(self, settings: Sequence[Setting]) -> dict[Setting, Embedded]:
        found: dict[Setting, Embedded] = {}
        for place, setting in enumerate(settings, start=1):
            of = self._of(setting)
            arrays = self.kept.arrays(of)
            if arrays is not None:
                self.step(f"recall {place} of {len(settings)}: {setting}: measured before")
                found[setting] = Embedded.from_arrays(arrays)
                continue
            self.step(f"recall {place} of {len(settings)}: {setting}")
            with self._skipping(setting):
                embedded = embed(setting, self.data, threads=self.threads, on_progress=self.progress)
                self.kept.keep_arrays(of, embedded.to_arrays())
                found[setting] = embedded
        return found

    def _ranked(self, found: Mapping[Setting, Embedded]) -> RecallReport:
        self.step(f"ranking {len(self.data):,} pictures")
        return rank(self.data, found, self.reference.setting)

    def _speeds(self, settings: Sequence[Setting]) -> dict[Candidate, Speed]:
        candidates = [each for setting in settings for each in candidates_of(setting, self.threads)]
        speeds: dict[Candidate, Speed] = {}
        work: Work | None = None
        for place, candidate in enumerate(candidates, start=1):
            of = {
                **self._of(candidate.setting),
                "streams": candidate.streams,
                "fp32": self.reference.setting.variant.engines_sha256,
                "rounds": self.options.rounds,
                "visit_s": self.options.visit_s,
                "pictures": IMAGES,
                "texts": TEXTS,
            }
            known = self.kept.numbers(of)
            if known is not None:
                self.step(f"speed {place} of {len(candidates)}: {candidate}: measured before")
                speeds[candidate] = Speed(**{name: tuple(rounds) for name, rounds in known.items()})
                continue
            self.step(f"speed {place} of {len(candidates)}: {candidate}")
            if work is None:
                work = self._work_of_speed()
            with self._skipping(candidate):
                speed = measure_speed(
                    candidate,
                    self.reference,
                    work,
                    threads=self.threads,
                    rounds=self.options.rounds,
                    visit_s=self.options.visit_s,
                )
                self.kept.keep_numbers(of, {name: list(rounds) for name, rounds in vars(speed).items()})
                speeds[candidate] = speed
        return speeds

    def _work_of_speed(self) -> Work:
        with Client(self.base, open_towers(self.reference, threads=self.threads), threads=self.threads) as client:
            return Work.of(self.data, client)

    def _of(self, setting: Setting) -> dict[str, Any]:
        """Say all that a measurement depends on, beside the machine."""
        return {
            "engines": setting.variant.engines_sha256,
            "files": {name: record.sha256 for name, record in setting.variant.bundle.manifest.files.items()},
            "provider": setting.provider,
            "inference_precision": setting.inference_precision,
            "threads": self.threads,
            "data": self.data.sha256,
            "data_name": self.data.name,
        }

    @contextmanager
    def _skipping(self, what: Setting | Candidate) -> Iterator[None]:
        """Note why something cannot be measured, and go on; without the reference there is nothing to go on with."""
        try:
            yield
        except (EngineError, ProviderError) as error:
            if what in (self.reference, self.reference.setting):
                raise
            self.step(f"{what} is left out: {error}")
            self.skipped[str(what)] = str(error)

    def _write(self, destination: Path, measured: Sequence[Measured], best: Measured, report: RecallReport) -> Bundle:
        most = self.options.max_recall_drop
        variants = best_variants(measured, most)
        variants[best.candidate.setting.variant.precision] = best.candidate.setting.variant
        engines = {}
        with BundleWriter(destination, base=self.base) as writer:
            for precision, variant in variants.items():
                own = [each for each in measured if each.candidate.setting.variant is variant]
                kept = [each for each in own if each.meets_recall(most)]
                shown = best if best in own else best_of(kept, most) if kept else _fastest(own)
                for tower in Tower:
                    record = variant.bundle.manifest.engines[tower][precision]
                    file = record.file
                    if variant.bundle is not self.base:
                        file = f"{tower}.{precision}.onnx"
                        writer.put_file(file, variant.bundle.path / record.file)
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
                            versions=_versions(shown.candidate.setting.provider),
                        ),
                    )
            choice = auto_choice(
                best,
                rejected=rejected(measured, variants, most),
                report=report,
                max_recall_drop=most,
                hardware=self.hardware,
                threads=self.threads,
            )
            return writer.commit(self.base.manifest.draft(), engines, auto=choice)


def _fastest(measured: Sequence[Measured]) -> Measured:
    return max(measured, key=lambda each: each.speed.overall.value)


def _versions(provider: Provider) -> dict[str, str]:
    """Name the packages that ran the engine."""
    found: dict[str, str] = {}
    for package in ("onnxruntime", _RUNTIMES.get(provider)):
        if package is None:
            continue
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # onnxruntime comes in distributions of several names
            found[package] = version(f"{package}-gpu")
    return found


def _check(base: Bundle, destination: Path) -> None:
    lacking = [tower for tower in Tower if Precision.FP32 not in base.precisions(tower)]
    if lacking:
        raise BundleError(
            f"{base.path} has no fp32 engine for the {' and the '.join(lacking)} tower, which the others are compared "
            "with. Take the bundle that `twinspire export` made, or one made of it"
        )
    if os.path.lexists(destination):
        raise BundleError(f"{destination} exists: a bundle is never changed. Give another name or remove it")
    if not destination.absolute().parent.is_dir():
        raise BundleError(f"{destination.absolute().parent} is no folder: make it first")
