"""Comparison of two records of the same machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twinspire.errors import InputError
from twinspire_eval.records import SAMPLES, Record
from twinspire_eval.statistics import STATISTICS, Interval, ratio

_MISSING = object()


@dataclass(frozen=True)
class Figure:
    """One number in the results of two records. `name` are its keys, the outermost first.

    `a` and `b` are None where a record lacks it or has null. `ratio` is b over a, None where one is missing or not
    positive. `interval` is the ratio's 95% confidence interval, None where the records hold no samples.
    """

    name: tuple[str, ...]
    a: float | None
    b: float | None
    ratio: float | None
    interval: Interval | None


def compare(a: Record, b: Record) -> list[Figure]:
    """Return the numbers of both records' results, in the order of the first record.

    Raises InputError with every field that differs where the records are of different machines, kinds or parameters.
    """
    different = _differences(a, b)
    if different:
        lines = [f"{name}: {_shown(ours)} and {_shown(theirs)}" for name, (ours, theirs) in different.items()]
        raise InputError(
            "the records cannot be compared: they differ in\n  "
            + "\n  ".join(lines)
            + "\nMeasure both on one machine with the same parameters"
        )
    return list(_figures(a.results, b.results, ()))


def _differences(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {} if a.kind == b.kind else {"kind": (a.kind, b.kind)}
    found |= {f"hardware.{name}": values for name, values in a.hardware.differences(b.hardware).items()}
    return found | _differing(a.parameters, b.parameters, "parameters")


def _differing(a: object, b: object, name: str) -> dict[str, tuple[Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*a, *b]):
            found |= _differing(a.get(key, _MISSING), b.get(key, _MISSING), f"{name}.{key}")
        return found
    return {} if a == b else {name: (a, b)}


def _shown(value: object) -> str:
    return "nothing" if value is _MISSING else repr(value)


def _figures(a: object, b: object, name: tuple[str, ...]) -> Iterator[Figure]:
    """Yield the numbers of two trees of objects. Lists are skipped: their items have no names."""
    ours, theirs = (value if isinstance(value, Mapping) else {} for value in (a, b))
    for key in dict.fromkeys([*ours, *theirs]):
        left, right = ours.get(key), theirs.get(key)
        if isinstance(left, Mapping) or isinstance(right, Mapping):
            yield from _figures(left, right, (*name, key))
        elif _is_number(left) or _is_number(right):
            yield _figure(ours, theirs, (*name, key))


def _figure(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: tuple[str, ...]) -> Figure:
    key = name[-1]
    a, b = (side[key] if _is_number(side.get(key)) else None for side in (ours, theirs))
    if a is None or b is None or a <= 0 or b <= 0:
        return Figure(name, a, b, ratio=None, interval=None)
    above, below, statistic = theirs.get(SAMPLES), ours.get(SAMPLES), STATISTICS.get(key)
    if statistic is None or not above or not below:
        return Figure(name, a, b, b / a, interval=None)
    return Figure(name, a, b, b / a, ratio(above, below, statistic).interval)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
