"""The sample bundle as it is committed: its quality from JPEG file to hit, its size, its certificates."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import twinspire_export.sample
from twinspire import Bundle, Client, sample_bundle
from twinspire.bundle import Precision, Tower
from twinspire_eval.datasets import open_dataset
from twinspire_eval.recall import P1, R1, R5, R10, Direction
from twinspire_eval.recall.benchmark import RecallReport, encode_dataset, measure_recall
from twinspire_eval.records import Record
from twinspire_eval.scenes import Contrast, Language
from twinspire_export.sample import build
from twinspire_export.sample.build import SampleFigures, measure
from twinspire_export.sample.build_reranker import RerankedFigures, measure_reranked, told_apart

MAX_BUNDLE_BYTES, MAX_RERANKER_BYTES = 16_000_000, 3_000_000
# How far a machine's arithmetic may move a recall over 1,000 queries.
TOLERANCE = 0.005
# What `twinspire precision` measured when it chose the sample's engines.
RECORD = Path(__file__).parents[2] / "bench/results/precision-scenes.json"
RECORDED_DATA = "scenes:5000:101"


@cache
def _figures() -> dict[str, Any]:
    folder = Path(next(iter(twinspire_export.sample.__path__)))
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return figures


@cache
def _measured(precision: Precision) -> SampleFigures:
    return measure(Bundle.open(sample_bundle()), precision)


@cache
def _reranked() -> RerankedFigures:
    return measure_reranked(Bundle.open(sample_bundle()), precision=Precision.INT8)


@pytest.mark.parametrize("language", list(Language))
def test_fp32_recall_on_heldout_scenes(language: Language) -> None:
    """Over 1,000 held-out scenes R@1 is at least 0.95, both ways, in each language, also of captions in a template."""
    measured = _measured(Precision.FP32)
    for both in (measured.recall[language], measured.recall_in_template[language]):
        for recall in (both.text_to_image, both.image_to_text):
            assert recall.r1 >= 0.95
            assert recall.r10 >= 0.99


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
@pytest.mark.parametrize("language", list(Language))
def test_short_queries_and_short_embeddings_find(language: Language, precision: Precision) -> None:
    """A right image is first for at least 0.90 of 192 short queries, and 64 numbers of 128 keep R@1 above 0.95."""
    measured = _measured(precision)
    assert measured.short_query_p1[language] >= 0.90
    assert measured.r1_by_dim["64"][language] >= 0.95
    assert measured.r1_by_dim["32"][language] >= 0.90


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_the_figures_tell_the_truth(precision: Precision) -> None:
    """The recall in figures.json, of captions as they are and in a template, is measured here, within 0.005."""
    measured = _measured(precision)
    for name, by_language in (("recall", measured.recall), ("recall_in_template", measured.recall_in_template)):
        for language, both in by_language.items():
            for way, recall in both.to_json().items():
                for k, value in recall.items():
                    assert _figures()[precision][name][language][way][k] == pytest.approx(value, abs=TOLERANCE)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_the_figures_of_short_queries_and_lengths_tell_the_truth(precision: Precision) -> None:
    """P@1 of short queries, within two of the 192, and R@1 of shorter embeddings are those of figures.json."""
    measured, figures = _measured(precision), _figures()[precision]
    for language, share in measured.short_query_p1.items():
        assert figures["short_query_p1"][language] == pytest.approx(share, abs=2.5 / 192)
    for dim, by_language in measured.r1_by_dim.items():
        for language, share in by_language.items():
            assert figures["r1_by_dim"][dim][language] == pytest.approx(share, abs=TOLERANCE)


def test_figures_are_those_of_bench_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few scenes the figures of captions, short queries and lengths are what `bench recall` measures."""
    monkeypatch.setattr(build, "SCENES", 40)
    monkeypatch.setattr(build, "PAIRS", 2)
    measured = measure(Bundle.open(sample_bundle()), Precision.FP32)
    data = open_dataset(f"scenes:40:{build.SEED}")
    with Client.local(sample_bundle(), precision="fp32", provider="cpu") as client:
        report = RecallReport.of(
            data, encode_dataset({"fp32": client}, data), reference="fp32", dims=build.SHORTER_DIMS
        )
    found = report.figures
    for language in Language:
        for way, recall in measured.recall[language].to_json().items():
            assert {k: found["fp32"][language][Direction(way)][k].value for k in recall} == recall
        assert report.queries.figures["fp32"][language][P1].value == measured.short_query_p1[language]
        for dim, by_language in measured.r1_by_dim.items():
            r1 = found[f"fp32:{dim}"][language][Direction.TEXT_TO_IMAGE][R1].value
            assert r1 == by_language[language]


