"""The search for a recipe: what is tried, measured, kept and gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the engine to quantize is exported, which needs torch")
pytest.importorskip("nncf", reason="quantizing needs nncf")

import onnxruntime as ort

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import EngineError, InputError
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export import quantize as quantize_module
from twinspire_export.quantization import search as search_module
from twinspire_export.quantization import trials as trials_module
from twinspire_export.quantization.recipe import BiasCorrection, Int8Recipe, RangeEstimator, Ranges, Variant
from twinspire_export.quantization.search import SearchResult, SearchSettings, search_recipe
from twinspire_export.quantization.trials import Measured, Sensitivity, Trial, TrialRunner

SAMPLES = [np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8) for seed in range(12)]
SETTINGS = SearchSettings(
    alphas=(0.5, None),
    estimators=(RangeEstimator.MINMAX, RangeEstimator.MEAN_MINMAX),
    ranges=(Ranges.SYMMETRIC, Ranges.ASYMMETRIC),
    bias_corrections=(BiasCorrection.FAST,),
    calibration=4,
    measurement=6,
    left_out_steps=2,
    speed_batch=2,
    speed_rounds=3,
)


@pytest.fixture(scope="module")
def engine(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the fp32 image engine of a tiny bundle."""
    folder = tmp_path_factory.mktemp("base")
    bundle: Bundle = export_checkpoint(make_checkpoint(folder / "tiny-clip"), folder / "bundle")
    return bundle.engine(Tower.IMAGE, Precision.FP32)


def search(engine: Path, work: Path, said: list[str] | None = None, **changes: Any) -> SearchResult:
    """Search with the samples; the settings of SETTINGS but for `changes`."""
    settings = SearchSettings(**{**vars(SETTINGS), **changes})
    return search_recipe(
        engine, SAMPLES, SAMPLES, work=work, settings=settings, on_step=None if said is None else said.append
    )


@pytest.fixture(scope="module")
def found(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path, list[str]]:
    """Search once; give the result, the folder of what was kept, and what was said."""
    work, said = tmp_path_factory.mktemp("work"), list[str]()
    return search(engine, work, said), work, said


