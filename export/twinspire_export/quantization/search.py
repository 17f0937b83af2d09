"""A measured search for an int8 recipe: smoothing, ranges and biases by turns, then what to leave in float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twinspire.errors import InputError
from twinspire_export.quantization.node_roles import Kind, parts_of
from twinspire_export.quantization.recipe import BiasCorrection, Int8Recipe, RangeEstimator, Ranges, Variant
from twinspire_export.quantization.trials import Samples, Sensitivity, Trial, TrialRunner, load_engine

_FREE = 0.01
"""A part that slows an engine down by no more than this costs nothing that could be measured."""

_AS_FAST = 0.05
"""A trial that is slower than the fastest by no more than this share is fast enough to be chosen."""

_WORTH_FREE = 0.01
"""A part that costs nothing is left out where it takes at least this share of the error away."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What is tried, on how much, and for how long.

    The first of each tuple is where the search begins; one after the other, each is replaced by the best of its tuple.
    `calibration` samples are calibrated on and `measurement` are measured on: fewer than a bundle takes, since each
    trial costs a minute or two. `left_out_steps` bounds how many engines with parts in float32 are made. No trial
    begins once `budget_s` seconds have gone by; what is kept of an earlier run takes none.

    Raises InputError where a value is out of range.
    """

    alphas: tuple[float | None, ...] = (0.5, None, 0.3, 0.7, 0.85)
    estimators: tuple[RangeEstimator, ...] = (
        RangeEstimator.MINMAX,
        RangeEstimator.MEAN_MINMAX,
        RangeEstimator.MEAN_QUANTILE,
    )
    ranges: tuple[Ranges, ...] = (Ranges.SYMMETRIC, Ranges.ASYMMETRIC)
    bias_corrections: tuple[BiasCorrection, ...] = (BiasCorrection.FAST, BiasCorrection.NONE)
    calibration: int = 64
    measurement: int = 48
    left_out_steps: int = 4
    budget_s: float = 3600.0
    speed_batch: int = 8
    speed_rounds: int = 7

    def __post_init__(self) -> None:
        for name in ("alphas", "estimators", "ranges", "bias_corrections"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty: expected at least one to try")
        if self.calibration < 1 or self.measurement < 1 or self.left_out_steps < 0 or not self.budget_s > 0:
            raise InputError(f"{self}: expected samples, steps and a budget above 0")


@dataclass(frozen=True)
class SearchResult:
    """Every trial in the order in which it was made, and what was learnt of the parts.

    `finished` is False where the budget ended the search.
    """

    trials: tuple[Trial, ...]
    sensitivities: tuple[Sensitivity, ...]
    finished: bool

    @property
    def best(self) -> Trial:
        """The trial with the highest mean cosine."""
        return max(self.trials, key=lambda trial: trial.measured.mean_cosine)

    @property
    def chosen(self) -> Trial:
        """The trial with the highest mean cosine of those about as fast as the fastest."""
        enough = (1 - _AS_FAST) * max(trial.measured.speed for trial in self.trials)
        fast = [trial for trial in self.trials if trial.measured.speed >= enough]
        return max(fast, key=lambda trial: trial.measured.mean_cosine)

    def front(self) -> tuple[Trial, ...]:
        """List the trials that no other one beats in both cosine and speed, the fastest first."""
        by_speed = sorted(self.trials, key=lambda trial: (-trial.measured.speed, -trial.measured.mean_cosine))
        front: list[Trial] = []
        for trial in by_speed:
            if not front or trial.measured.mean_cosine > front[-1].measured.mean_cosine:
                front.append(trial)
        return tuple(front)


def search_recipe(
    engine: Path,
    calibration: Samples,
    measurement: Samples,
    *,
    work: Path,
    variant: Variant = Variant.CPU,
    settings: SearchSettings = SearchSettings(),
    on_step: Callable[[str], None] | None = None,
) -> SearchResult:
    """Search a recipe for the fp32 `engine`. Of both lists of inputs an even choice is taken.

    First alpha, ranges, estimator and bias correction, each by turns; then each part of the best engine so far is
    brought back to float32 by itself, and real trials leave out those that take the most error away for the time that
    they cost, one more in each. What is done is kept in the folder `work`: the same call goes on where it ended.
    Measures time, so nothing else should run. Raises InputError for what is given, EngineError where a recipe cannot be
    carried out.
    """
    return _Search(engine, calibration, measurement, work, variant, settings, on_step or (lambda _: None)).run()


class _OutOfBudgetError(Exception):
    """No more trials may begin."""


class _Search:
    def __init__(
        self,
        engine: Path,
        calibration: Samples,
        measurement: Samples,
        work: Path,
        variant: Variant,
        settings: SearchSettings,
        step: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._variant = variant
        self._step = step
        self._runner = TrialRunner(
            engine,
            _evenly(calibration, settings.calibration),
            _evenly(measurement, settings.measurement),
            work=work,
            batch=settings.speed_batch,
            rounds=settings.speed_rounds,
        )
        self._trials: dict[Int8Recipe, Trial] = {}
        self._sensitivities: list[Sensitivity] = []
        self._began = time.monotonic()

    def run(self) -> SearchResult:
        finished = True
        try:
            self._leave_out(self._by_turns())
        except _OutOfBudgetError:
            finished = False
            if not self._trials:
                raise InputError(f"budget_s {self._settings.budget_s}: not one trial could begin; give more") from None
        return SearchResult(tuple(self._trials.values()), tuple(self._sensitivities), finished)

    def _by_turns(self) -> Trial:
        chosen = self._settings
        on_cpu = self._variant is Variant.CPU
        best = self._try(
            Int8Recipe(
                smooth_alpha=chosen.alphas[0],
                ranges=chosen.ranges[0] if on_cpu else Ranges.SYMMETRIC,
                estimator=chosen.estimators[0],
                bias_correction=chosen.bias_corrections[0],
                variant=self._variant,
            )
        )
        turns: list[tuple[str, Sequence[object]]] = [("smooth_alpha", chosen.alphas), ("estimator", chosen.estimators)]
        if on_cpu:
            turns.append(("ranges", chosen.ranges))
        turns.append(("bias_correction", chosen.bias_corrections))
        for name, values in turns:
            tried = [self._try(replace(best.recipe, **{name: value})) for value in values]  # type: ignore[arg-type]
            best = max([best, *tried], key=lambda trial: trial.measured.mean_cosine)
        return best

    def _leave_out(self, start: Trial) -> None:
        if self._settings.left_out_steps == 0:
            return
        for label, nodes in _labels(self._runner.engine).items():
            self._check_budget()
            found = self._runner.sensitivity(start, label, nodes)
            self._sensitivities.append(found)
            self._step(
                f"{label} in fp32: mean cosine {found.measured.mean_cosine:.5f}, speed {found.measured.speed:.3f}"
            )
        for labels in _growing(start, self._sensitivities, self._settings.left_out_steps):
            self._try(replace(start.recipe, left_out=labels))

    def _try(self, recipe: Int8Recipe) -> Trial:
        trial = self._trials.get(recipe) or self._runner.known(recipe)
        if trial is None:
            self._check_budget()
            self._step(f"trial {len(self._trials) + 1}: {recipe}")
            trial = self._runner.run(recipe)
        if recipe not in self._trials:
            measured = trial.measured
            self._step(
                f"trial {len(self._trials) + 1}: {recipe}: cosine mean {measured.mean_cosine:.5f}, least "
                f"{measured.min_cosine:.5f}, {measured.speed:.2f} times fp32"
            )
            self._trials[recipe] = trial
        return trial

    def _check_budget(self) -> None:
        if time.monotonic() - self._began > self._settings.budget_s:
            raise _OutOfBudgetError


def _labels(engine: Path) -> dict[str, list[str]]:
    """List what may be left out, with its nodes: each kind as a whole, and each kind in the first and last block."""
    parts = parts_of(load_engine(engine))
    blocks = [part.block for part in parts.values() if part.block is not None]
    ends = {min(blocks), max(blocks)} if blocks else set()
    labels: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part.kind in (Kind.TOKENS, Kind.ATTENTION_VALUES):
            continue  # a table costs no precision; NNCF leaves the values' product in float32
        for label in part.labels:
            if ":" not in label or part.block in ends:
                labels.setdefault(label, []).append(name)
    return labels


def _growing(start: Trial, found: Sequence[Sensitivity], steps: int) -> list[tuple[str, ...]]:
    """Choose sets of labels to leave out, each holding the one before: first all that cost nothing."""
    error = 1 - start.measured.mean_cosine

    def gained(each: Sensitivity) -> float:
        return (each.measured.mean_cosine - start.measured.mean_cosine) / error if error > 0 else 0.0

    def lost(each: Sensitivity) -> float:
        return max(1 - each.measured.speed, 0.0)

    useful = [each for each in found if gained(each) >= _WORTH_FREE]
    free = [each for each in useful if lost(each) <= _FREE]
    paid = sorted((each for each in useful if each not in free), key=lambda each: -gained(each) / lost(each))
    chosen = _without_covered([each.label for each in free])
    sets = [chosen] if chosen else []
    for each in paid:
        larger = _without_covered([*chosen, each.label])
        if larger != chosen:
            sets.append(larger)
            chosen = larger
    return sets[:steps]


def _without_covered(labels: Sequence[str]) -> tuple[str, ...]:
    """Drop the labels of single blocks whose kind is there as a whole."""
    return tuple(sorted(label for label in labels if ":" not in label or label.partition(":")[0] not in labels))


def _evenly(samples: Samples, count: int) -> Samples:
    count = min(count, len(samples))
    return [samples[position * len(samples) // count] for position in range(count)]
