"""An index that grows: `python -m twinspire_bench.growth`.

One index folder is filled with generated vectors, durably, to each size in turn. At each size it is built, and searched
by a process of its own: recall against exact search, queries/s, and the memory that the process holds. At the last size
a process that adds is killed, and the index opened again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from twinspire._cores import usable_cores
from twinspire.errors import InputError
from twinspire.index import VectorType
from twinspire_bench.index.growth import GrowthTask, building, growing, killed, searching, searching_exactly
from twinspire_bench.index.inputs import Distribution
from twinspire_bench.scripts import JsonFileOption, ThreadsOption, exit_on_error, progress_lines
from twinspire_bench.worker import Target, Worker
from twinspire_eval.plots import plot_file, require_matplotlib
from twinspire_eval.records import Record
from twinspire_eval.smoke import smoke_option
from twinspire_eval.tables import figure, figures_console, figures_table

_MIB = 1 << 20
_SIZES = "10000,100000,1000000,10000000"


def measure(task: GrowthTask, *, say: Callable[[str], None]) -> Record:
    """Fill, build and search the index at each size, then kill a process that adds. Raises `EngineError`."""
    found = []
    with Worker(growing, asdict(task), label="growing", environment=_environment(task)) as grower:
        for size in task.sizes:
            say(f"adding up to {size:,} items")
            added = grower.call()
            say(f"{size:,} items: exact search")
            exact = _once(searching_exactly, task)
            say(f"{size:,} items: building {task.spec}")
            built = _once(building, task)
            say(f"{size:,} items: searching")
            found.append({**added, "exact": exact, "built": built, "search": _once(searching, task)})
    say("killing a process that adds")
    return Record(
        kind="index-growth",
        parameters={
            name: value for name, value in asdict(task).items() if name not in ("folder", "sizes") and value is not None
        },
        results={"sizes": found, "after_a_kill": killed(task)},
    )


def _once(target: Target, task: GrowthTask) -> dict[str, Any]:
    with Worker(target, asdict(task), label=target.__name__, environment=_environment(task)) as worker:
        found: dict[str, Any] = worker.call()
    return found


def _environment(task: GrowthTask) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(task.threads)}  # FAISS and BLAS obey it


def show(record: Record, console: Console) -> None:
    """Print a record as a table, a size a row."""
    table = figures_table(
        [],
        [
            *("items", "added/s", "catalogue MiB", "spec", "built in s", "build MiB", "file MiB"),
            *("recall@10", "queries/s", "first batch", "one query ms", "memory MiB", "open s"),
        ],
    )
    for row in record.results["sizes"]:
        built, search = row["built"], row["search"]
        rate = search["queries_per_s"]
        table.add_row(
            f"{row['items']:,}",
            figure(row["add_per_s"]),
            figure(row["catalogue_bytes"] / _MIB),
            built["spec"],
            figure(built["build_s"]),
            figure(built["memory"]["anonymous_bytes"] / _MIB),
            figure(built["file_bytes"] / _MIB),
            figure(search["recall"]),
            f"{figure(rate['median'])} ({figure(rate['low'])} to {figure(rate['high'])})",
            figure(search["cold_queries_per_s"]),
            figure(search["single_query_ms"]),
            figure(search["memory"]["anonymous_bytes"] / _MIB),
            figure(search["open_s"]),
        )
    console.print(table)
    kill = record.results["after_a_kill"]
    console.print(
        f"killed while adding: {kill['reported']:,} items were durable, {kill['items']:,} are there; opened in "
        f"{figure(kill['open_s'])} s, every item verified in {figure(kill['verify_s'])} s"
    )


def plot(record: Record, file: Path) -> None:
    """Draw what grows with the items, as a PNG: memory and files, rates, recall, and times."""
    rows = record.results["sizes"]
    items = [row["items"] for row in rows]
    panels: Sequence[tuple[str, Sequence[tuple[str, Sequence[float]]]]] = (
        (
            "MiB",
            (
                ("memory of a search", [row["search"]["memory"]["anonymous_bytes"] / _MIB for row in rows]),
                ("memory of a build", [row["built"]["memory"]["anonymous_bytes"] / _MIB for row in rows]),
                ("catalogue on disk", [row["catalogue_bytes"] / _MIB for row in rows]),
                ("vectors on disk", [row["vectors_bytes"] / _MIB for row in rows]),
            ),
        ),
        (
            "1/s",
            (
                ("queries in a batch", [row["search"]["queries_per_s"]["median"] for row in rows]),
                ("queries, nothing in the page cache", [row["search"]["cold_queries_per_s"] for row in rows]),
                ("queries, exact", [row["exact"]["queries_per_s"] for row in rows]),
                ("items added durably", [row["add_per_s"] for row in rows]),
            ),
        ),
        (
            "s",
            (
                ("build", [row["built"]["build_s"] for row in rows]),
                ("calibration", [row["built"]["calibration_s"] for row in rows]),
                ("open", [row["search"]["open_s"] for row in rows]),
                ("one query", [row["search"]["single_query_ms"] / 1000 for row in rows]),
            ),
        ),
    )
    with plot_file(file, columns=len(panels), size=(13, 4.2)) as (drawn, axes):
        for axis, (unit, lines) in zip(axes[0], panels, strict=True):
            for label, values in lines:
                axis.plot(items, values, marker="o", markersize=4, linewidth=1.5, label=label)
            axis.set(xscale="log", yscale="log", xlabel="items", ylabel=unit)
            axis.grid(visible=True, which="major", alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False, fontsize=8)
        recalls = ", ".join(f"{row['search']['recall']:.3f}" for row in rows)
        drawn.suptitle(f"{rows[-1]['built']['spec']}, recall@10 {recalls}", fontsize=11)


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of items, rising.")] = _SIZES,
    dim: Annotated[int, typer.Option(min=1, help="Dimensions of the vectors.")] = 512,
    distribution: Annotated[Distribution, typer.Option(help="As of `bench index`.")] = Distribution.CLUSTERS,
    spec: Annotated[str, typer.Option(help="What to build.")] = "ivf,pq128x4",
    dtype: Annotated[VectorType, typer.Option(help="How vectors are stored.")] = VectorType.FLOAT32,
    threads: ThreadsOption = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the index; by default a temporary one.")] = None,
    json_file: JsonFileOption = None,
    png: Annotated[Path | None, typer.Option(help="Write the plot to this file.")] = None,
    _smoke: Annotated[bool, smoke_option(sizes="300,1000", dim=32, spec="ivf,sq8")] = False,
) -> None:
    """Fill an index to each size, and measure it there. Progress is printed on standard error."""
    console = Console(stderr=True)
    with exit_on_error(console), ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinspire-growth-")))
        folder.mkdir(parents=True, exist_ok=True)
        if png is not None:
            require_matplotlib()
        task = GrowthTask(
            folder=str(folder),
            sizes=_rising(sizes),
            dim=dim,
            distribution=distribution,
            dtype=dtype,
            spec=spec,
            threads=threads or usable_cores(),
        )
        record = measure(task, say=progress_lines(console))
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)
        if png is not None:
            plot(record, png)


def _rising(sizes: str) -> tuple[int, ...]:
    numbers = tuple(int(word) for word in sizes.split(",") if word.strip().isdecimal())
    if len(numbers) != len(sizes.split(",")) or not numbers or numbers[0] < 1 or list(numbers) != sorted(set(numbers)):
        raise InputError(f"sizes {sizes!r}: expected rising whole numbers such as 10000,100000", option="sizes")
    return numbers


if __name__ == "__main__":
    typer.run(main)
