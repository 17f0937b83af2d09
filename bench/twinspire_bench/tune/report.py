"""Table, record and plot of a tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinspire_bench.tune.journal import Visit
from twinspire_bench.tune.knobs import Point, shown
from twinspire_bench.tune.measure import Budget, Load
from twinspire_bench.tune.sweep import Swept
from twinspire_eval.plots import plot_file

if TYPE_CHECKING:
    from rich.console import Console

# Distinguishable without colour vision too (Okabe and Ito, 2008).
_CHOSEN, _BUDGET, _FRONT, _GREY = "#0072B2", "#D55E00", "#3a3a3a", "#b0b0b0"


def frontier(loads: Mapping[Visit, Sequence[Load]]) -> list[tuple[Point, Load]]:
    """Return the open loops that no other one beats in both p99 and throughput, by p99."""
    measured = [
        (visit.options, load)
        for visit, found in loads.items()
        for load in found
        if load.rate_per_s is not None and load.p99_ms is not None
    ]
    front: list[tuple[Point, Load]] = []
    for options, load in sorted(measured, key=lambda entry: (entry[1].p99_ms or 0.0, -entry[1].throughput_per_s)):
        if not front or load.throughput_per_s > front[-1][1].throughput_per_s:
            front.append((options, load))
    return front


def results(points: Sequence[Swept], loads: Mapping[Visit, Sequence[Load]], budget: Budget) -> dict[str, Any]:
    """Return the results of a record; the first point is the chosen one."""
    chosen = points[0]
    again = [point for point in points if point.again_per_s]
    return {
        "options": dict(chosen.options),
        "goodput_per_s": chosen.goodput_per_s,
        "best_other_ratio": max(
            (point.goodput_per_s / chosen.goodput_per_s for point in again if point is not chosen), default=None
        ),
        "points": [
            {
                "options": dict(point.options),
                "goodput_per_s": point.goodput_per_s,
                "sweep_goodput_per_s": point.sweep_per_s,
                "again_goodput_per_s": list(point.again_per_s),
                "loads": [
                    asdict(load) for visit, found in loads.items() if visit.options == point.options for load in found
                ],
            }
            for point in points
        ],
        "frontier": [
            {"options": dict(options), "p99_ms": load.p99_ms, "throughput_per_s": load.throughput_per_s}
            for options, load in frontier(loads)
        ],
        "budget_p99_ms": budget.p99_ms,
    }


def show(points: Sequence[Swept], loads: Mapping[Visit, Sequence[Load]], budget: Budget, console: Console) -> None:
    """Print every point, the chosen one first, then the frontier."""
    from rich.table import Table

    table = Table(title=f"{budget.tower}s/s answered within {budget.p99_ms:g} ms, at the highest rate with such a p99")
    for name in ("options of build", "in the sweep", "again", "median"):
        table.add_column(name, justify="left" if name.startswith("options") else "right")
    for place, point in enumerate(points):
        again = " ".join(f"{score:.1f}" for score in point.again_per_s)
        name = f"{shown(point.options)}{'  (chosen)' if place == 0 else ''}"
        table.add_row(name, f"{point.sweep_per_s:.1f}", again, f"{point.goodput_per_s:.1f}")
    console.print(table)
    front = Table(title="frontier: no visit had more throughput at a lower p99")
    for name in ("p99 ms", f"{budget.tower}s/s", "options of build"):
        front.add_column(name, justify="left" if name.startswith("options") else "right")
    for options, load in frontier(loads):
        front.add_row(f"{load.p99_ms:.1f}", f"{load.throughput_per_s:.1f}", shown(options))
    console.print(front)


def save_plot(
    points: Sequence[Swept], loads: Mapping[Visit, Sequence[Load]], budget: Budget, title: str, file: Path
) -> None:
    """Draw p99 against throughput of every visit as a PNG. Raises InputError where it cannot be written."""
    chosen = points[0].options
    with plot_file(file, size=(8.4, 5.4)) as (figure, axes):
        for is_chosen, colour, name in ((False, _GREY, "other points"), (True, _CHOSEN, f"chosen: {shown(chosen)}")):
            visits = [
                load
                for visit, found in loads.items()
                for load in found
                if (visit.options == chosen) == is_chosen and load.rate_per_s is not None and load.p99_ms is not None
            ]
            axes.plot(
                [load.throughput_per_s for load in visits],
                [load.p99_ms for load in visits],
                "o",
                color=colour,
                markersize=5,
                label=name,
                zorder=3 if is_chosen else 2,
            )
        front = [load for _, load in frontier(loads)]
        axes.step(
            [load.throughput_per_s for load in front],
            [load.p99_ms for load in front],
            where="post",
            color=_FRONT,
            linewidth=1.1,
            label="frontier",
        )
        axes.axhline(budget.p99_ms, color=_BUDGET, linewidth=1.2, linestyle=(0, (5, 3)), label="budget")
        axes.set_yscale("log")
        axes.set_xlabel(f"{budget.tower}s/s answered, open loop")
        axes.set_ylabel("p99, ms")
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.grid(which="both", color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
