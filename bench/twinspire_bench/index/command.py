"""`twinspire bench index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire.errors import InputError
from twinspire_eval.smoke import smoke_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from twinspire_bench.index.inputs import Distribution
    from twinspire_eval.records import Record

_SPEC_HELP = "Index to measure, such as ivf,pq64 (see `twinspire index build`); may be repeated."
_PEER_HELP = (
    "Index of another library: hnswlib or usearch, also as hnswlib,m=16,ef_construction=128, or scann (with "
    "--scann-python); may be repeated; none: no other library."
)
_DISTRIBUTION_HELP = (
    "clusters: 1,000 clusters of equal size; power-law: 20,000 of power-law size; spectrum: no clusters, many "
    "directions that matter; all: each in turn."
)
_SCANN_HELP = "Python interpreter of an environment with ScaNN, which is then one of the default peers."


def index(
    distribution: Annotated[str, typer.Option(help=_DISTRIBUTION_HELP)] = "all",
    size: Annotated[int | None, typer.Option(help="Number of vectors to generate; 20,000 without --hdf5.")] = None,
    dim: Annotated[int, typer.Option(help="Dimensions of the generated vectors.")] = 512,
    queries: Annotated[int, typer.Option(help="Number of queries.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 0,
    hdf5: Annotated[Path | None, typer.Option(help="File of ann-benchmarks (angular) to read instead.")] = None,
    spec: Annotated[list[str] | None, typer.Option("--spec", help=_SPEC_HELP)] = None,
    peer: Annotated[list[str] | None, typer.Option("--peer", help=_PEER_HELP)] = None,
    scann_python: Annotated[Path | None, typer.Option("--scann-python", help=_SCANN_HELP)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each index; default: one per core.")] = None,
    k: Annotated[int, typer.Option(help="Results per query.")] = 10,
    recall: Annotated[float, typer.Option(help="Recall@k at which speed is compared.")] = 0.95,
    adds: Annotated[int, typer.Option(help="Vectors to measure the durable add with; 0: do not measure it.")] = 20_000,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps the vectors and the built indexes.")] = None,
    build_only: Annotated[bool, typer.Option("--build-only", help="Build into --work; search in a later run.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    _smoke: Annotated[bool, smoke_option(size=500, dim=32, queries=20, adds=256)] = False,
) -> None:
    """Measure recall against queries/s of indexes, the time to build them, and the memory that they hold.

    Each is built and searched in a process of its own, all queries in one call, with the same number of threads. The
    memory of all vectors, above the table, is what exact search takes.
    """
    from rich.console import Console

    from twinspire_bench.index.inputs import SyntheticVectors
    from twinspire_bench.index.peers import SCANN_INSTALLATION
    from twinspire_bench.index.run import IndexRequest, measure_index

    if build_only and work is None:
        raise InputError("--build-only needs --work FOLDER, which keeps the built indexes")
    stderr = Console(stderr=True)
    peers = [name for name in peer if name != "none"] if peer else ["hnswlib", "usearch"]
    if not peer and scann_python is not None:
        peers.append("scann")
    elif not peer:
        stderr.print(f"ScaNN is not measured: {SCANN_INSTALLATION}", highlight=False, markup=False, soft_wrap=True)
    distributions = _distributions(distribution)
    if size is None and hdf5 is None:
        size = 20_000
    synthetic = []
    if size is not None:
        synthetic = [
            SyntheticVectors(size=size, dim=dim, queries=queries, seed=seed, distribution=one) for one in distributions
        ]
    record = measure_index(
        IndexRequest(
            synthetic=synthetic,
            hdf5=hdf5,
            specs=spec,
            peers=peers,
            scann_python=scann_python,
            threads=threads,
            k=k,
            recall=recall,
            adds=adds,
            work=work,
            build_only=build_only,
        ),
        progress=lambda stage: stderr.print(stage, style="dim", highlight=False) if stderr.is_terminal else None,
    )
    show(record)
    if json_file is not None:
        record.save(json_file)


def _distributions(name: str) -> list[Distribution]:
    from twinspire_bench.index.inputs import Distribution

    known = [one.value for one in Distribution]
    if name not in [*known, "all"]:
        raise InputError(f"unknown distribution {name!r}: expected one of {', '.join(known)} or all")
    return [Distribution(one) for one in known if name in (one, "all")]


def show(record: Record) -> None:
    """Print a table for each distribution of a record."""
    from twinspire_eval.tables import figures_console

    console = figures_console()
    for name, found in record.results["distributions"].items():
        console.print(
            f"{name}: {found['vectors']:,} vectors of {found['dim']} numbers, {found['queries']:,} queries, "
            f"{record.parameters['threads']} threads; all vectors take {found['flat_memory_bytes'] / 2**20:,.0f} MiB "
            f"({found['data']})",
            soft_wrap=True,
        )
        console.print(_table(found, f"recall@{record.parameters['k']} {record.parameters['recall']}"))
    if record.results["durable_add_per_s"] is not None:
        rate = record.results["durable_add_per_s"]
        console.print(f"durable add, batches of {record.results['add_batch']}: {rate:,.0f} vectors/s")


def _table(found: Mapping[str, Any], at: str) -> Table:
    """Return the figures of all indexes on one distribution."""
    from twinspire_eval.tables import figure, figures_table

    figures = ["build s", "CPU s", "predicted s", "memory MiB", "of all vectors", f"queries/s at {at}", "times scann"]
    table = figures_table(["index"], [*figures, "recall", "effort", "rescore factor", "one query ms"])
    scann = found["variants"].get("scann", {}).get("queries_per_s")
    for name, one in found["variants"].items():
        memory, best = one.get("memory_bytes"), one.get("at_recall") or {}
        speed = best.get("queries_per_s")
        table.add_row(
            name,
            figure(one["build_s"]),
            figure(one["build_cpu_s"]),
            figure(one.get("predicted_build_s")),
            figure(None if memory is None else memory / 2**20),
            figure(None if memory is None else memory / found["flat_memory_bytes"]),
            figure(speed),
            figure(speed / scann if speed and scann else None),
            figure(best.get("recall")),
            figure(best.get("effort")),
            figure(best.get("rescore_factor")),
            figure(one.get("single_query_ms")),
        )
    return table
