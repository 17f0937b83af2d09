"""The figures of a history over its commits, as a PNG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from twinspire._atomic import atomic_file
from twinspire.errors import MissingDependencyError
from twinspire_bench.tracking.history import Entry, Point, points

_COLUMNS = 3


def save_plot(found: Sequence[Entry], file: Path) -> None:
    """Draw one panel for each unit of a step: a line for each figure, a bar for the range over runs of a commit.

    Raises MissingDependencyError without matplotlib.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise MissingDependencyError("matplotlib", "bench", "plotting") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    commits = list(dict.fromkeys(entry.commit for entry in found))
    panels: dict[tuple[str, str], dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points(found):
        step = point.files[0].name.partition("-")[0]
        panels[step, point.figure.unit][f"{point.figure.name}"].append(point)
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = pyplot.subplots(
        rows, _COLUMNS, figsize=(5.2 * _COLUMNS, 4.2 * rows), layout="constrained", squeeze=False
    )
    for axis, ((step, unit), lines) in zip(axes.flat, panels.items(), strict=False):
        for name, line in lines.items():
            places = [commits.index(point.commit) for point in line]
            values = [point.figure.value for point in line]
            below = [point.figure.value - min(point.values) for point in line]
            above = [max(point.values) - point.figure.value for point in line]
            axis.errorbar(places, values, yerr=(below, above), marker="o", markersize=4, capsize=2, label=name)
        axis.set_title(f"{step}, {unit}", fontsize=10, loc="left")
        axis.set_xticks(range(len(commits)), [commit[:8] + "*" * commit.endswith("-dirty") for commit in commits])
        axis.tick_params(axis="x", labelrotation=45, labelsize=7)
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=6)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    with atomic_file(file) as out:
        figure.savefig(out, format="png", dpi=130)
    pyplot.close(figure)
