"""Plots as PNG files: what every one of them needs around its drawing. Needs matplotlib, extra `bench`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twinspire._arguments import file_errors
from twinspire._atomic import atomic_file
from twinspire.errors import MissingDependencyError


def require_matplotlib() -> None:
    """Raise MissingDependencyError where a plot cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "bench", "plotting") from error


@contextmanager
def plot_file(
    file: Path, *, rows: int = 1, columns: int = 1, size: tuple[float, float], dpi: int = 150
) -> Iterator[tuple[Any, Any]]:
    """Give a figure of `size` inches and its axes, an array (rows, columns) unless there is one; then write the PNG.

    It is written whole or not at all. Raises InputError where it cannot be written, MissingDependencyError without
    matplotlib.
    """
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=size, dpi=dpi, layout="constrained", squeeze=rows * columns == 1
    )
    try:
        yield figure, axes
        with file_errors(f"the plot cannot be written to {file}", file), atomic_file(file) as partial:
            figure.savefig(partial, format="png")
    finally:
        pyplot.close(figure)