def embed(path: Path, sample: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run an engine by onnxruntime alone."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(["embedding"], {"image": sample})[0][0]
    return result


@pytest.mark.slow
def test_settings_are_tried_by_turns(found: tuple[SearchResult, Path, list[str]]) -> None:
    """Each alpha, estimator and kind of range is tried, the others at their best so far; then parts are left out."""
    result, _, said = found
    recipes = [trial.recipe for trial in result.trials]
    assert len(set(recipes)) == len(recipes)
    assert [recipe.smooth_alpha for recipe in recipes[:2]] == [0.5, None]
    assert {recipe.estimator for recipe in recipes} == set(SETTINGS.estimators)
    assert {recipe.ranges for recipe in recipes} == set(SETTINGS.ranges)
    assert result.finished
    assert sum(bool(recipe.left_out) for recipe in recipes) <= 2
    by_turns = [trial for trial in result.trials if not trial.recipe.left_out]
    start = max(by_turns, key=lambda trial: trial.measured.mean_cosine).recipe
    for recipe in recipes:
        if recipe.left_out:
            assert Int8Recipe(**{**vars(recipe), "left_out": ()}) == start
    assert sum(line.startswith("trial") and "fp32" in line for line in said) == len(recipes)


@pytest.mark.slow
def test_trials_tell_what_was_measured(engine: Path, found: tuple[SearchResult, Path, list[str]]) -> None:
    """A trial's cosines are those of its engine to fp32 on the samples chosen evenly; rounds and size are there."""
    result, _, _ = found
    chosen = SAMPLES[::2]
    for trial in result.trials:
        cosines = [float(embed(trial.engine, sample) @ embed(engine, sample)) for sample in chosen]
        assert abs(trial.measured.mean_cosine - np.mean(cosines)) <= 1e-5
        assert abs(trial.measured.min_cosine - min(cosines)) <= 1e-5
        assert [len(rounds) for rounds in trial.measured.rounds_s] == [3, 3]
        assert trial.size_bytes == trial.engine.stat().st_size
        assert trial.measured.speed > 0


def test_parts_are_measured(found: tuple[SearchResult, Path, list[str]]) -> None:
    """Each kind of product, and those of the first and last block, are brought back to fp32 by themselves."""
    result, work, _ = found
    labels = {each.label for each in result.sensitivities}
    kinds = {"attention-in", "attention-scores", "attention-out", "mlp-up", "mlp-down"}
    assert {"patches", "projection", *kinds, *(f"{kind}:{block}" for kind in kinds for block in (0, 1))} == labels
    assert not list(work.glob("*/without-*.onnx"))


def test_nothing_is_measured_twice(
    engine: Path, found: tuple[SearchResult, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same search again takes everything from the folder and gives the same result."""
    result, work, _ = found

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was done already")

    monkeypatch.setattr(trials_module, "quantize_graph", fail)
    monkeypatch.setattr(TrialRunner, "_compare", fail)
    assert search(engine, work) == result


def test_search_goes_on_where_it_ended(
    engine: Path, tmp_path: Path, found: tuple[SearchResult, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that was stopped in the middle makes only what is missing."""
    _, work, _ = found
    shutil.copytree(work, tmp_path / "work")
    half_done = sorted((tmp_path / "work").iterdir())[0]
    (half_done / "trial.json").unlink()
    made: list[Int8Recipe] = []
    quantize = trials_module.quantize_graph

    def count(model: Any, feeds: Any, recipe: Int8Recipe) -> Any:
        made.append(recipe)
        return quantize(model, feeds, recipe)

    monkeypatch.setattr(trials_module, "quantize_graph", count)
    search(engine, tmp_path / "work", left_out_steps=0)
    search(engine, tmp_path / "work")
    assert len(made) == 1


def test_other_samples_are_measured_anew(engine: Path, found: tuple[SearchResult, Path, list[str]]) -> None:
    """What is kept holds for its engine and samples alone."""
    result, work, _ = found
    recipe = result.trials[0].recipe
    same = TrialRunner(engine, SAMPLES[::3], SAMPLES[::2], work=work, batch=2, rounds=3)
    other = TrialRunner(engine, SAMPLES[::3], SAMPLES[1::2], work=work, batch=2, rounds=3)
    assert same.known(recipe) == result.trials[0]
    assert other.known(recipe) is None


@pytest.mark.slow
def test_budget_ends_the_search(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial begins after the budget; what is there is given, and that the search did not finish."""
    clock = iter(range(0, 1_000_000, 10))
    monkeypatch.setattr(search_module.time, "monotonic", lambda: float(next(clock)))
    result = search(engine, tmp_path, budget_s=25.0)
    assert len(result.trials) == 2
    assert not result.finished
    with pytest.raises(InputError, match="budget_s"):
        search(engine, tmp_path / "new", budget_s=5.0)


@pytest.mark.slow
def test_variant_for_tensorrt(engine: Path, tmp_path: Path) -> None:
    """For TensorRT asymmetric ranges are not tried, and every recipe is of its variant."""
    result = search_recipe(
        engine,
        SAMPLES,
        SAMPLES,
        work=tmp_path,
        variant=Variant.TENSORRT,
        settings=SearchSettings(**{**vars(SETTINGS), "alphas": (0.5,), "left_out_steps": 0}),
    )
    assert {trial.recipe.variant for trial in result.trials} == {Variant.TENSORRT}
    assert {trial.recipe.ranges for trial in result.trials} == {Ranges.SYMMETRIC}
    assert result.sensitivities == ()


def _measured(cosine: float, speed: float) -> Measured:
    return Measured(mean_cosine=cosine, min_cosine=cosine, speed=speed, rounds_s=((), ()))


def _trial(cosine: float, speed: float) -> Trial:
    recipe = Int8Recipe(smooth_alpha=speed / 10)
    return Trial(recipe=recipe, engine=Path("e"), size_bytes=1, measured=_measured(cosine, speed), seconds=1.0)


def test_what_is_chosen_is_fast() -> None:
    """The most exact trial of those that are at most 5% slower than the fastest is the one to take."""
    trials = (_trial(0.990, 3.0), _trial(0.994, 2.86), _trial(0.993, 2.9), _trial(0.999, 2.8))
    assert SearchResult(trials, (), finished=True).chosen == trials[1]


@pytest.mark.slow
def test_a_bundle_by_a_search(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantizing with a search makes each tower by the recipe that its search chose, and goes on where it was ended."""
    base = Bundle.open(engine.parent)
    pictures = np.concatenate(SAMPLES)
    chosen: list[Int8Recipe] = []
    write = quantize_module.write_engine

    def note(*arguments: Any, recipe: Int8Recipe, **options: Any) -> None:
        chosen.append(recipe)
        if len(chosen) == 2:
            raise KeyboardInterrupt
        write(*arguments, recipe=recipe, **options)

    monkeypatch.setattr(quantize_module, "write_engine", note)
    small = {"alphas": (None,), "estimators": SETTINGS.estimators[:1], "ranges": SETTINGS.ranges[:1]}
    options: dict[str, Any] = {
        "pictures": pictures,
        "captions": ["a red car", "a cat"],
        "search": SearchSettings(**{**vars(SETTINGS), **small, "left_out_steps": 0}),
    }
    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(base, tmp_path / "new", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["new.search"]
    said: list[str] = []
    made = quantize_bundle(base, tmp_path / "new", on_step=said.append, **options)
    assert not any(line.startswith("trial") and "fp32" not in line for line in said)
    assert chosen[:2] == chosen[2:]
    assert {recipe.smooth_alpha for recipe in chosen} == {None}
    assert any(str(chosen[2]) in line for line in said)
    assert made.precisions(Tower.TEXT) == (Precision.FP32, Precision.INT8)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    for refused, word in (({"precision": "fp16"}, "fp16"), ({"recipes": {Tower.TEXT: Int8Recipe()}}, "given")):
        with pytest.raises(InputError, match=word):
            quantize_bundle(base, tmp_path / "other", **{**options, **refused})


def test_front_holds_what_nothing_beats() -> None:
    """The front lists the fastest trial, then each one that is nearer to fp32 than all faster ones."""
    trials = (_trial(0.990, 3.0), _trial(0.995, 2.5), _trial(0.994, 2.4), _trial(0.999, 1.2), _trial(0.980, 2.9))
    result = SearchResult(trials, (), finished=True)
    assert result.front() == (trials[0], trials[1], trials[3])
    assert result.best == trials[3]


def test_what_costs_nothing_is_left_out_first() -> None:
    """First all parts that cost no time and take error away, then those that take most away for their time."""
    start = _trial(0.990, 3.0)
    found = [
        Sensitivity(label="projection", measured=_measured(0.992, 1.0)),  # free, a fifth of the error
        Sensitivity(label="patches", measured=_measured(0.990, 1.0)),  # free, useless
        Sensitivity(label="mlp-down:0", measured=_measured(0.991, 0.98)),  # 10% for 2%
        Sensitivity(label="mlp-down", measured=_measured(0.993, 0.70)),  # 30% for 30%
        Sensitivity(label="attention-out", measured=_measured(0.992, 0.90)),  # 20% for 10%
        Sensitivity(label="attention-scores:1", measured=_measured(0.9902, 1.0)),
        Sensitivity(label="attention-scores", measured=_measured(0.9915, 1.0)),
    ]
    sets = search_module._growing(start, found, 9)
    assert sets == [
        ("attention-scores", "projection"),
        ("attention-scores", "mlp-down:0", "projection"),
        ("attention-out", "attention-scores", "mlp-down:0", "projection"),
        ("attention-out", "attention-scores", "mlp-down", "projection"),
    ]
    assert search_module._growing(start, found, 1) == sets[:1]


@pytest.mark.parametrize(
    "changes", [{"alphas": ()}, {"calibration": 0}, {"measurement": 0}, {"left_out_steps": -1}, {"budget_s": 0.0}]
)
def test_bad_settings(changes: dict[str, Any]) -> None:
    """Settings out of range are an InputError."""
    with pytest.raises(InputError):
        SearchSettings(**changes)


def test_nothing_to_measure_on(engine: Path, tmp_path: Path) -> None:
    """Without samples, or with an engine that is none, a search ends with an error."""
    with pytest.raises(InputError, match="calibrate"):
        search_recipe(engine, [], SAMPLES, work=tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"no engine")
    with pytest.raises(EngineError):
        search_recipe(tmp_path / "broken.onnx", SAMPLES, SAMPLES, work=tmp_path / "work", settings=SETTINGS)
