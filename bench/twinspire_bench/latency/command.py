"""The command `twinspire bench latency`: its arguments, the towers that it opens, its output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from twinspire._cores import thread_count
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError, ProviderError, TwinspireError
from twinspire.towers import LocalTowers, Provider, TritonTowers
from twinspire.towers.providers import available, unavailable_reason
from twinspire_bench.latency.measure import LatencySettings, LatencyTarget, Load, cases, measure
from twinspire_bench.latency.report import (
    cases_table,
    compare_cases,
    latency_parameters,
    latency_results,
    latency_subject,
    limits,
    limits_table,
    peaks_line,
)
from twinspire_eval.machine import matrix_peaks
from twinspire_eval.records import Record, check_record_path
from twinspire_eval.tables import figures_console

_LENGTHS = (8, 16)
# Batches, calls in flight and seconds of a visit, for a server and in this process. One call in flight shows the
# latency, 16 show the dynamic batching of a server.
_DEFAULTS = {
    True: ((1,), (1, 16), 1.0),
    False: ((1, 8, 32), (1,), 0.2),
}


@dataclass(frozen=True, kw_only=True)
class LatencyRequest:
    """Arguments of the command; None is the default, which differs for a server (`url`)."""

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
        given = [name for name in ("precisions", "providers", "threads", "streams") if getattr(self, name) is not None]
        if self.url is not None and given:
            raise InputError(f"{', '.join(given)} cannot be set for a server, which has its own: leave them out")
        check_record_path(self.json_file)

    def settings(self, bundle: Bundle) -> LatencySettings:
        """Return the settings with defaults filled in. Raises InputError for numbers out of range."""
        batches, in_flight, visit_s = _DEFAULTS[self.url is not None]
        lengths = self.lengths or ()
        if lengths or Tower.TEXT in bundle.towers:
            context = bundle.text.context_length
            lengths = lengths or (*(length for length in _LENGTHS if length < context), context)
            if max(lengths) > context:
                raise InputError(
                    f"length {max(lengths)} exceeds the context of {bundle.name}: expected at most {context} token ids"
                )
        loads = [Load(in_flight=number) for number in self.in_flight or in_flight]
        loads += [Load(rate_per_s=rate) for rate in self.rates_per_s or ()]
        return LatencySettings(
            batches=self.batches or batches,
            lengths=lengths,
            loads=tuple(loads),
            towers=bundle.towers,
            rounds=self.rounds,
            visit_s=visit_s if self.visit_s is None else self.visit_s,
        )


def run_latency(request: LatencyRequest) -> Record:
    """Measure, print the theoretical limits and then the results, and write the record to `json_file`."""
    from rich.console import Console
    from rich.progress import Progress

    from twinspire.sample import sample_bundle

    bundle = Bundle.open(request.bundle if request.bundle is not None else sample_bundle())
    settings = request.settings(bundle)
    console = figures_console()
    threads = thread_count(request.threads)
    with ExitStack() as stack:
        targets, skipped, server = _open(request, bundle, stack)
        peaks = matrix_peaks(threads)
        bounds = limits(bundle, _precisions(request, bundle, targets), settings, peaks)
        if server is not None:
            console.print(f"{server}; the limits are those of this machine's processor")
        console.print(peaks_line(peaks))
        console.print(limits_table(bounds))
        for target in skipped:
            console.print(f"skipped: {target.name}: {target.reason}", soft_wrap=True)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("measuring", total=settings.rounds * len(cases(targets, settings)))
            results = measure(bundle, targets, settings, on_visit=lambda: progress.advance(task))
    compared = compare_cases(results, bounds, {target.name: target.precision for target in targets})
    for tower in settings.towers:
        console.print()
        console.print(cases_table(tower, compared))
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
        results=latency_results(compared, bounds, peaks, {target.name: target.reason for target in skipped}),
    )
    if request.json_file is not None:
        record.save(request.json_file)
    return record


def _open(
    request: LatencyRequest, bundle: Bundle, stack: ExitStack
) -> tuple[list[LatencyTarget], list[SkippedTarget], str | None]:
    """Open the targets; return the skipped ones, and the server's description, None in this process."""
    if request.url is not None:
        target, server = stack.enter_context(server_target(request.url, bundle))
        return [target], [], server
    targets, skipped = stack.enter_context(
        local_targets(
            bundle,
            precisions=request.precisions,
            providers=request.providers,
            streams=request.streams or (1,),
            towers=bundle.towers,
            threads=request.threads,
        )
    )
    return targets, skipped, None


def _precisions(request: LatencyRequest, bundle: Bundle, targets: list[LatencyTarget]) -> list[Precision]:
    """List the engines whose limits are shown: those measured in this process, or all for a server."""
    if request.url is not None:
        return [one for one in Precision if all(one in engines for engines in bundle.manifest.engines.values())]
    return list(dict.fromkeys(target.precision for target in targets if target.precision is not None))


@dataclass(frozen=True)
class SkippedTarget:
    """Target that could not be opened, with the reason."""

    name: str
    reason: str


@contextmanager
def local_targets(
    bundle: Bundle,
    *,
    precisions: Sequence[str] | None = None,
    providers: Sequence[str] | None = None,
    streams: Sequence[int] = (1,),
    towers: Sequence[Tower] = (Tower.IMAGE, Tower.TEXT),
    threads: int | None = None,
) -> Iterator[tuple[list[LatencyTarget], list[SkippedTarget]]]:
    """Open a bundle's engines in this process, named `int8 cpu`, `int8 cpu, 2 streams` etc., until the block ends.

    None stands for every precision of the bundle and every available provider. Where both are given, an engine that
    cannot be opened is an error; else it is skipped, unless no engine can be opened.
    """
    is_explicit = precisions is not None and providers is not None
    named = precisions or [one for one in Precision if all(one in bundle.precisions(tower) for tower in towers)]
    targets: dict[str, LatencyTarget] = {}
    skipped: list[SkippedTarget] = []
    with ExitStack() as stack:
        for provider, precision, count in product(providers or _providers(), named, streams):
            try:
                opened = LocalTowers(
                    bundle, precision=precision, provider=provider, threads=threads, streams=count, towers=towers
                )
            except TwinspireError as error:
                if is_explicit or isinstance(error, InputError):
                    raise
                skipped.append(SkippedTarget(_name(precision, provider, count), str(error)))
                last = error
                continue
            stack.callback(opened.close)
            runtime = opened.runtime
            name = _name(runtime.precision, runtime.provider, runtime.streams)
            if name in targets:
                raise InputError(f"{precision} on {provider} is {name}, which is measured already: give it once")
            # The limits are those of the processor.
            bound = None if runtime.provider is Provider.CUDA else runtime.precision
            targets[name] = LatencyTarget(name=name, towers=opened, precision=bound)
        if not targets:
            raise last
        yield list(targets.values()), skipped


@contextmanager
def server_target(url: str, bundle: Bundle) -> Iterator[tuple[LatencyTarget, str]]:
    """Connect to a server of the bundle at HOST:PORT; give the target and a description of the server."""
    with TritonTowers(url, bundle) as towers:
        yield LatencyTarget(name="served", towers=towers, statistics=towers.statistics), towers.runtime


def _name(precision: str, provider: str, streams: int) -> str:
    return f"{precision} {provider}" + ("" if streams == 1 else f", {streams} streams")


def _providers() -> Sequence[Provider]:
    """List the available providers. Raises the reason where there is none."""
    found = available()
    if not found:
        cause = unavailable_reason(Provider.CPU)
        raise cause if isinstance(cause, TwinspireError) else ProviderError(f"no provider is available: {cause}")
    return found
