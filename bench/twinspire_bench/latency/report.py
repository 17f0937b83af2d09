"""Records and tables of `twinspire bench latency`: theoretical limits, and every case with its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.towers.batching import padded_length
from twinspire_bench.latency.measure import CaseResult, LatencySettings
from twinspire_eval.flops import FlopCount, count_flops
from twinspire_eval.machine import MatrixPeaks
from twinspire_eval.records import series
from twinspire_eval.statistics import STATISTICS, Ratio, interval, paired_ratio, percentiles, statistic_of
from twinspire_eval.tables import MISSING, figure, figures_table, spread

if TYPE_CHECKING:
    from rich.table import Table

_LATENCY_DIGITS = 4  # 0.1 µs
ITEMS = {Tower.IMAGE: "images", Tower.TEXT: "texts"}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Theoretical limit of an engine: the operations of one image or text at this machine's matrix peaks.

    `length` is that of the text without padding; `flops` are those of the padded text.
    """

    tower: Tower
    precision: Precision
    length: int | None
    flops: FlopCount
    items_per_s: float


def limits(
    bundle: Bundle, precisions: Sequence[Precision], settings: LatencySettings, peaks: MatrixPeaks
) -> list[Limit]:
    """Return the limit of each engine and length. Raises InputError where an engine cannot be counted."""
    found = []
    for tower, precision in product(settings.towers, precisions):
        for length in settings.lengths if tower is Tower.TEXT else (None,):
            shape = (1, *bundle.input_spec(tower).shape) if length is None else (1, padded_length(length, bundle.text))
            flops = count_flops(bundle.engine(tower, precision), shape)
            rate = 1 / flops.minimum_s(peaks)
            found.append(Limit(tower=tower, precision=precision, length=length, flops=flops, items_per_s=rate))
    return found


@dataclass(frozen=True, kw_only=True)
class ComparedCase:
    """Result of a case, with its limit and its ratio to the first target at the same setting.

    `limit` is None where the engine does not run on this machine's processor, `ratio_to_first` for the first target
    itself and where all calls of one of its rounds failed.
    """

    result: CaseResult
    limit: Limit | None
    ratio_to_first: Ratio | None


def compare_cases(
    results: Sequence[CaseResult], limits: Sequence[Limit], precisions: Mapping[str, Precision | None]
) -> list[ComparedCase]:
    """Compare each case with its limit and the first target. `precisions` are those of the targets with a limit."""
    by_engine = {(limit.tower, limit.precision, limit.length): limit for limit in limits}
    first: dict[tuple[Tower, str], CaseResult] = {}
    found = []
    for result in results:
        case = result.case
        against = first.setdefault((case.tower, case.setting), result)
        precision = precisions[case.target]
        ratio = None
        if against is not result and (against.items_per_s > 0).all():
            ratio = paired_ratio(result.items_per_s, against.items_per_s)
        limit = None if precision is None else by_engine[case.tower, precision, case.length]
        found.append(ComparedCase(result=result, limit=limit, ratio_to_first=ratio))
    return found


def latency_results(
    compared: Sequence[ComparedCase], limits: Sequence[Limit], peaks: MatrixPeaks, skipped: Mapping[str, str]
) -> dict[str, Any]:
    """Return the results of a record: cases by tower, target and setting, limits, and skipped targets with reasons."""
    document: dict[str, Any] = {"matrix_peaks": peaks, "limits": {}, "skipped": dict(skipped)}
    for limit in limits:
        name = f"{limit.tower} {limit.precision}" + ("" if limit.length is None else f", length {limit.length}")
        document["limits"][name] = {
            "operations": limit.flops.operations,
            "int8_operations": limit.flops.int8_operations,
            f"{ITEMS[limit.tower]}_per_s": limit.items_per_s,
        }
    for case_result in compared:
        case = case_result.result.case
        settings = document.setdefault(case.tower.value, {}).setdefault(case.target, {})
        settings[case.setting] = _case(case_result)
    return document


