"""The Pareto plot: speed and lost recall of each candidate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.errors import InputError
from twinspire_eval.plots import plot_file, require_matplotlib
from twinspire_export.precision.run import PrecisionResult
from twinspire_export.precision.selection import CandidateResult, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable without colour vision too (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#6b6b6b"
_MIN_SPAN = 0.2


def check_plot(file: Path, *, is_named: bool) -> None:
    """Check that a plot can be written, before anything is measured.

    The folder of the default file is the new bundle's, which is checked with it.
    """
    require_matplotlib()
    if file.is_dir() or (is_named and not file.absolute().parent.is_dir()):
        raise InputError(f"the plot cannot be written to {file}: it is a folder, or its folder is missing")


def save_plot(result: PrecisionResult, file: Path) -> None:
    """Draw the plot as a PNG. Raises InputError where it cannot be written."""
    with plot_file(file, size=(8.4, 5.8)) as (figure, axes):
        _draw(axes, result)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)


def _draw(axes: Axes, result: PrecisionResult) -> None:
    most = 100 * result.options.max_recall_drop
    configs = dict.fromkeys(measured.candidate.config for measured in result.results)
    colours = {config: _COLOURS[position % len(_COLOURS)] for position, config in enumerate(configs)}
    edges = [most, 0.0]
    for measured in result.results:
        drop = measured.accuracy.recall_drop
        edges += [100 * drop.interval.low, 100 * drop.interval.high, 100 * drop.value]
    span = max(max(edges) - min(edges), _MIN_SPAN)
    axes.set_ylim(max(edges) + 0.2 * span, min(edges) - 0.25 * span)  # less loss is higher
    speeds = [measured.speed.overall for measured in result.results]
    fastest = max(speed.interval.high for speed in speeds)
    slowest = min(speed.interval.low for speed in speeds)
    axes.set_xlim(max(0.0, slowest - 0.12 * (fastest - slowest + 0.1)), fastest + 0.12 * (fastest - slowest + 0.1))

    axes.axhspan(most, 1e3, color="#D55E00", alpha=0.07, linewidth=0)
    axes.axhline(most, color="#D55E00", linewidth=1.2, linestyle=(0, (5, 3)))
    axes.axhline(0, color=_GREY, linewidth=0.8)
    left = axes.get_xlim()[0]
    axes.annotate(
        f" allowed loss: {most:g} points", (left, most), (2, 4), textcoords="offset points", color="#A84300", fontsize=9
    )
    front = pareto_front(result.results)
    axes.plot(
        [measured.speed.overall.value for measured in front],
        [100 * measured.accuracy.recall_drop.value for measured in front],
        color="#9a9a9a",
        linewidth=1.2,
        zorder=1,
    )
    for measured in result.results:
        _point(axes, measured, colours[measured.candidate.config], result)
    axes.set_xlabel(f"speed relative to {result.reference} ({_measured(result)}, {result.threads} threads)")
    axes.set_ylabel("R@1 lost, points (95% interval; up is better)")
    hardware = result.choice.cpu_model if result.choice.provider != "cuda" else result.choice.gpu
    axes.set_title(
        f"{result.bundle.name}: speed and recall, over {result.report.data.name}\n{hardware}",
        loc="left",
        fontsize=10.5,
    )
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _measured(result: PrecisionResult) -> str:
    rates = [f"{tower}s/s" for tower in result.bundle.towers]
    return rates[0] if len(rates) == 1 else f"geometric mean of {' and '.join(rates)}"


def _point(axes: Axes, measured: CandidateResult, colour: str, result: PrecisionResult) -> None:
    speed, drop = measured.speed.overall, measured.accuracy.recall_drop
    x, y = speed.value, 100 * drop.value
    axes.errorbar(
        [x],
        [y],
        xerr=[[x - speed.interval.low], [speed.interval.high - x]],
        yerr=[[y - 100 * drop.interval.low], [100 * drop.interval.high - y]],
        fmt="o" if measured.candidate.streams == 1 else "s",
        markersize=7,
        markerfacecolor=colour if measured.candidate.streams == 1 else "white",
        markeredgewidth=1.6,
        color=colour,
        elinewidth=1.0,
        capsize=3,
        zorder=3,
        label=str(measured.candidate),
    )
    role = "auto" if measured is result.best else ""
    if measured is result.best:
        axes.plot([x], [y], "o", markersize=16, markerfacecolor="none", markeredgecolor="black", markeredgewidth=1.4)
    if measured.candidate == result.reference:
        role = f"{role}, reference" if role else "reference"
    if role:
        axes.annotate(
            role, (x, y), (0, 12), textcoords="offset points", ha="center", va="bottom", fontsize=10, zorder=4,
            fontweight="bold" if measured is result.best else "normal",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
