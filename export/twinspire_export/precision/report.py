"""What was measured and chosen, as a table for people and as a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twinspire.bundle import Tower
from twinspire_eval.recall import Estimate
from twinspire_eval.records import Record, series
from twinspire_eval.statistics import Ratio
from twinspire_eval.tables import figure, figures_table
from twinspire_export.precision.measurement import IMAGES, TEXTS
from twinspire_export.precision.run import PrecisionResult
from twinspire_export.precision.selection import Measured

if TYPE_CHECKING:
    from rich.table import Table

KIND = "precision"


def table(result: PrecisionResult) -> Table:
    """Draw a row for each candidate, the fastest first."""
    made = figures_table(
        ["candidate"],
        ["images/s", "texts/s", "times fp32", "MB", "least, mean cosine", "R@1 lost", "95%", "at most", ""],
    )
    for each in sorted(result.measured, key=lambda each: -each.speed.overall.value):
        drop, cosines = each.recalled.drop, each.recalled.cosines
        # A direction may lose while another gains.
        made.add_row(
            str(each.candidate),
            figure(series(each.speed.images_per_s, "p50")["p50"]),
            figure(series(each.speed.texts_per_s, "p50")["p50"]),
            f"{each.speed.overall.value:.2f}",
            f"{each.candidate.setting.variant.size_bytes / 1e6:.1f}",
            ", ".join(
                (
                    f"{min(cosines[tower].least for tower in Tower):.4f}",
                    f"{min(cosines[tower].mean for tower in Tower):.4f}",
                )
            ),
            f"{100 * drop.value:+.2f}",
            f"{100 * drop.interval.low:+.2f} to {100 * drop.interval.high:+.2f}",
            f"{100 * each.recalled.worst_drop:+.2f}",
            _remark(each, result),
        )
    return made


def _remark(measured: Measured, result: PrecisionResult) -> str:
    if measured is result.best:
        return "auto"
    said = ["baseline"] if measured.candidate.setting.variant.is_baseline else []
    return ", ".join(said if measured.meets_recall(result.options.max_recall_drop) else [*said, "loses too much"])


def sentences(result: PrecisionResult) -> list[str]:
    """Say what was chosen, and how sure that is."""
    drop, most = result.best.recalled.drop, result.options.max_recall_drop
    said = [f"left out: {name}: {reason}" for name, reason in result.skipped.items()]
    allowed = f"{100 * most:g} points of R@1"
    if result.best.candidate.setting == result.reference.setting or result.choice.precision == "fp32":
        variants = ((each, each.candidate.setting.variant) for each in result.measured)
        others = [each for each, variant in variants if variant.precision != "fp32" and not variant.is_baseline]
        why = "there is nothing else"
        if any(each.meets_recall(most) for each in others):
            why = "what else keeps recall is not faster"
        elif others:
            why = f"every other precision loses more than {allowed}"
        return [*said, f"auto stays fp32: {why}. It runs best as {result.best.candidate}"]
    surely = "below" if drop.interval.high <= most else "above"
    said.append(
        f"auto is {result.best.candidate}: {result.choice.speed:.2f} times as fast as fp32, {100 * drop.value:+.2f} "
        f"points of R@1 lost; the interval's upper end, {100 * drop.interval.high:+.2f}, is {surely} the "
        f"{100 * most:g} allowed"
    )
    if drop.interval.high > most:
        said.append("Measure on more pictures to be sure of it")
    return said


def record(result: PrecisionResult, *, data_spec: str) -> Record:
    """Write all that was measured, raw rounds included; not each query's rank."""
    options, report, written = result.options, result.report, result.bundle
    return Record(
        kind=KIND,
        parameters={
            **report.parameters(),
            "rounds": options.rounds,
            "visit_s": options.visit_s,
            "threads": result.threads,
            "pictures_a_call": IMAGES,
            "texts_a_call": TEXTS,
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
            "auto_upper_end_is_allowed": result.best.recalled.drop.interval.high <= options.max_recall_drop,
            "candidates": {str(each.candidate): _candidate(each, result) for each in result.measured},
            "recall": report.results(with_ranks=False),
            "left_out": dict(result.skipped),
        },
    )


def _candidate(measured: Measured, result: PrecisionResult) -> Mapping[str, Any]:
    candidate, speed, found = measured.candidate, measured.speed, measured.recalled
    variant = candidate.setting.variant
    return {
        "setting": str(candidate.setting),
        "precision": variant.precision,
        "recipe": variant.recipe,
        "is_baseline": variant.is_baseline,
        "engines_sha256": dict(zip(Tower, variant.engines_sha256, strict=True)),
        "provider": candidate.setting.provider,
        "inference_precision": candidate.setting.inference_precision,
        "streams": candidate.streams,
        "size_bytes": variant.size_bytes,
        "images_per_s": series(speed.images_per_s, "p50"),
        "texts_per_s": series(speed.texts_per_s, "p50"),
        "fp32_images_per_s": series(speed.fp32_images_per_s, "p50"),
        "fp32_texts_per_s": series(speed.fp32_texts_per_s, "p50"),
        "times_fp32": {
            "images": _interval(speed.images),
            "texts": _interval(speed.texts),
            "overall": _interval(speed.overall),
        },
        "cosine_to_fp32": {
            tower: {"samples": each.samples, "min": each.least, "mean": each.mean}
            for tower, each in found.cosines.items()
        },
        "r1_drop": _interval(found.drop),
        "worst_r1_drop": found.worst_drop,
        "keeps_recall": measured.meets_recall(result.options.max_recall_drop),
    }


def _interval(found: Ratio | Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.interval.low, "high": found.interval.high}
