"""The sample bundle as it is committed: its quality from JPEG file to hit, its size, its certificates."""

from __future__ import annotations

import json
from functools import cache

import pytest

import twinspire_export.sample
from twinspire import Bundle, sample_bundle
from twinspire.bundle import Precision, Tower
from twinspire_bench.scenes import Contrast, Language
from twinspire_export.sample.figures import Figures, measure

MAX_BUNDLE_BYTES = 16_000_000
# How far a machine's arithmetic may move a recall over 1,000 queries.
TOLERANCE = 0.005


@cache
def _measured(precision: Precision) -> Figures:
    return measure(Bundle.open(sample_bundle()), precision)


@pytest.mark.parametrize("language", list(Language))
def test_fp32_recall_on_heldout_scenes(language: Language) -> None:
    """Over 1,000 held-out scenes R@1 is at least 0.50 and R@10 at least 0.90, both ways, in each language."""
    both = _measured(Precision.FP32).recall[language]
    for recall in (both.text_to_image, both.image_to_text):
        assert recall.r1 >= 0.50
        assert recall.r10 >= 0.90


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_certificates_tell_the_truth(precision: Precision) -> None:
    """The recall in the certificates is the recall that is measured here, within 0.005."""
    bundle = Bundle.open(sample_bundle())
    measured = _measured(precision).recall
    for tower in Tower:
        certificate = bundle.manifest.engines[tower][precision].certificate
        assert certificate is not None
        assert certificate.recall is not None
        for language, both in measured.items():
            for way, recall in both.to_json().items():
                for k, value in recall.items():
                    assert certificate.recall[language.value][way][k] == pytest.approx(value, abs=TOLERANCE)


@pytest.mark.parametrize("contrast", list(Contrast))
@pytest.mark.parametrize("language", list(Language))
def test_kinds_and_binding_are_learnt(language: Language, contrast: Contrast) -> None:
    """Pairs that differ only in colours or sides, or only in kinds, are told apart far above the chance of 0.25."""
    told_apart = _measured(Precision.FP32).pairs[contrast][language]
    assert told_apart.by_caption > 0.75
    assert told_apart.by_picture > 0.75


def test_the_bundle_is_small() -> None:
    """All files of the bundle together stay below 16 MB."""
    assert sum(file.stat().st_size for file in sample_bundle().iterdir()) < MAX_BUNDLE_BYTES


def test_figures_are_kept_beside_the_training_script() -> None:
    """figures.json agrees with the certificates."""
    bundle = Bundle.open(sample_bundle())
    folder = next(iter(twinspire_export.sample.__path__))
    with open(f"{folder}/figures.json", encoding="utf-8") as file:  # noqa: PTH123
        figures = json.load(file)
    for precision in (Precision.FP32, Precision.INT8):
        certificate = bundle.manifest.engines[Tower.IMAGE][precision].certificate
        assert certificate is not None
        assert certificate.recall is not None
        for language in Language:
            assert figures[precision]["recall"][language] == certificate.recall[language]
