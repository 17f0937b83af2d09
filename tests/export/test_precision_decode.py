"""`twinspire precision --decode scaled`: what is measured of scaled decoding, and when it is recommended."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinspire import Client
from twinspire.bundle import Bundle, DecodeMode
from twinspire.errors import InputError
from twinspire.towers import Provider
from twinspire_eval.datasets import Caption, CaptionedImages
from twinspire_eval.recall.decoding import compare_decoding
from twinspire_export.precision import PrecisionOptions, PrecisionResult, choose_precision, run
from twinspire_export.precision.report import record, sentences

QUICK = PrecisionOptions(threads=1, rounds=1, visit_s=0.0, max_recall_drop=0.9, baseline=False, decode="scaled")
SIDE = 200


def _data(count: int = 12, small: int = 3, side: int = SIDE) -> CaptionedImages:
    """JPEG files of noise, the first ones too small to be reduced."""
    rng = np.random.default_rng(0)
    files = []
    for place in range(count):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (20 if place < small else side, 24 if place < small else side, 3), np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
        files.append(file.getvalue())
    texts = [f"a {'red cat ' * (place % 4)}{'blue dog ' * (place // 4)}" for place in range(count)]
    captions = tuple((Caption(text, "en"),) for text in texts)
    return CaptionedImages("noise", tuple(f"n{place}" for place in range(count)), files, captions)


@pytest.fixture(autouse=True)
def only_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on onnxruntime's own provider, whatever is installed."""
    monkeypatch.setattr(run, "available", lambda: (Provider.CPU,))


@pytest.fixture
def chosen(tiny: Any, tmp_path: Path) -> PrecisionResult:
    """Choose for the tiny bundle, with any loss of recall allowed."""
    return choose_precision(tiny.bundle, tmp_path / "new", _data(), options=QUICK)


def test_the_comparison_is_that_of_two_clients(tiny: Any) -> None:
    """Embeddings, pixels and cosines are those of a client of each mode."""
    data = _data()
    with Client.local(tiny.bundle, precision="fp32", provider="cpu", threads=1) as exact:
        compared = compare_decoding(exact, data, threads=1)
        pixels, vectors = exact.preprocess(data.images), exact.encode_images(data.images)
    with Client.local(tiny.bundle, precision="fp32", provider="cpu", threads=1, decode="scaled") as scaled:
        other, changed = scaled.preprocess(data.images), scaled.encode_images(data.images)
    gaps = np.abs(pixels.astype(int) - other)
    assert (compared.images, compared.reduced) == (12, 9)
    assert compared.max_difference == gaps.max()
    assert compared.mean_difference == pytest.approx(gaps[3:].mean())
    found = {mode: compared.embeddings[mode].images for mode in DecodeMode}
    np.testing.assert_allclose(found[DecodeMode.EXACT], vectors, atol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[DecodeMode.SCALED], changed, atol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(compared.cosines, (vectors * changed).sum(1)[3:], atol=1e-6)


def test_it_is_recommended_within_the_bound(chosen: PrecisionResult) -> None:
    """A loss within the bound makes `auto` scaled; the bundle says what was measured, and a client follows."""
    choice = Bundle.open(chosen.bundle.path).manifest.auto
    assert choice is not None
    assert choice.decode is DecodeMode.SCALED
    assert choice.scaled_decoding is not None
    assert (choice.scaled_decoding.images, choice.scaled_decoding.reduced) == (12, 9)
    assert choice.scaled_decoding.recall_drop <= 0.9
    with Client.local(chosen.bundle, decode="auto") as client:
        assert client.decode is DecodeMode.SCALED
    with Client.local(chosen.bundle) as client:
        assert client.decode is DecodeMode.EXACT


def test_it_is_not_recommended_beyond_the_bound(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss above the bound leaves `auto` exact, with the measurement beside it."""
    certify = run.certify_scaled_decoding

    def lossy(*arguments: Any, **options: Any) -> Any:
        found = certify(*arguments, **options)
        assert found is not None
        return replace(found, recall_drop=0.95, recall_drop_high=0.97)

    monkeypatch.setattr(run, "certify_scaled_decoding", lossy)
    result = choose_precision(tiny.bundle, tmp_path / "new", _data(), options=QUICK)
    assert result.choice.decode is DecodeMode.EXACT
    assert result.choice.scaled_decoding is not None
    assert any("exact" in line for line in sentences(result))


def test_images_that_are_too_small(tiny: Any, tmp_path: Path) -> None:
    """Where no image would be reduced nothing is recommended, and the reason is told."""
    result = choose_precision(tiny.bundle, tmp_path / "new", _data(small=12), options=QUICK)
    assert (result.choice.decode, result.choice.scaled_decoding) == (None, None)
    assert "JPEG" in result.skipped["scaled decoding"]


def test_exact_measures_nothing(tiny: Any, tmp_path: Path) -> None:
    """Without `decode` the bundle has no word about decoding."""
    result = choose_precision(tiny.bundle, tmp_path / "new", _data(), options=replace(QUICK, decode="exact"))
    assert "decod" not in (result.bundle.path / "bundle.json").read_text()


def test_a_second_run_measures_nothing_again(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement is cached in the work folder."""
    first = choose_precision(tiny.bundle, tmp_path / "a", _data(), options=QUICK, work=tmp_path / "work")
    monkeypatch.setattr(run, "certify_scaled_decoding", None)
    second = choose_precision(tiny.bundle, tmp_path / "b", _data(), options=QUICK, work=tmp_path / "work")
    assert second.choice.scaled_decoding == first.choice.scaled_decoding


def test_the_record_has_it(chosen: PrecisionResult) -> None:
    """The record holds the certificate, and the report a sentence of it."""
    results = record(chosen, data_spec="noise").results
    assert results["decode"] == "scaled"
    assert results["scaled_decoding"]["reduced"] == 9
    assert any("9 of 12 images" in line for line in sentences(chosen))


def test_wrong_options(tiny: Any, tmp_path: Path) -> None:
    """An unknown mode, and data without images, are an InputError of that option."""
    with pytest.raises(InputError, match="scaled") as caught:
        replace(QUICK, decode="fast")
    assert caught.value.option == "decode"
