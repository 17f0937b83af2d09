"""`twinspire precision`: what is measured, what becomes `auto`, and what the new bundle says of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from twinspire import Client, LocalTowers, sample_bundle
from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire.cli.app import application
from twinspire.errors import BundleError, EngineError, InputError, MissingDependencyError, TwinspireError
from twinspire.towers import InferencePrecision, Provider
from twinspire_eval.datasets import Caption, CaptionedImages
from twinspire_eval.recall import R1, R5, Estimate
from twinspire_eval.recall.benchmark import measure_recall
from twinspire_eval.records import Record
from twinspire_eval.statistics import Interval
from twinspire_export.commands import _merge_tokens
from twinspire_export.precision import PrecisionOptions, PrecisionResult, choose_precision, measurement, run
from twinspire_export.precision import candidates as listing
from twinspire_export.precision.candidates import (
    EnginePair,
    PrecisionCandidate,
    RuntimeConfig,
    candidates_of,
    configs_of,
    engine_pairs,
)
from twinspire_export.precision.measurement import Throughput
from twinspire_export.precision.merging import merging_engines, merging_sweep
from twinspire_export.precision.report import record, sentences, table
from twinspire_export.precision.selection import (
    Accuracy,
    CandidateResult,
    Cosines,
    best_engines,
    best_of,
    pareto_front,
    rejected,
)

WORDS = ("a", "the", "red", "blue", "green", "large", "cat", "dog", "house", "boat", "left", "of", "on", "snow")
QUICK = PrecisionOptions(threads=2, rounds=2, visit_s=0.0, max_recall_drop=0.5, baseline=False)


def _captioned(count: int = 30, *, seed: int = 0) -> CaptionedImages:
    """Images of noise with an English and a Chinese caption in the tiny model's words."""
    rng = np.random.default_rng(seed)
    said = {" ".join(rng.choice(WORDS, rng.integers(3, 13))): None for _ in range(4 * count)}
    words = iter(said)
    return CaptionedImages(
        f"{count} of noise",
        tuple(f"n{place}" for place in range(count)),
        [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(count)],
        tuple((Caption(next(words), "en"), Caption(next(words), "zh")) for _ in range(count)),
    )


@pytest.fixture(autouse=True)
def only_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on onnxruntime's own provider, whatever is installed."""
    monkeypatch.setattr(run, "available", lambda: (Provider.CPU,))


def _slowed(monkeypatch: pytest.MonkeyPatch, items_per_s: Callable[[LocalTowers], float]) -> None:
    """Let visits say what speed they saw: what the towers' runtime decides, for images and texts alike."""

    def visit(encode: Any, towers: LocalTowers, visit_s: float) -> Callable[[], float]:
        assert encode(towers) in (measurement.IMAGES, measurement.TEXTS)
        return lambda: items_per_s(towers)

    monkeypatch.setattr(measurement, "_visit", visit)


def _int8_is_faster(towers: LocalTowers) -> float:
    runtime = towers.runtime
    return (200.0 if runtime.precision is Precision.INT8 else 100.0) * (1.5 if runtime.streams == 2 else 1.0)


