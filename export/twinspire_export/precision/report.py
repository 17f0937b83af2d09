"""The results and the choice as a table, in sentences, and as a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twinspire._codec import encode
from twinspire.bundle import DecodeMode
from twinspire_eval.records import Record, series
from twinspire_eval.tables import figure, figures_table
from twinspire_export.precision.measurement import IMAGES, TEXTS
from twinspire_export.precision.run import PrecisionResult
from twinspire_export.precision.selection import CandidateResult

if TYPE_CHECKING:
    from rich.table import Table


def table(result: PrecisionResult) -> Table:
    """Return a table with a row for each candidate, the fastest first."""
    towers = result.bundle.towers
    rows = figures_table(
        ["candidate"],
        [*(f"{tower}s/s" for tower in towers), "vs. fp32", "MB", "cosine min, mean", "R@1 lost", "95%", "worst", ""],
    )
    for measured in sorted(result.results, key=lambda r: -r.speed.overall.value):
        drop, cosines = measured.accuracy.recall_drop, measured.accuracy.cosines
        smallest = min(found.minimum for found in cosines.values()), min(found.mean for found in cosines.values())
        rows.add_row(
            str(measured.candidate),
            *(figure(series(measured.speed.rounds(tower)[0], "p50")["p50"]) for tower in towers),
            f"{measured.speed.overall.value:.2f}",
            f"{measured.engines.size_bytes / 1e6:.1f}",
            ", ".join(f"{cosine:.4f}" for cosine in smallest),
            f"{100 * drop.value:+.2f}",
            f"{100 * drop.interval.low:+.2f} to {100 * drop.interval.high:+.2f}",
            f"{100 * measured.accuracy.worst_recall_drop:+.2f}",
            _remark(measured, result),
        )
    return rows


def _remark(measured: CandidateResult, result: PrecisionResult) -> str:
    if measured is result.best:
        return "auto"
    remarks = ["baseline"] if measured.engines.is_baseline else []
    if not measured.meets_recall(result.options.max_recall_drop):
        remarks.append("loses too much")
    return ", ".join(remarks)


def sentences(result: PrecisionResult) -> list[str]:
    """Return what was skipped, what was chosen, and how certain the choice is."""
    best, drop, most = result.best, result.best.accuracy.recall_drop, result.options.max_recall_drop
    lines = [f"skipped {name}: {reason}" for name, reason in result.skipped.items()]
    lines += _of_decoding(result)
    if best.candidate.config == result.reference.config or result.choice.precision == "fp32":
        others = [r for r in result.results if r.engines.precision != "fp32" and not r.engines.is_baseline]
        reason = "there are no other engines"
        if any(other.meets_recall(most) for other in others):
            reason = "no other precision that keeps recall is faster"
        elif others:
            reason = f"every other precision loses more than {100 * most:g} points of R@1"
        return [*lines, f"auto stays fp32: {reason}. It is fastest as {best.candidate}"]
    side = "below" if drop.interval.high <= most else "above"
    lines.append(
        f"auto is {best.candidate}: {result.choice.speed:.2f} times as fast as fp32, {100 * drop.value:+.2f} "
        f"points of R@1 lost; the upper end of the 95% interval, {100 * drop.interval.high:+.2f}, is {side} the "
        f"{100 * most:g} allowed"
    )
    if drop.interval.high > most:
        lines.append("Measure on more images to be certain")
    return lines


def _of_decoding(result: PrecisionResult) -> list[str]:
    """Return a sentence about scaled decoding where it was measured."""
    scaled = result.choice.scaled_decoding
    if scaled is None:
        return []
    is_chosen = result.choice.decode is DecodeMode.SCALED
    verdict = "decode=auto takes it" if is_chosen else "it loses too much: decode=auto stays exact"
    return [
        f"scaled decoding changes {scaled.reduced:,} of {scaled.images:,} images, {scaled.speed:.1f} times as many "
        f"files/s are decoded: cosine {scaled.min_cosine:.4f} at least, {100 * scaled.recall_drop:+.2f} points of R@1 "
        f"lost in all, {100 * scaled.decode_drop:+.2f} by decoding; {verdict}"
    ]


def record(result: PrecisionResult, *, data_spec: str) -> Record:
    """Return the record: all measurements with their raw rounds, without the rank of each query."""
    options, report, written = result.options, result.report, result.bundle
    return Record(
        kind="precision",
        parameters={
            **report.parameters(),
            "rounds": options.rounds,
            "visit_s": options.visit_s,
            "threads": result.threads,
            "images_per_call": IMAGES,
            "texts_per_call": TEXTS,
        },
        subject={
            "bundle": written.name,
            "space": written.space,
            "data": report.data.name,
            "data_spec": data_spec,
            "max_recall_drop": options.max_recall_drop,
            "recipes": result.recipes,
        },
        results={
            "reference": str(result.reference),
            "auto": str(result.best.candidate),
            "auto_upper_end_within_limit": result.best.accuracy.recall_drop.interval.high <= options.max_recall_drop,
            "candidates": {str(measured.candidate): _candidate(measured, result) for measured in result.results},
            "recall": report.results(with_ranks=False),
            "decode": result.choice.decode,
            "scaled_decoding": encode(result.choice.scaled_decoding),
            "skipped": dict(result.skipped),
        },
    )


def _candidate(measured: CandidateResult, result: PrecisionResult) -> Mapping[str, Any]:
    candidate, speed, accuracy = measured.candidate, measured.speed, measured.accuracy
    engines = measured.engines
    return {
        "config": str(candidate.config),
        "precision": engines.precision,
        "recipe": engines.recipe,
        "is_baseline": engines.is_baseline,
        "engines_sha256": dict(zip(engines.bundle.towers, engines.engines_sha256, strict=True)),
        "provider": candidate.config.provider,
        "inference_precision": candidate.config.inference_precision,
        "streams": candidate.streams,
        "size_bytes": engines.size_bytes,
        **{f"{tower}s_per_s": series(speed.rounds(tower)[0], "p50") for tower in speed.towers},
        **{f"fp32_{tower}s_per_s": series(speed.rounds(tower)[1], "p50") for tower in speed.towers},
        "times_fp32": {
            **{f"{tower}s": speed.ratio(tower).to_json() for tower in speed.towers},
            "overall": speed.overall.to_json(),
        },
        "cosine_to_fp32": {
            tower: {"samples": cosines.samples, "min": cosines.minimum, "mean": cosines.mean}
            for tower, cosines in accuracy.cosines.items()
        },
        "r1_drop": accuracy.recall_drop.to_json(),
        "worst_r1_drop": accuracy.worst_recall_drop,
        "meets_recall": measured.meets_recall(result.options.max_recall_drop),
    }
