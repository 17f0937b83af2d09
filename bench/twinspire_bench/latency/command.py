"""`twinspire bench latency`, from its arguments to tables and record."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from twinspire.bundle import Bundle, Precision
from twinspire.errors import InputError
from twinspire_bench.latency.measure import LatencySettings, Load, Subject, cases, measure
from twinspire_bench.latency.record import (
    findings,
    latency_parameters,
    latency_results,
    latency_subject,
    limits,
)
from twinspire_bench.latency.show import findings_table, limits_table, peaks_line
from twinspire_bench.latency.targets import Skipped, local_subjects, served_subject
from twinspire_eval.machine import matrix_peaks, usable_cores
from twinspire_eval.records import Record
from twinspire_eval.tables import figures_console

_LENGTHS = (8, 16)
# One call in flight shows the latency, 16 what a server makes of batches; two full batches need as many.
_DEFAULTS = {
    True: ((1,), (1, 16), 1.0),
    False: ((1, 8, 32), (1,), 0.2),
}


@dataclass(frozen=True, kw_only=True)
class LatencyRequest:
    """What was asked for; None is the default, which for a server (`url`) is another one."""

    bundle: Path | None = None
    precisions: tuple[str, ...] | None = None
    providers: tuple[str, ...] | None = None
    threads: int | None = None
    streams: tuple[int, ...] | None = None
    batches: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    url: str | None = None
    in_flight: tuple[int, ...] | None = None
    rates_per_s: tuple[float, ...] | None = None
    rounds: int = 10
    visit_s: float | None = None
    json_file: Path | None = None

    def __post_init__(self) -> None:
        chosen = [name for name in ("precisions", "providers", "threads", "streams") if getattr(self, name) is not None]
        if self.url is not None and chosen:
            raise InputError(f"{', '.join(chosen)} with a server, which has chosen its own: leave them out")
        target = self.json_file
        if target is not None and (target.is_dir() or not target.absolute().parent.is_dir()):
            raise InputError(f"--json {target} cannot be written: its folder is missing or it is one")

    def settings(self, bundle: Bundle) -> LatencySettings:
        """Fill in the defaults. Raises InputError where a number cannot be measured."""
        batches, in_flight, visit_s = _DEFAULTS[self.url is not None]
        context = bundle.text.context_length
        lengths = self.lengths or (*(length for length in _LENGTHS if length < context), context)
        if max(lengths) > context:
            raise InputError(f"a length of {max(lengths)} token ids: the context of {bundle.name} is {context}")
        loads = [Load(in_flight=number) for number in self.in_flight or in_flight]
        loads += [Load(rate_per_s=rate) for rate in self.rates_per_s or ()]
        return LatencySettings(
            batches=self.batches or batches,
            lengths=lengths,
            loads=tuple(loads),
            rounds=self.rounds,
            visit_s=visit_s if self.visit_s is None else self.visit_s,
        )


def run_latency(request: LatencyRequest) -> Record:
    """Measure, print the limits first and then the tables, and write the record where one is asked for."""
    from rich.console import Console
    from rich.progress import Progress

    from twinspire.sample import sample_bundle

    bundle = Bundle.open(request.bundle if request.bundle is not None else sample_bundle())
    settings = request.settings(bundle)
    console = figures_console()
    threads = usable_cores() if request.threads is None else request.threads
    with ExitStack() as stack:
        subjects, skipped, server = _open(request, bundle, stack)
        peaks = matrix_peaks(threads)
        bounds = limits(bundle, _precisions(request, bundle, subjects), settings, peaks)
        if server is not None:
            console.print(f"{server}; the limits are those of this machine, were it to run the engines")
        console.print(peaks_line(peaks))
        console.print(limits_table(bounds))
        for each in skipped:
            console.print(f"left out: {each.name}: {each.reason}", soft_wrap=True)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("measuring", total=settings.rounds * len(cases(subjects, settings)))
            results = measure(bundle, subjects, settings, on_visit=lambda: progress.advance(task))
    found = findings(results, bounds, {subject.name: subject.precision for subject in subjects})
    for tower in settings.towers:
        console.print()
        console.print(findings_table(tower, found))
    record = Record(
        kind="latency",
        parameters=latency_parameters(
            settings,
            threads=threads,
            precisions=request.precisions,
            providers=request.providers,
            streams=request.streams,
            is_served=request.url is not None,
        ),
        subject=latency_subject(bundle, server=server),
        results=latency_results(found, bounds, peaks, {each.name: each.reason for each in skipped}),
    )
    if request.json_file is not None:
        record.save(request.json_file)
    return record


def _open(request: LatencyRequest, bundle: Bundle, stack: ExitStack) -> tuple[list[Subject], list[Skipped], str | None]:
    """Open what is measured, and say what serves it, None in this process."""
    if request.url is not None:
        subject, server = stack.enter_context(served_subject(request.url, bundle))
        return [subject], [], server
    subjects, skipped = stack.enter_context(
        local_subjects(
            bundle,
            precisions=request.precisions,
            providers=request.providers,
            streams=request.streams or (1,),
            threads=request.threads,
        )
    )
    return subjects, skipped, None


def _precisions(request: LatencyRequest, bundle: Bundle, subjects: list[Subject]) -> list[Precision]:
    """List the engines whose limits are shown: those that are measured here, all where a server has its choice."""
    if request.url is not None:
        return [each for each in Precision if all(each in engines for engines in bundle.manifest.engines.values())]
    return list(dict.fromkeys(subject.precision for subject in subjects if subject.precision is not None))
