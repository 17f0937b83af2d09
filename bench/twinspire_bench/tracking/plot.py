"""The figures of a history over its commits, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twinspire_bench.tracking.history import Entry, panels, short_commit
from twinspire_eval.plots import plot_file

_COLUMNS = 3


def save_plot(found: Sequence[Entry], file: Path) -> None:
    """Draw one panel for each unit of a step: a line for each figure, a bar for the range over runs of a commit.

    Raises as `plot_file` does.
    """
    commits = list(dict.fromkeys(entry.commit for entry in found))
    names = [short_commit(commit, mark="*") for commit in commits]
    drawn = panels(found)
    rows = -(-len(drawn) // _COLUMNS)
    with plot_file(file, rows=rows, columns=_COLUMNS, size=(5.2 * _COLUMNS, 4.2 * rows), dpi=130) as (_, axes):
        for axis, ((step, unit), lines) in zip(axes.flat, drawn.items(), strict=False):
            for name, line in lines.items():
                places = [commits.index(point.commit) for point in line]
                values = [point.figure.value for point in line]
                below = [point.figure.value - min(point.values) for point in line]
                above = [max(point.values) - point.figure.value for point in line]
                axis.errorbar(places, values, yerr=(below, above), marker="o", markersize=4, capsize=2, label=name)
            axis.set_title(f"{step}, {unit}", fontsize=10, loc="left")
            axis.set_xticks(range(len(commits)), names)
            axis.tick_params(axis="x", labelrotation=45, labelsize=7)
            axis.set_ylim(bottom=0)
            axis.grid(visible=True, axis="y", alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False, fontsize=6)
        for axis in list(axes.flat)[len(drawn) :]:
            axis.set_visible(False)