def _case(case_result: ComparedCase) -> dict[str, Any]:
    result, ratio = case_result.result, case_result.ratio_to_first
    per_s = series(result.items_per_s, "median")
    spread = interval(result.items_per_s)
    share = None if case_result.limit is None else per_s["median"] / case_result.limit.items_per_s
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
    """Return the parameters of a record: two records are compared only where they are equal."""
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
    """Return the subject of a record: the bundle, the sha256 of its engines, and the server where there is one."""
    engines = {
        f"{tower} {precision}": record.sha256
        for tower, records in bundle.manifest.engines.items()
        for precision, record in records.items()
    }
    return {"bundle": bundle.name, "space": bundle.space, "engines": engines, "server": server}


def peaks_line(peaks: MatrixPeaks) -> str:
    """Format the peaks of matrix multiplications on this machine."""
    named = {"fp32": peaks.fp32_op_per_s, "int8": peaks.int8_op_per_s, "bf16": peaks.bf16_op_per_s}
    measured = ", ".join(f"{name} {value / 1e12:.3f}" for name, value in named.items() if value is not None)
    return f"measured matrix peaks of this machine with {peaks.threads} threads: {measured} TFLOP/s"


def limits_table(limits: Sequence[Limit]) -> Table:
    """Return a table of the theoretical limits."""
    table = figures_table(
        ["tower", "engine", "length"],
        ["GFLOP/item", "int8 share", "max. items/s"],
        title="Theoretical limit",
    )
    for limit in limits:
        length = MISSING if limit.length is None else str(limit.length)
        share = limit.flops.int8_operations / limit.flops.operations
        gigas = figure(limit.flops.operations / 1e9)
        table.add_row(limit.tower, limit.precision, length, gigas, f"{share:.0%}", figure(limit.items_per_s))
    return table


def cases_table(tower: Tower, compared: Sequence[ComparedCase]) -> Table:
    """Return a table of the cases of one tower, without the columns that would be empty."""
    mine = [case_result for case_result in compared if case_result.result.case.tower is tower]
    has_limit = any(case_result.limit is not None for case_result in mine)
    has_ratio = any(case_result.ratio_to_first is not None for case_result in mine)
    is_served = any(case_result.result.served is not None for case_result in mine)
    has_failed = any(case_result.result.failures for case_result in mine)
    text_columns = ["target", *(["length"] if tower is Tower.TEXT else []), "batch", "load"]
    columns = [f"{ITEMS[tower]}/s", "95% interval", "p50 ms", "p90 ms", "p95 ms", "p99 ms"]
    columns += [*(["share of limit"] if has_limit else []), *(["vs. first"] if has_ratio else [])]
    columns += [*(["mean batch"] if is_served else []), *(["failed"] if has_failed else [])]
    table = figures_table(text_columns, columns, title=f"{tower.capitalize()} tower")
    for case_result in mine:
        case, result = case_result.result.case, case_result.result
        per_s = statistic_of(result.items_per_s, STATISTICS["median"])
        row = [case.target, *([str(case.length)] if tower is Tower.TEXT else []), str(case.batch), str(case.load)]
        row += [figure(per_s), spread(interval(result.items_per_s))]
        if len(result.latencies_ms):
            found = percentiles(result.latencies_ms)
            row += [figure(value) for value in (found.p50, found.p90, found.p95, found.p99)]
        else:
            row += [MISSING] * 4
        if has_limit:
            row.append(MISSING if case_result.limit is None else f"{per_s / case_result.limit.items_per_s:.0%}")
        if has_ratio:
            ratio = case_result.ratio_to_first
            row.append(MISSING if ratio is None else f"{ratio.value:.2f} ({spread(ratio.interval)})")
        if is_served:
            row.append(MISSING if result.served is None else figure(result.served.mean_batch_size))
        if has_failed:
            row.append(", ".join(f"{count} {name}" for name, count in result.failures.items()) or "0")
        table.add_row(*row)
    return table
