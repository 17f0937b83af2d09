"""Towers opened to be measured: every engine on every provider, or those of a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError, ProviderError, TwinspireError
from twinspire.towers import LocalTowers, Provider, TritonTowers
from twinspire.towers.providers import available, unavailable_reason
from twinspire_bench.latency.measure import Subject


@dataclass(frozen=True)
class Skipped:
    """What could not be opened and was not asked for by its full name, with the reason."""

    name: str
    reason: str


@contextmanager
def local_subjects(
    bundle: Bundle,
    *,
    precisions: Sequence[str] | None = None,
    providers: Sequence[str] | None = None,
    streams: Sequence[int] = (1,),
    towers: Sequence[Tower] = tuple(Tower),
    threads: int | None = None,
) -> Iterator[tuple[list[Subject], list[Skipped]]]:
    """Open a bundle's engines in this process: `int8 cpu`, `int8 cpu, 2 streams` and the like, closed at the end.

    None is every precision that the bundle has, every provider that is here. A combination of which both were named is
    opened or its error is raised; of the others those that cannot be are skipped, unless that leaves none.
    """
    is_explicit = precisions is not None and providers is not None
    named = precisions or [each for each in Precision if all(each in bundle.precisions(tower) for tower in towers)]
    subjects: dict[str, Subject] = {}
    skipped: list[Skipped] = []
    with ExitStack() as stack:
        for provider, precision, count in product(providers or _providers(), named, streams):
            try:
                opened = LocalTowers(
                    bundle, precision=precision, provider=provider, threads=threads, streams=count, towers=towers
                )
            except TwinspireError as error:
                if is_explicit or isinstance(error, InputError):
                    raise
                skipped.append(Skipped(_name(precision, provider, count), str(error)))
                last = error
                continue
            stack.callback(opened.close)
            runtime = opened.runtime
            name = _name(runtime.precision, runtime.provider, runtime.streams)
            if name in subjects:
                raise InputError(f"{precision} on {provider} is {name}, which is measured already: name it once")
            # A GPU has other peaks than the processor.
            bound = None if runtime.provider is Provider.CUDA else runtime.precision
            subjects[name] = Subject(name=name, towers=opened, precision=bound)
        if not subjects:
            raise last
        yield list(subjects.values()), skipped


@contextmanager
def served_subject(url: str, bundle: Bundle) -> Iterator[tuple[Subject, str]]:
    """Connect to a server of the bundle at host:port, and say what it is. Raises what `TritonTowers` raises."""
    with TritonTowers(url, bundle) as towers:
        yield Subject(name="served", towers=towers, statistics=towers.statistics), towers.runtime


def _name(precision: str, provider: str, streams: int) -> str:
    return f"{precision} {provider}" + ("" if streams == 1 else f", {streams} streams")


def _providers() -> Sequence[Provider]:
    """List the providers that are here. Raises what is missing where there is none."""
    there = available()
    if not there:
        cause = unavailable_reason(Provider.CPU)
        raise cause if isinstance(cause, TwinspireError) else ProviderError(f"there is no provider here: {cause}")
    return there
