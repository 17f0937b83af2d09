"""What `twinspire bench latency` writes: the limits, and every case with its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.towers.batching import padded_length
from twinspire_bench.latency.measure import CaseResult, LatencySettings
from twinspire_eval.flops import FlopCount, count_flops
from twinspire_eval.machine import MatrixPeaks
from twinspire_eval.records import series
from twinspire_eval.statistics import Ratio, interval, paired_ratio

# 0.1 µs.
_LATENCY_DIGITS = 4
ITEMS = {Tower.IMAGE: "images", Tower.TEXT: "texts"}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The theoretical limit of an engine: `work` of one image or text at this machine's matrix peaks.

    `length` is the text's as it was asked for; the work is of what it is padded to.
    """

    tower: Tower
    precision: Precision
    length: int | None
    work: FlopCount
    items_per_s: float


def limits(
    bundle: Bundle, precisions: Sequence[Precision], settings: LatencySettings, peaks: MatrixPeaks
) -> list[Limit]:
    """Count the work of each engine and length. Raises InputError where an engine cannot be counted."""
    found = []
    for tower in settings.towers:
        for precision in precisions:
            for length in settings.lengths if tower is Tower.TEXT else (None,):
                size = bundle.image.size
                shape = (1, size, size, 3) if length is None else (1, padded_length(length, bundle.text))
                work = count_flops(bundle.engine(tower, precision), shape)
                found.append(
                    Limit(
                        tower=tower,
                        precision=precision,
                        length=length,
                        work=work,
                        items_per_s=1 / work.minimum_s(peaks),
                    )
                )
    return found


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A case beside its limit and beside the first subject at the same setting.

    `limit` is None where something else than this machine's processor runs the engine, `ratio_to_first` for the first
    subject itself and where a round of that one had no answer.
    """

    result: CaseResult
    limit: Limit | None
    ratio_to_first: Ratio | None


def findings(
    results: Sequence[CaseResult], limits: Sequence[Limit], precisions: Mapping[str, Precision | None]
) -> list[Finding]:
    """Set each case beside its limit. `precisions` are the subjects', None where no limit is theirs."""
    by_engine = {(limit.tower, limit.precision, limit.length): limit for limit in limits}
    first: dict[tuple[Tower, str], CaseResult] = {}
    found = []
    for result in results:
        case = result.case
        against = first.setdefault((case.tower, case.setting), result)
        precision = precisions[case.subject]
        ratio = None
        if against is not result and (against.items_per_s > 0).all():
            ratio = paired_ratio(result.items_per_s, against.items_per_s)
        limit = None if precision is None else by_engine[case.tower, precision, case.length]
        found.append(Finding(result=result, limit=limit, ratio_to_first=ratio))
    return found


def latency_results(
    found: Sequence[Finding], limits: Sequence[Limit], peaks: MatrixPeaks, skipped: Mapping[str, str]
) -> dict[str, Any]:
    """Return a record's results: tower, subject, setting; the limits; what was skipped and why."""
    document: dict[str, Any] = {"matrix_peaks": peaks, "limits": {}, "skipped": dict(skipped)}
    for limit in limits:
        name = f"{limit.tower} {limit.precision}" + ("" if limit.length is None else f", length {limit.length}")
        document["limits"][name] = {
            "operations": limit.work.operations,
            "int8_operations": limit.work.int8_operations,
            f"{ITEMS[limit.tower]}_per_s": limit.items_per_s,
        }
    for finding in found:
        case = finding.result.case
        settings = document.setdefault(case.tower.value, {}).setdefault(case.subject, {})
        settings[case.setting] = _case(finding)
    return document


def _case(finding: Finding) -> dict[str, Any]:
    result, ratio = finding.result, finding.ratio_to_first
    per_s = series(result.items_per_s, "median")
    spread = interval(result.items_per_s)
    share = None if finding.limit is None else per_s["median"] / finding.limit.items_per_s
    return {
        f"{ITEMS[result.case.tower]}_per_s": {**per_s, "interval": [spread.low, spread.high]},
        "latency_ms": series(result.latencies_ms.round(_LATENCY_DIGITS), "p50", "p90", "p95", "p99"),
        "share_of_limit": share,
        "ratio_to_first": None
        if ratio is None
        else {"value": ratio.value, "interval": [ratio.interval.low, ratio.interval.high]},
        "failures": result.failures,
        "served": None
        if result.served is None
        else {
            "requests": result.served.requests,
            "inferences": result.served.inferences,
            "executions": result.served.executions,
            "mean_batch": result.served.mean_batch_size,
        },
    }


def latency_parameters(
    settings: LatencySettings,
    *,
    threads: int,
    precisions: Sequence[str] | None,
    providers: Sequence[str] | None,
    streams: Sequence[int] | None,
    is_served: bool,
) -> dict[str, Any]:
    """Return a record's parameters: what must be equal for two of them to be compared."""
    return {
        "where": "served" if is_served else "in process",
        "precisions": precisions or "all",
        "providers": providers or "all",
        "threads": threads,
        "streams": streams or [1],
        "towers": settings.towers,
        "batches": settings.batches,
        "lengths": settings.lengths,
        "loads": [str(load) for load in settings.loads],
        "rounds": settings.rounds,
        "visit_s": settings.visit_s,
        "seed": settings.seed,
    }


def latency_subject(bundle: Bundle, *, server: str | None) -> dict[str, Any]:
    """Return a record's subject: the bundle, its engines' sha256, and what runs them where it is a server."""
    engines = {
        f"{tower} {precision}": record.sha256
        for tower, records in bundle.manifest.engines.items()
        for precision, record in records.items()
    }
    return {"bundle": bundle.name, "space": bundle.space, "engines": engines, "server": server}
