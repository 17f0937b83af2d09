"""What is swept: the options of `twinspire build`, and the order in which they are tried.

A new option is one line in `STEPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Point: TypeAlias = tuple[tuple[str, int], ...]
"""Options of `twinspire build` by name, sorted; an option that is not named has its default."""

DEFAULTS: Point = ()


def point(options: Mapping[str, int]) -> Point:
    """Return options as a point."""
    return tuple(sorted(options.items()))


def shown(options: Point) -> str:
    """Return a point for people to read."""
    return ", ".join(f"{name} {value}" for name, value in options) or "defaults"


def flags(options: Point) -> list[str]:
    """Return the arguments of `twinspire build`."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options]


def layouts(cores: int) -> list[Point]:
    """Return ways to share the cores: processes, threads of each, and streams that divide these.

    They depend on each other, so they are tried together: one process or several, with one stream, two, or one a core.
    """
    found: dict[Point, None] = {}
    for instances in sorted({1, 2, cores} & set(range(1, cores + 1))):
        threads = cores // instances
        for streams in sorted({1, 2, threads} & set(range(1, threads + 1))):
            found[point({"instances": instances, "threads": threads, "streams": streams})] = None
    return list(found)


@dataclass(frozen=True)
class Step:
    """One step of the sweep: variants that are tried on each of the best points of the step before."""

    name: str
    variants: Callable[[int], Sequence[Point]]


STEPS = (
    Step("instances, threads and streams", layouts),
    Step("batch", lambda _: [point({"max_batch": size}) for size in (8, 16, 64)]),
    Step("queue", lambda _: [point({"queue_batches": count}) for count in (1, 2, 32)]),
)


def with_variants(best: Sequence[Point], step: Step, cores: int) -> list[Point]:
    """Return the points of a step: each of the best ones with each variant, none twice."""
    return list(dict.fromkeys(point(dict(start) | dict(variant)) for start in best for variant in step.variants(cores)))