@pytest.fixture
def chosen(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrecisionResult:
    """Choose for the tiny bundle, with speeds that are made up: int8 twice as fast, 2 streams half as fast again."""
    _slowed(monkeypatch, _int8_is_faster)
    return choose_precision(tiny.bundle, tmp_path / "new", _captioned(), options=QUICK)


# The whole


def test_every_candidate_is_measured(chosen: PrecisionResult) -> None:
    """Each precision in one stream and in as many as threads, with its speed over fp32's."""
    speeds = {str(each.candidate): each.speed.overall.value for each in chosen.results}
    assert speeds == {
        "fp32 on cpu": 1.0,
        "fp32 on cpu, 2 streams": pytest.approx(1.5),
        "int8 on cpu": pytest.approx(2.0),
        "int8 on cpu, 2 streams": pytest.approx(3.0),
    }


def test_a_model_of_texts_alone(make_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions among themselves decide; speed, certificates and table are of the text tower alone."""
    _slowed(monkeypatch, _int8_is_faster)
    bundle = make_tiny("texts", towers=(Tower.TEXT,)).bundle
    both = _captioned()
    captions = tuple((*each, Caption(f"{each[0].text} snow", "en"), Caption("a cat", "zh")) for each in both.captions)
    data = CaptionedImages("captions", both.ids, (), captions)
    result = choose_precision(bundle, tmp_path / "new", data, options=QUICK)
    assert result.choice.precision is Precision.INT8
    assert result.best.speed.towers == (Tower.TEXT,)
    assert result.best.speed.overall.value == pytest.approx(3.0)
    assert list(result.best.accuracy.cosines) == [Tower.TEXT]
    written = Bundle.open(tmp_path / "new")
    certificate = written.manifest.engines[Tower.TEXT][Precision.INT8].certificate
    assert certificate is not None
    assert certificate.recall is not None
    assert list(certificate.recall["en"]) == ["text_to_text"]
    saved = record(result, data_spec="captions:x").results["candidates"][str(result.best.candidate)]
    assert "texts_per_s" in saved
    assert "images_per_s" not in saved
    assert [str(column.header) for column in table(result).columns][1:3] == ["texts/s", "vs. fp32"]
    assert sentences(result)


@pytest.mark.parametrize(("towers", "has_images"), [((Tower.TEXT,), True), ((Tower.IMAGE, Tower.TEXT), False)])
def test_data_of_other_towers(
    make_tiny: Callable[..., Any], tmp_path: Path, towers: tuple[Tower, ...], has_images: bool
) -> None:
    """Images for a model of texts, and captions alone for a model of both, are errors before anything is measured."""
    data = _captioned()
    if not has_images:
        data = CaptionedImages("captions", data.ids, (), data.captions)
    with pytest.raises(InputError, match="captions"):
        choose_precision(make_tiny("other", towers=towers).bundle, tmp_path / "new", data, options=QUICK)
    assert not (tmp_path / "new").exists()


def test_the_recall_is_that_of_the_benchmark(chosen: PrecisionResult, tiny: Any) -> None:
    """The drop is what `measure_recall` finds above, turned round, with its interval; in certificates all of it."""
    with (
        Client.local(tiny.bundle, precision="fp32", provider="cpu", threads=2) as fp32,
        Client.local(tiny.bundle, precision="int8", provider="cpu", threads=2) as int8,
    ):
        expected = measure_recall({"fp32": fp32, "int8": int8}, _captioned())
    above = expected.losses["int8"].pooled[R1]
    drop = chosen.best.accuracy.recall_drop
    assert drop.value == pytest.approx(-above.value)
    assert drop.interval == pytest.approx(Interval(-above.interval.high, -above.interval.low)) or (
        (drop.interval.low, drop.interval.high) == pytest.approx((-above.interval.high, -above.interval.low))
    )
    for precision, name in ((Precision.FP32, "fp32"), (Precision.INT8, "int8")):
        for tower in (Tower.IMAGE, Tower.TEXT):
            certificate = chosen.bundle.manifest.engines[tower][precision].certificate
            assert certificate is not None
            assert certificate.recall is not None
            for language, both in expected.figures[name].items():
                for way, figures in both.items():
                    found = certificate.recall[language][way.value]
                    assert found["r1"] == figures[R1].value
                    assert found["intervals"]["r5"] == [
                        figures[R5].interval.low,
                        figures[R5].interval.high,
                    ]
    assert expected.figures["fp32"]["en"]


def test_the_new_bundle_says_what_won(chosen: PrecisionResult, tiny: Any) -> None:
    """It has the same engines, the choice with all that it was measured on, and opens as it was chosen."""
    written = Bundle.open(chosen.bundle.path)
    for tower, precision in itertools.product((Tower.IMAGE, Tower.TEXT), (Precision.FP32, Precision.INT8)):
        assert written.engine(tower, precision).samefile(tiny.bundle.engine(tower, precision))
    choice = written.manifest.auto
    assert choice is not None
    assert (choice.precision, choice.provider, choice.streams, choice.threads) == (Precision.INT8, "cpu", 2, 2)
    assert choice.speed == pytest.approx(3.0)
    assert (choice.max_recall_drop, choice.recall_drop) == (0.5, chosen.best.accuracy.recall_drop.value)
    assert choice.recall_drop_high == chosen.best.accuracy.recall_drop.interval.high
    assert (choice.data, choice.rejected) == ("30 of noise", ())
    assert str(LocalTowers(written, threads=2).runtime) == "onnxruntime cpu int8, threads: 2, streams: 2"
    assert not (chosen.bundle.path.parent / "new.work").exists()


def test_certificates_hold_cosine_and_speed(chosen: PrecisionResult, tiny: Any) -> None:
    """int8's cosine is that of its embeddings over the data; each runtime's speed is there."""
    images = np.stack([np.asarray(picture) for picture in _captioned().images])
    cosines = (tiny.model.encode_images(images) * tiny.int8.encode_images(images)).sum(axis=1)
    certificate = chosen.bundle.manifest.engines[Tower.IMAGE][Precision.INT8].certificate
    assert certificate is not None
    assert (certificate.samples, certificate.data) == (30, "30 images of 30 of noise")
    assert certificate.min_cosine == pytest.approx(cosines.min(), abs=1e-6)
    assert certificate.mean_cosine == pytest.approx(cosines.mean(), abs=1e-6)
    assert certificate.speed is not None
    assert [(each["streams"], each["images_per_s"]) for each in certificate.speed["runtimes"]] == [(1, 200), (2, 300)]
    assert certificate.speed["runtimes"][1]["times_fp32"]["value"] == pytest.approx(3.0)
    text = chosen.bundle.manifest.engines[Tower.TEXT][Precision.INT8].certificate
    assert text is not None
    assert (text.samples, text.data) == (60, "60 captions of 30 of noise")


def test_fp32_stays_where_no_other_keeps_recall(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that finds less than is allowed is rejected, here and elsewhere, and it says so."""
    _slowed(monkeypatch, _int8_is_faster)
    turned = _bundle_with(tiny.bundle, tmp_path / "turned", Precision.INT8, _reversed_model(tiny))
    result = choose_precision(
        turned, tmp_path / "new", _searchable(tiny), options=dataclasses.replace(QUICK, max_recall_drop=0.005)
    )
    assert result.choice.precision is Precision.FP32
    assert result.choice.streams == 2
    assert result.choice.rejected == (Precision.INT8,)
    assert result.choice.recall_drop == 0.0
    (said,) = sentences(result)
    assert "every other precision loses more than 0.5 points" in said
    assert "fp32 on cpu, 2 streams" in said
    assert LocalTowers(result.bundle, threads=1).runtime.precision is Precision.FP32
    assert LocalTowers(result.bundle, threads=1, precision="int8").runtime.precision is Precision.INT8


def _reversed_model(tiny: Any) -> Any:
    """A text tower that says the opposite: what is nearest becomes what is farthest."""
    return dataclasses.replace(tiny.model, text_weight=-tiny.model.text_weight)


def _searchable(tiny: Any) -> CaptionedImages:
    """Images of noise, each with the caption, of many, that the fp32 towers find nearest and no other image has."""
    rng = np.random.default_rng(1)
    texts = list({" ".join(rng.choice(WORDS, rng.integers(3, 13))): None for _ in range(400)})
    images = rng.integers(0, 256, (400, 16, 16, 3), np.uint8)
    with Client.local(tiny.bundle, precision="fp32", provider="cpu", threads=1) as client:
        scores = client.towers.encode_images(images) @ client.encode_texts(texts).T
    pairs = [(row, int(best)) for row, best in enumerate(scores.argmax(axis=1)) if scores[:, best].argmax() == row]
    assert len(pairs) >= 3
    return CaptionedImages(
        "what is found",
        tuple(f"n{row}" for row, _ in pairs),
        [images[row] for row, _ in pairs],
        tuple((Caption(texts[column]),) for _, column in pairs),
    )


def _bundle_with(base: Bundle, destination: Path, precision: Precision, model: Any) -> Bundle:
    """Write a bundle with other engines of a precision."""
    engines = {}
    with BundleWriter(destination, base=base) as writer:
        for tower, graph in ((Tower.IMAGE, model.image_graph()), (Tower.TEXT, model.text_graph())):
            name = f"{tower}.{precision}.onnx"
            writer.path(name).write_bytes(graph.SerializeToString())
            engines[tower, precision] = (name, None)
        return writer.commit(base.manifest.draft(), engines)


def test_an_interrupted_run_goes_on(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before an interruption is not measured again; of other data it is."""
    measured: list[str] = []
    embed, speed = run.embed, run.measure_speed

    def embedding(setting: RuntimeConfig, *arguments: Any, **options: Any) -> Any:
        measured.append(f"recall {setting}")
        return embed(setting, *arguments, **options)

    def speeding(candidate: PrecisionCandidate, *arguments: Any, **options: Any) -> Any:
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(f"speed {candidate}")
        return speed(candidate, *arguments, **options)

    monkeypatch.setattr(run, "embed", embedding)
    monkeypatch.setattr(run, "measure_speed", speeding)
    with pytest.raises(KeyboardInterrupt):
        choose_precision(tiny.bundle, tmp_path / "new", _captioned(), options=QUICK)
    before = ["recall fp32 on cpu", "recall int8 on cpu", "speed fp32 on cpu", "speed fp32 on cpu, 2 streams"]
    assert measured == before
    assert not (tmp_path / "new").exists()
    measured.clear()
    steps: list[str] = []
    choose_precision(tiny.bundle, tmp_path / "new", _captioned(), options=QUICK, on_step=steps.append)
    assert measured == ["speed int8 on cpu", "speed int8 on cpu, 2 streams"]
    assert sum("before" in step for step in steps) == 4
    measured.clear()
    for data, expected in ((_captioned(), 0), (_captioned(seed=1), 4)):
        work = tmp_path / "work"
        monkeypatch.setattr(run, "measure_speed", speed)
        choose_precision(tiny.bundle, tmp_path / "first", _captioned(), options=QUICK, work=work)
        measured.clear()
        choose_precision(tiny.bundle, tmp_path / f"again{expected}", data, options=QUICK, work=work)
        assert len(measured) == expected // 2
        (tmp_path / "first").rename(tmp_path / f"moved{expected}")


def test_a_half_written_measurement_is_made_again(tiny: Any, tmp_path: Path) -> None:
    """A file of the work folder that is cut off counts as none."""
    work = tmp_path / "work"
    choose_precision(tiny.bundle, tmp_path / "one", _captioned(), options=QUICK, work=work)
    files = list((work / "measured").iterdir())
    assert len(files) == 2 + 4
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    steps: list[str] = []
    choose_precision(tiny.bundle, tmp_path / "two", _captioned(), options=QUICK, work=work, on_step=steps.append)
    assert not any("before" in step for step in steps)


def test_what_does_not_run_is_left_out(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that fails is named with its reason; where fp32 fails that is raised."""
    embed = run.embed
    broken: list[Precision] = [Precision.INT8]

    def failing(setting: RuntimeConfig, *arguments: Any, **options: Any) -> Any:
        if setting.engines.precision in broken:
            raise EngineError("no kernel")
        return embed(setting, *arguments, **options)

    monkeypatch.setattr(run, "embed", failing)
    result = choose_precision(tiny.bundle, tmp_path / "new", _captioned(), options=QUICK)
    assert result.skipped == {"int8 on cpu": "no kernel"}
    assert {each.candidate.config.engines.precision for each in result.results} == {Precision.FP32}
    assert "no kernel" in sentences(result)[0]
    assert "fp32" in sentences(result)[1]
    int8 = result.bundle.manifest.engines[Tower.IMAGE][Precision.INT8]
    assert int8.certificate == tiny.bundle.manifest.engines[Tower.IMAGE][Precision.INT8].certificate
    broken.append(Precision.FP32)
    with pytest.raises(EngineError, match="no kernel"):
        choose_precision(tiny.bundle, tmp_path / "newer", _captioned(), options=QUICK)


def test_recipes_are_made_on_the_way(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 engines by recipes are candidates beside the bundle's, and are not made again; the best are in NEW."""
    pytest.importorskip("nncf", reason="quantizing needs nncf")
    made: list[Any] = []
    # Twice the weights are the same direction, in other files.
    exact = dataclasses.replace(tiny.model, image_weight=2 * tiny.model.image_weight)

    def quantize(base: Bundle, destination: Path, *, recipes: Any, captions: Any, **options: Any) -> Bundle:
        """Stand in for NNCF: the recipe's ranges decide what the engines are."""
        assert base.precisions(Tower.IMAGE) == (Precision.FP32,)
        assert captions == ["a cat"]
        made.append(recipes[Tower.TEXT])
        model = tiny.int8 if made[-1].ranges == "symmetric" else exact
        return _bundle_with(base, destination, Precision.INT8, model)

    monkeypatch.setattr("twinspire_export.quantize.quantize_bundle", quantize)
    _slowed(monkeypatch, _int8_is_faster)
    options = dataclasses.replace(QUICK, recipes=2, max_recall_drop=0.0, captions=["a cat"])
    for name in ("one", "two"):
        result = choose_precision(
            tiny.bundle, tmp_path / name, _searchable(tiny), options=options, work=tmp_path / "work"
        )
        assert [recipe.ranges for recipe in made] == ["symmetric", "asymmetric"]
    # The first recipe gives what the bundle has already, the second what loses nothing.
    names = {str(each.candidate.config.engines) for each in result.results}
    assert names == {"fp32", "int8", "int8 (asymmetric ranges)"}
    assert str(result.best.candidate) == "int8 (asymmetric ranges) on cpu, 2 streams"
    written = Bundle.open(tmp_path / "two")
    assert written.engine(Tower.IMAGE, Precision.INT8).read_bytes() == exact.image_graph().SerializeToString()
    with pytest.raises(InputError, match="recipes"):
        PrecisionOptions(recipes=9)


def test_int8_is_made_where_there_is_fp32_alone(
    tiny: Any, make_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle of fp32 engines gets an int8 candidate by the default recipe; where nncf is missing that is said."""
    base = make_tiny("base", precisions=[Precision.FP32]).bundle
    monkeypatch.setattr(
        "twinspire_export.quantize.quantize_bundle",
        lambda fp32, folder, **_: _bundle_with(fp32, folder, Precision.INT8, tiny.int8),
    )
    _slowed(monkeypatch, _int8_is_faster)
    result = choose_precision(base, tmp_path / "new", _captioned(), options=QUICK)
    assert str(result.best.candidate) == "int8 (default recipe) on cpu, 2 streams"
    assert result.bundle.precisions(Tower.TEXT) == (Precision.FP32, Precision.INT8)
    assert record(result, data_spec="noise").subject["recipes"] == result.recipes == 1

    def missing(*_: object) -> None:
        raise MissingDependencyError("nncf", "quantize", "making int8 engines")

    monkeypatch.setattr("twinspire_export.precision.recipes.require", missing)
    result = choose_precision(base, tmp_path / "newer", _captioned(), options=QUICK)
    assert "quantize" in result.skipped["int8"]
    assert {each.candidate.config.engines.precision for each in result.results} == {Precision.FP32}
    with pytest.raises(MissingDependencyError, match="nncf"):
        choose_precision(base, tmp_path / "newest", _captioned(), options=dataclasses.replace(QUICK, recipes=1))


def test_the_baseline_is_measured_and_never_chosen(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime's quantize_dynamic makes stands in table and record, however fast, and in no bundle."""
    _slowed(monkeypatch, _int8_is_faster)
    options = dataclasses.replace(QUICK, baseline=True)
    result = choose_precision(tiny.bundle, tmp_path / "new", _captioned(), options=options, work=tmp_path / "work")
    assert "int8 (quantize_dynamic) on cpu, 2 streams" in {str(each.candidate) for each in result.results}
    (baseline,) = {each.candidate.config.engines for each in result.results if "dynamic" in str(each.candidate)}
    for tower in (Tower.IMAGE, Tower.TEXT):
        made = onnx.load(baseline.bundle.engine(tower, Precision.INT8))
        assert "MatMulInteger" in {node.op_type for node in made.graph.node}
        used = result.bundle.engine(tower, Precision.INT8)
        assert used.read_bytes() == tiny.bundle.engine(tower, Precision.INT8).read_bytes()
    ranked = [*result.results, _measured(9.0, -0.1, variant=baseline)]
    assert best_of(ranked, 0.5) is result.best
    assert baseline not in {each.candidate.config.engines for each in pareto_front(ranked)}
    rows = list(zip(*(column.cells for column in table(result).columns), strict=True))
    assert {row[-1] for row in rows if "dynamic" in str(row[0])} == {"baseline"}
    found = record(result, data_spec="noise").results["candidates"]["int8 (quantize_dynamic) on cpu"]
    assert (found["is_baseline"], found["recipe"]) == (True, "quantize_dynamic")
    again: list[str] = []
    choose_precision(
        tiny.bundle, tmp_path / "again", _captioned(), options=options, work=tmp_path / "work", on_step=again.append
    )
    assert not any("making" in step for step in again)


def test_without_onnx_the_baseline_is_left_out(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the baseline cannot be made it is named with its reason, and the rest is measured."""

    def fail(*_: object) -> None:
        raise EngineError("no such operator")

    monkeypatch.setattr("twinspire_export.quantization.quantizer.quantize_dynamically", fail)
    options = dataclasses.replace(QUICK, baseline=True)
    result = choose_precision(tiny.bundle, tmp_path / "new", _captioned(), options=options)
    assert result.skipped == {"quantize_dynamic": "no such operator"}
    assert len(result.results) == 4


# The choice


def _measured(
    speed: float, drop: float, *, precision: Precision = Precision.INT8, streams: int = 1, variant: Any = None
) -> CandidateResult:
    variant = variant or EnginePair(precision, None)  # type: ignore[arg-type]
    rounds = (100.0, 100.0)
    return CandidateResult(
        candidate=PrecisionCandidate(RuntimeConfig(variant, Provider.CPU), streams),
        speed=Throughput(
            images_per_s=(100 * speed,) * 2,
            texts_per_s=(100 * speed,) * 2,
            fp32_images_per_s=rounds,
            fp32_texts_per_s=rounds,
        ),
        accuracy=Accuracy(
            recall_drop=Estimate(drop, Interval(drop - 0.001, drop + 0.001)),
            worst_recall_drop=drop,
            cosines={tower: Cosines(samples=1, minimum=1.0, mean=1.0) for tower in (Tower.IMAGE, Tower.TEXT)},
        ),
    )


def test_the_fastest_that_keeps_recall_is_best() -> None:
    """What is faster and loses too much is passed over; what loses just as much as is allowed is not."""
    fp32 = _measured(1.0, 0.0, precision=Precision.FP32)
    slow, fast, lossy = _measured(1.5, -0.001), _measured(2.0, 0.005), _measured(3.0, 0.0051)
    assert best_of([fp32, slow, fast, lossy], 0.005) is fast
    assert best_of([fp32, lossy], 0.005) is fp32


def test_streams_must_gain_something() -> None:
    """Of speeds within 2% the one with fewer streams is best, then the one that loses less."""
    one, two = _measured(2.0, 0.0), _measured(2.03, 0.0, streams=2)
    assert best_of([one, two], 0.005) is one
    three = _measured(2.05, 0.0, streams=2)
    assert best_of([one, three], 0.005) is three
    better = _measured(1.99, -0.001)
    assert best_of([one, better], 0.005) is better


def test_speed_weighs_images_and_texts_alike() -> None:
    """Four times the images at the same texts is twice as fast; ratios are taken round by round."""
    speed = Throughput(
        images_per_s=(40.0, 80.0),
        texts_per_s=(10.0, 20.0),
        fp32_images_per_s=(10.0, 20.0),
        fp32_texts_per_s=(10.0, 20.0),
    )
    assert speed.overall.value == pytest.approx(2.0)
    assert speed.overall.interval == Interval(pytest.approx(2.0), pytest.approx(2.0))
    assert (speed.ratio(Tower.IMAGE).value, speed.ratio(Tower.TEXT).value) == (4.0, 1.0)


def test_the_front_is_what_nothing_beats() -> None:
    """The fastest first, each further one slower and better."""
    a, b, c, d = _measured(3, 0.02), _measured(2, 0.01), _measured(1.5, 0.015), _measured(1, 0.0)
    assert pareto_front([d, c, b, a]) == [a, b, d]


def test_engines_that_were_made_take_the_place_of_the_bundles_where_they_win() -> None:
    """The best int8 engines that keep recall; where none does, the bundle's own, and the precision is rejected."""
    fp32 = _measured(1.0, 0.0, precision=Precision.FP32)
    own = EnginePair(Precision.INT8, None)  # type: ignore[arg-type]
    made = EnginePair(Precision.INT8, None, "made")  # type: ignore[arg-type]
    for own_drop, made_drop, expected, thrown_out in (
        (0.0, 0.0, made, []),
        (0.0, 0.1, own, []),
        (0.1, 0.1, own, [Precision.INT8]),
        (0.1, 0.0, made, []),
    ):
        measured = [fp32, _measured(2.0, own_drop, variant=own), _measured(3.0, made_drop, variant=made)]
        chosen = best_engines(measured, 0.005)
        assert chosen[Precision.INT8] is expected
        assert rejected(measured, chosen, 0.005) == thrown_out
    chosen = best_engines([fp32, _measured(3.0, 0.1, variant=made)], 0.005)
    assert list(chosen) == [Precision.FP32]


def test_what_is_tried_depends_on_the_machine(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 where the processor has it, on OpenVINO; one stream on CUDA, else as many as threads, four at most."""
    variants = engine_pairs(tiny.bundle)
    for sets, count in ((("amx_bf16",), 4), (("avx2",), 2)):
        monkeypatch.setattr(listing, "instruction_sets", lambda sets=sets: sets)
        found = list(configs_of(variants, [Provider.OPENVINO]))
        assert len(found) == count
    assert {each.inference_precision for each in found} == {InferencePrecision.F32}
    for provider, threads, expected in (
        (Provider.CPU, 1, [1]),
        (Provider.CPU, 2, [1, 2]),
        (Provider.OPENVINO, 16, [1, 4]),
        (Provider.CUDA, 16, [1]),
    ):
        assert [each.streams for each in candidates_of(RuntimeConfig(variants[0], provider), threads)] == expected
    assert str(RuntimeConfig(variants[1], Provider.OPENVINO, InferencePrecision.BF16)) == "int8 on openvino in bf16"
    tensorrt = RuntimeConfig(EnginePair(Precision.INT8_TENSORRT, tiny.bundle), Provider.CPU)
    assert "TensorRT" in str(listing.skip_reason(tensorrt))


# What is said


def test_the_record_holds_the_raw_rounds(chosen: PrecisionResult, tmp_path: Path) -> None:
    """And each candidate's figures; it is read as it was written."""
    record(chosen, data_spec="noise").save(tmp_path / "record.json")
    read = Record.load(tmp_path / "record.json")
    assert read.kind == "precision"
    assert read.parameters["images"] == 30
    found = read.results["candidates"]["int8 on cpu, 2 streams"]
    assert found["images_per_s"] == {"p50": 300.0, "samples": [300.0, 300.0]}
    assert found["times_fp32"]["overall"]["value"] == pytest.approx(3.0)
    assert found["size_bytes"] == sum(
        chosen.bundle.manifest.engines[tower][Precision.INT8].size_bytes for tower in (Tower.IMAGE, Tower.TEXT)
    )
    assert (read.results["auto"], read.results["reference"]) == ("int8 on cpu, 2 streams", "fp32 on cpu")
    assert "first_ranks" not in (tmp_path / "record.json").read_text()


def test_it_says_how_sure_the_choice_is(chosen: PrecisionResult) -> None:
    """Whether the interval's upper end is below what is allowed."""
    assert "below" in sentences(chosen)[0]
    strict = dataclasses.replace(chosen, options=dataclasses.replace(QUICK, max_recall_drop=0.0))
    recalled = dataclasses.replace(chosen.best.accuracy, recall_drop=Estimate(0.0, Interval(-0.01, 0.01)))
    said = sentences(dataclasses.replace(strict, best=dataclasses.replace(chosen.best, accuracy=recalled)))
    assert "above" in said[0]
    assert "more" in said[1]


def test_the_table_has_a_row_for_each(chosen: PrecisionResult) -> None:
    """The fastest first, the chosen one marked."""
    cells = [list(column.cells) for column in table(chosen).columns]
    assert cells[0][0] == "int8 on cpu, 2 streams"
    assert cells[-1] == ["auto", "", "", ""]
    assert cells[3] == ["3.00", "2.00", "1.50", "1.00"]


# The command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A CSV of images and captions."""
    rng = np.random.default_rng(0)
    lines = ["image,caption,language"]
    for place in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / f"{place}.png")
        lines += [f"{place}.png,a {WORDS[place]} cat,en", f"{place}.png,the {WORDS[place]} house,zh"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def _command(*arguments: object) -> None:
    """Run `twinspire precision`; errors are raised."""
    application()(["precision", *map(str, arguments)], standalone_mode=False)


def test_the_command(
    tiny: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table, a sentence, a record, a plot and a bundle; on stderr a line for each step where it is no terminal."""
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib")
    _slowed(monkeypatch, _int8_is_faster)
    options = ["--rounds", 1, "--threads", 2, "--max-recall-drop", 0.9, "--json", tmp_path / "record.json"]
    _command(tiny.bundle.path, "-o", tmp_path / "new", "-d", data, *options)
    said = capsys.readouterr()
    assert "int8 on cpu, 2 streams" in said.out
    assert any(line.startswith("auto") and "3.00" in line for line in said.out.splitlines())
    steps = said.err.splitlines()
    assert "quantize_dynamic" in steps[0]
    assert "recall" in steps[2]
    with Image.open(tmp_path / "new.png") as plot:
        assert plot.format == "PNG"
        assert plot.width > 1000
    assert Record.load(tmp_path / "record.json").subject["data_spec"] == str(data)
    assert Bundle.open(tmp_path / "new").manifest.auto is not None
    _command(tiny.bundle.path, "-o", tmp_path / "newer", "-d", data, *options[:-2], "--no-plot", "--no-baseline")
    assert not (tmp_path / "newer.png").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"--data": "nowhere"}, InputError, "nowhere"),
        ({"--data": "scenes:x"}, InputError, "scenes:x"),
        ({"--output": "table.csv"}, BundleError, r"table\.csv"),
        ({"--output": "none/new"}, BundleError, "none"),
        ({"bundle": "nowhere"}, BundleError, "nowhere"),
        ({"bundle": "int8"}, BundleError, "fp32"),
        ({"--max-recall-drop": "-0.01"}, InputError, "max_recall_drop"),
        ({"--max-recall-drop": "nan"}, InputError, "max_recall_drop nan"),
        ({"--max-recall-drop": "5"}, InputError, "max_recall_drop 5"),
        ({"--rounds": "0"}, InputError, "rounds 0"),
        ({"--threads": "0"}, InputError, "threads 0"),
        ({"--recipes": "-1"}, InputError, "recipes"),
        ({"--json": "none/record.json"}, InputError, "none/record.json"),
        ({"--plot": "none/plot.png"}, InputError, "none/plot.png"),
        ({"--plot": "plot.png", "--no-plot": None}, InputError, "--no-plot"),
        ({"--work": "table.csv"}, InputError, "--work"),
    ],
)
def test_what_cannot_be_done_is_told(
    tiny: Any,
    make_tiny: Callable[..., Any],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Mapping[str, str | None],
    error: type[TwinspireError],
    message: str,
) -> None:
    """And nothing is left behind."""
    make_tiny("int8", precisions=[Precision.INT8])
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    options = {"--output": "new", "--data": str(data), "--rounds": "1", **change}
    bundle = options.pop("bundle", None) or tiny.bundle.path
    flags = [word for name, value in options.items() for word in ([name] if value is None else [name, value])]
    with pytest.raises(error, match=message):
        _command(bundle, *flags)
    assert sorted(tmp_path.iterdir()) == before


def test_the_plot_needs_matplotlib(tiny: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error names the extra before anything is measured; --no-plot needs none."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="matplotlib") as caught:
        _command(tiny.bundle.path, "-o", tmp_path / "new", "-d", data)
    assert (caught.value.package, caught.value.extra) == ("matplotlib", "bench")
    assert not (tmp_path / "new").exists()


# Token merging


def _merging_is_faster(towers: LocalTowers) -> float:
    return 400.0 if towers.runtime.precision is Precision.INT8_TOME else 100.0


@pytest.mark.slow
def test_merging_tokens_is_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that merge tokens are candidates; the certificate of the chosen one names it, and the towers run it."""
    _slowed(monkeypatch, _merging_is_faster)
    options = dataclasses.replace(QUICK, merge_tokens=(3,), recipes=0, threads=1)
    result = choose_precision(sample_bundle(), tmp_path / "new", _captioned(), options=options)
    names = {str(each.candidate) for each in result.results}
    assert {"fp32-tome (r 3) on cpu", "int8-tome (r 3) on cpu"} <= names
    assert result.choice.precision is Precision.INT8_TOME
    written = Bundle.open(tmp_path / "new")
    records = {tower: written.manifest.engines[tower][Precision.INT8_TOME] for tower in written.towers}
    found = {tower: each.certificate.merged_tokens for tower, each in records.items() if each.certificate is not None}
    assert found[Tower.IMAGE] == 3
    assert found[Tower.TEXT] is None
    assert records[Tower.TEXT].sha256 == written.manifest.engines[Tower.TEXT][Precision.INT8].sha256
    with Client.local(written, precision=Precision.INT8_TOME, provider="cpu") as client:
        assert client.encode_images([Image.new("RGB", (9, 9))]).shape == (1, written.dim)
    (remade,) = merging_engines(EnginePair(Precision.INT8, written), [4], tmp_path, on_step=lambda _: None)
    certificate = remade.bundle.manifest.engines[Tower.IMAGE][Precision.INT8_TOME].certificate
    assert certificate is not None
    assert certificate.merged_tokens == 4


def test_a_tower_whose_tokens_cannot_be_merged(tiny: Any, tmp_path: Path) -> None:
    """A sweep leaves such a tower out with the reason; numbers that were named are an error."""
    result = choose_precision(
        tiny.bundle, tmp_path / "new", _captioned(), options=dataclasses.replace(QUICK, merge_tokens=None)
    )
    assert "transformer" in result.skipped["merging tokens"]
    with pytest.raises(InputError, match="transformer"):
        choose_precision(
            tiny.bundle, tmp_path / "more", _captioned(), options=dataclasses.replace(QUICK, merge_tokens=(2,))
        )


def test_the_sweep_covers_shares_of_the_tokens() -> None:
    """The numbers merge a quarter, half and three quarters of the sample's 50 tokens in its five blocks that merge."""
    assert merging_sweep(Bundle.open(sample_bundle())) == (2, 5, 8)


@pytest.mark.parametrize("choice", ["4,x", "", "0", "-1"])
def test_numbers_of_tokens_to_merge_are_checked(choice: str) -> None:
    """Anything but `none`, `auto` or numbers of at least 1 is an InputError."""
    with pytest.raises(InputError, match="expected"):
        PrecisionOptions(merge_tokens=_merge_tokens(choice))
