"""`twinspire bench index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.errors import InputError
from twinspire_bench.smoke import smoke_option

if TYPE_CHECKING:
    from twinspire_bench.records import Record

_KIND_HELP = "A kind to measure, such as ivf,pq64; may be repeated."
_PEER_HELP = "hnswlib or usearch, also with m=16,ef_construction=128; may be repeated; none: no other library."


def index(
    size: Annotated[int | None, typer.Option(help="Draw so many vectors; 20,000 without --hdf5.")] = None,
    dim: Annotated[int, typer.Option(help="Numbers of a drawn vector.")] = 512,
    queries: Annotated[int, typer.Option(help="How many queries.")] = 1_000,
    seed: Annotated[int, typer.Option(help="What is drawn with.")] = 0,
    hdf5: Annotated[Path | None, typer.Option(help="An ann-benchmarks file of angular distance instead.")] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", help=_KIND_HELP)] = None,
    peer: Annotated[list[str] | None, typer.Option("--peer", help=_PEER_HELP)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each; as many as there are cores.")] = None,
    k: Annotated[int, typer.Option(help="Results of a query.")] = 10,
    recall: Annotated[float, typer.Option(help="The recall at which speed is compared.")] = 0.95,
    adds: Annotated[int, typer.Option(help="Vectors that the durable add is measured with; 0: not.")] = 20_000,
    work: Annotated[Path | None, typer.Option(help="Keep what is drawn and built in this folder.")] = None,
    build_only: Annotated[bool, typer.Option("--build-only", help="Build into --work; search in a later run.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    _smoke: Annotated[bool, smoke_option(size=500, dim=32, queries=20, adds=256)] = False,
) -> None:
    """Measure recall against queries/s of kinds of index, the time to build them, and the memory that they hold.

    Each is built and searched in a process of its own, all queries in one call, with the same threads. The first line
    says the limit: what exact search costs.
    """
    from rich.console import Console

    from twinspire_bench.index.material import Drawn
    from twinspire_bench.index.run import IndexRequest, measure_index
    from twinspire_bench.index.variants import PEERS

    if build_only and work is None:
        raise InputError("--build-only needs --work, the folder that keeps what is built")
    drawn = None
    if hdf5 is None or size is not None:
        drawn = Drawn(size=size if size is not None else 20_000, dim=dim, queries=queries, seed=seed)
    stderr = Console(stderr=True)
    record = measure_index(
        IndexRequest(
            drawn=drawn,
            hdf5=hdf5,
            kinds=kind,
            peers=[name for name in peer if name != "none"] if peer else PEERS,
            threads=threads,
            k=k,
            recall=recall,
            adds=adds,
            work=work,
            build_only=build_only,
        ),
        tell=lambda stage: stderr.print(stage, style="dim", highlight=False) if stderr.is_terminal else None,
    )
    show(record)
    if json_file is not None:
        record.save(json_file)


def show(record: Record) -> None:
    """Print the table of a record."""
    from twinspire_bench.tables import figure, figures_console, figures_table

    console = figures_console()
    given, found = record.parameters, record.results
    console.print(
        f"{given['material']}: {given['vectors']:,} vectors of {given['dim']} numbers, {given['queries']:,} queries, "
        f"{given['threads']} threads; all vectors take {found['flat_memory_bytes'] / 2**20:,.0f} MiB",
        soft_wrap=True,
    )
    at = f"recall@{given['k']} {given['recall']}"
    table = figures_table(
        ["variant"],
        [
            "build s",
            "of CPU",
            "predicted",
            "memory MiB",
            "of all",
            f"queries/s at {at}",
            "recall",
            "effort",
            "reach",
            "one query ms",
        ],
    )
    for name, one in found["variants"].items():
        memory, best = one.get("memory_bytes"), one.get("at_recall") or {}
        table.add_row(
            name,
            figure(one["build_s"]),
            figure(one["build_cpu_s"]),
            figure(one.get("predicted_build_s")),
            figure(None if memory is None else memory / 2**20),
            figure(None if memory is None else memory / found["flat_memory_bytes"]),
            figure(best.get("queries_per_s")),
            figure(best.get("recall")),
            figure(best.get("effort")),
            figure(best.get("reach")),
            figure(one.get("single_query_ms")),
        )
    console.print(table)
    if found["durable_add_per_s"] is not None:
        console.print(f"durable add, batches of {found['add_batch']}: {found['durable_add_per_s']:,.0f} vectors/s")
