"""What `twinspire bench latency` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twinspire.bundle import Tower
from twinspire_bench.latency.record import ITEMS, Finding, Limit
from twinspire_eval.statistics import STATISTICS, interval, percentiles, statistic_of
from twinspire_eval.tables import MISSING, figure, figures_table, spread

if TYPE_CHECKING:
    from rich.table import Table

    from twinspire_eval.machine import MatrixPeaks


def peaks_line(peaks: MatrixPeaks) -> str:
    """Say what matrix products reach on this machine."""
    named = {"fp32": peaks.fp32_op_per_s, "int8": peaks.int8_op_per_s, "bf16": peaks.bf16_op_per_s}
    measured = ", ".join(f"{name} {value / 1e12:.3f}" for name, value in named.items() if value is not None)
    return f"matrix peaks of this machine, measured with {peaks.threads} threads: {measured} TFLOP/s"


def limits_table(limits: Sequence[Limit]) -> Table:
    """Show what no runtime can exceed here."""
    table = figures_table(
        ["tower", "engine", "length"],
        ["GFLOP an item", "of it int8", "items/s at the peaks"],
        title="Theoretical limit",
    )
    for limit in limits:
        length = MISSING if limit.length is None else str(limit.length)
        share = limit.work.int8_operations / limit.work.operations
        gigas = figure(limit.work.operations / 1e9)
        table.add_row(limit.tower, limit.precision, length, gigas, f"{share:.0%}", figure(limit.items_per_s))
    return table


def findings_table(tower: Tower, findings: Sequence[Finding]) -> Table:
    """Show the cases of one tower; columns that would be empty are left out."""
    mine = [finding for finding in findings if finding.result.case.tower is tower]
    has_limit = any(finding.limit is not None for finding in mine)
    has_ratio = any(finding.ratio_to_first is not None for finding in mine)
    is_served = any(finding.result.served is not None for finding in mine)
    has_failed = any(finding.result.failures for finding in mine)
    words = ["engine", *(["length"] if tower is Tower.TEXT else []), "batch", "load"]
    columns = [f"{ITEMS[tower]}/s", "95% interval", "p50 ms", "p90 ms", "p95 ms", "p99 ms"]
    columns += [*(["of the limit"] if has_limit else []), *(["against the first"] if has_ratio else [])]
    columns += [*(["server's batch"] if is_served else []), *(["failed"] if has_failed else [])]
    table = figures_table(words, columns, title=f"{tower.capitalize()} tower")
    for finding in mine:
        case, result = finding.result.case, finding.result
        per_s = statistic_of(result.items_per_s, STATISTICS["median"])
        row = [case.subject, *([str(case.length)] if tower is Tower.TEXT else []), str(case.batch), str(case.load)]
        row += [figure(per_s), spread(interval(result.items_per_s))]
        if len(result.latencies_ms):
            found = percentiles(result.latencies_ms)
            row += [figure(value) for value in (found.p50, found.p90, found.p95, found.p99)]
        else:
            row += [MISSING] * 4
        if has_limit:
            row.append(MISSING if finding.limit is None else f"{per_s / finding.limit.items_per_s:.0%}")
        if has_ratio:
            ratio = finding.ratio_to_first
            row.append(MISSING if ratio is None else f"{ratio.value:.2f} ({spread(ratio.interval)})")
        if is_served:
            row.append(MISSING if result.served is None else figure(result.served.mean_batch_size))
        if has_failed:
            row.append(", ".join(f"{count} {name}" for name, count in result.failures.items()) or "0")
        table.add_row(*row)
    return table
