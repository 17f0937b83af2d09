"""The measurements in a bundle's form: certificates with recall and speed, and the recommended runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from twinspire.bundle import Certificate, DecodeCertificate, DecodeMode, Precision, RecommendedRuntime, Tower
from twinspire_eval.machine import Hardware
from twinspire_eval.recall import R1, R5, R10, Estimate
from twinspire_eval.recall.benchmark import RecallReport
from twinspire_eval.records import series
from twinspire_eval.statistics import CONFIDENCE
from twinspire_export.precision.selection import CandidateResult

_FP32 = "fp32 engine"
_RECALL = (R1, R5, R10)


def certificate(
    before: Certificate | None,
    tower: Tower,
    best: CandidateResult,
    results: Sequence[CandidateResult],
    report: RecallReport,
    *,
    hardware: Hardware,
    threads: int,
    versions: Mapping[str, str],
) -> Certificate:
    """Return the certificate of a tower's engine: recall and cosine of its `best` runtime, the speed of all `results`.

    A certificate against another reference than the fp32 engine, such as fp32's own, keeps its cosines.
    """
    cosines = best.accuracy.cosines[tower]
    noun = "images" if tower is Tower.IMAGE else "captions"
    kept = None if before is None or before.reference == _FP32 else before
    return Certificate(
        reference=_FP32 if kept is None else kept.reference,
        data=f"{cosines.samples:,} {noun} of {report.data.name}" if kept is None else kept.data,
        samples=cosines.samples if kept is None else kept.samples,
        min_cosine=cosines.minimum if kept is None else kept.min_cosine,
        mean_cosine=cosines.mean if kept is None else kept.mean_cosine,
        recall=recall_of(report, best),
        versions={**({} if before is None else before.versions), **versions},
        speed={
            "cpu_model": hardware.cpu_model,
            "gpu": hardware.gpu,
            "threads": threads,
            "runtimes": [_runtime(result, tower) for result in results],
        },
        split_layers=None if before is None else before.split_layers,
        float_layers=None if before is None else before.float_layers,
        merged_tokens=None if before is None else before.merged_tokens,
    )


def recall_of(report: RecallReport, best: CandidateResult) -> dict[str, Any]:
    """Return R@1, R@5 and R@10 of a result by language and direction, with intervals, and the R@1 it loses."""
    config = best.candidate.config
    document: dict[str, Any] = {
        "data": report.data.name,
        "data_sha256": report.data.sha256,
        "provider": config.provider.value,
        "inference_precision": config.inference_precision.value,
        "confidence": CONFIDENCE,
        "r1_drop": None if str(config) == report.reference else best.accuracy.recall_drop.to_json(),
    }
    for language, both in report.figures[str(config)].items():
        document[language] = {direction.value: _figures(found) for direction, found in both.items()}
    return document


def recommended_runtime(
    best: CandidateResult,
    *,
    rejected: Sequence[Precision],
    report: RecallReport,
    max_recall_drop: float,
    hardware: Hardware,
    threads: int,
    scaled: DecodeCertificate | None,
) -> RecommendedRuntime:
    """Return what `auto` is in the new bundle; scaled decoding where it was measured and keeps recall."""
    candidate, drop = best.candidate, best.accuracy.recall_drop
    decode: DecodeMode | None = None
    if scaled is not None:
        decode = DecodeMode.SCALED if scaled.recall_drop <= max_recall_drop else DecodeMode.EXACT
    return RecommendedRuntime(
        precision=candidate.config.engines.precision,
        provider=candidate.config.provider.value,
        inference_precision=candidate.config.inference_precision.value,
        streams=candidate.streams,
        threads=threads,
        speed=round(best.speed.overall.value, 4),
        cpu_model=hardware.cpu_model,
        instruction_sets=hardware.instruction_sets,
        gpu=hardware.gpu,
        data=report.data.name,
        max_recall_drop=max_recall_drop,
        recall_drop=drop.value,
        recall_drop_high=drop.interval.high,
        rejected=tuple(rejected),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        decode=decode,
        scaled_decoding=scaled,
    )


def _runtime(result: CandidateResult, tower: Tower) -> dict[str, Any]:
    """Return the speed of a tower in one runtime: the median of the rounds."""
    candidate, speed = result.candidate, result.speed
    return {
        "provider": candidate.config.provider.value,
        "inference_precision": candidate.config.inference_precision.value,
        "streams": candidate.streams,
        f"{tower}s_per_s": round(series(speed.rounds(tower)[0], "p50")["p50"], 2),
        "times_fp32": speed.ratio(tower).to_json(),
    }


def _figures(found: Mapping[str, Estimate]) -> dict[str, Any]:
    values: dict[str, Any] = {name: found[name].value for name in _RECALL}
    intervals = {name: [found[name].interval.low, found[name].interval.high] for name in _RECALL}
    return {**values, "intervals": intervals}