@pytest.mark.slow
def test_certificates_tell_the_truth() -> None:
    """The recall in the certificates is what 5,000 scenes give here, within 0.005."""
    bundle = Bundle.open(sample_bundle())
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(Client.local(bundle, precision=name, provider="cpu")) for name in ("fp32", "int8")
        }
        report = measure_recall(clients, open_dataset(RECORDED_DATA))
    for precision, tower in product((Precision.FP32, Precision.INT8), (Tower.IMAGE, Tower.TEXT)):
        certificate = bundle.manifest.engines[tower][precision].certificate
        assert certificate is not None
        assert certificate.recall is not None
        assert certificate.recall["data_sha256"] == report.data.sha256
        for language, both in report.figures[precision.value].items():
            for way, found in both.items():
                for k in (R1, R5, R10):
                    certified = certificate.recall[language][way.value][k]
                    assert certified == pytest.approx(found[k].value, abs=TOLERANCE)


def test_int8_keeps_recall() -> None:
    """Over 5,000 scenes int8 loses at most 0.5 points of R@1, pooled, and at most 1.0 in any language and direction."""
    recorded = Record.load(RECORD)
    assert recorded.subject["data_spec"] == RECORDED_DATA
    chosen = recorded.results["candidates"][recorded.results["auto"]]
    assert chosen["r1_drop"]["high"] <= 0.005
    assert chosen["worst_r1_drop"] <= 0.01


def test_the_sample_is_the_winner() -> None:
    """The engines are those that the record chose; `auto` and the certificates say what it does."""
    bundle = Bundle.open(sample_bundle())
    recorded = Record.load(RECORD)
    chosen = recorded.results["candidates"][recorded.results["auto"]]
    choice = bundle.manifest.auto
    assert choice is not None
    assert (choice.precision, choice.provider, choice.streams) == (
        chosen["precision"],
        chosen["provider"],
        chosen["streams"],
    )
    assert (choice.recall_drop, choice.recall_drop_high) == (chosen["r1_drop"]["value"], chosen["r1_drop"]["high"])
    assert choice.speed == pytest.approx(chosen["times_fp32"]["overall"]["value"], abs=1e-4)
    for tower in (Tower.IMAGE, Tower.TEXT):
        engine = bundle.manifest.engines[tower][choice.precision]
        assert engine.sha256 == chosen["engines_sha256"][tower]
        assert engine.certificate is not None
        assert engine.certificate.min_cosine == chosen["cosine_to_fp32"][tower]["min"]
        assert engine.certificate.recall is not None
        recall = recorded.results["recall"]["engines"][chosen["config"]]
        for language, both in recall.items():
            for way, found in both.items():
                assert engine.certificate.recall[language][way]["r1"] == found["r1"]["value"]


@pytest.mark.parametrize("contrast", list(Contrast))
@pytest.mark.parametrize("language", list(Language))
def test_kinds_and_binding_are_learnt(language: Language, contrast: Contrast) -> None:
    """Pairs that differ only in colours or sides, or only in kinds, are told apart far above the chance of 0.25."""
    told_apart = _measured(Precision.FP32).pairs[contrast][language]
    assert told_apart.by_caption >= 0.90
    assert told_apart.by_image >= 0.90


@pytest.mark.parametrize("contrast", list(Contrast))
def test_the_reranker_tells_pairs_apart(contrast: Contrast, tmp_path: Path) -> None:
    """The reranker alone tells at least 0.95 of the pairs apart; chance is 0.25."""
    with Client.local(sample_bundle(), precision=Precision.INT8, provider="cpu") as client:
        for share in told_apart(client, contrast, tmp_path).values():
            assert share.by_caption >= 0.95
            assert share.by_image >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("language", list(Language))
def test_reranking_loses_nothing(language: Language) -> None:
    """With the first 20 reranked, R@1 is not below the towers' own, and short queries have a right picture first.

    Other processors' arithmetic may move a query of the 1,000, or of the 192.
    """
    assert _reranked().r1[language] >= _measured(Precision.INT8).recall[language].text_to_image.r1 - 0.001
    assert _reranked().short_query_p1[language] >= 0.985


@pytest.mark.slow
def test_the_figures_of_reranking_tell_the_truth() -> None:
    """What figures.json says of the reranker is measured here, within 0.005."""
    measured, figures = _reranked(), _figures()["reranked"]
    assert measured.candidates == figures["candidates"]
    for language in Language:
        assert figures["r1"][language] == pytest.approx(measured.r1[language], abs=TOLERANCE)
        assert figures["short_query_p1"][language] == pytest.approx(measured.short_query_p1[language], abs=2.5 / 192)
        for contrast in Contrast:
            pairs, expected = measured.pairs[contrast][language], figures["pairs"][contrast][language]
            assert expected["by_caption"] == pytest.approx(pairs.by_caption, abs=TOLERANCE)
            assert expected["by_image"] == pytest.approx(pairs.by_image, abs=TOLERANCE)


def test_the_bundle_is_small() -> None:
    """The towers and what they need stay below 16 MB; the reranker adds at most 3 MB."""
    bundle = Bundle.open(sample_bundle())
    rerankers = {file for spec in bundle.manifest.rerankers.values() for file in spec.engines.values()}
    sizes = {file.name: file.stat().st_size for file in sample_bundle().iterdir()}
    added = sum(sizes.pop(name) for name in rerankers)
    assert 0 < added < MAX_RERANKER_BYTES
    assert sum(sizes.values()) < MAX_BUNDLE_BYTES
