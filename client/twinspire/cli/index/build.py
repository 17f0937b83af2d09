"""`twinspire index build` and `twinspire index tune`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.client_options import BundleOption, ClientOptions, open_client
from twinspire.cli.index.shared import IndexArgument
from twinspire.cli.shared import JsonOption, completing, print_json, printable, size_of
from twinspire.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from twinspire.index import Index
    from twinspire.index.ann.reports import BuildReport, Calibration

_SPEC_HELP = (
    "What to build. Families: flat (exact), ivf (lists), hnsw (graph), binary (one bit a number); on a GPU cagra, "
    "gpu-flat, gpu-ivf. After the family: a code (ivf,sq8 hnsw,sq8 ivf,pq64 ivf,pq128x4) and options (nlist=1024, "
    "m=32); before it: a projection (pca256,hnsw). auto: flat below 100,000 items, above ivf with the longest codes "
    "that fit --memory."
)
_COMPLETED_SPECS = completing("auto", "flat", "ivf", "ivf,sq8", "ivf,pq64", "hnsw", "hnsw,sq8", "binary")
_MEMORY_HELP = "Memory that auto may use, in MiB; default: half of the free memory."
_QUERIES_HELP = (
    "Queries to tune for: a text file with one on each line, encoded with the bundle, or an .npy file of "
    "embeddings, (N, D) float32. Default: held-out items of the index."
)


def build(
    index: IndexArgument,
    spec: Annotated[str, typer.Option("--spec", "-s", help=_SPEC_HELP, autocompletion=_COMPLETED_SPECS)] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to build with; default: one per core.")] = None,
    memory: Annotated[int | None, typer.Option(min=1, help=_MEMORY_HELP)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Predict memory and time only; build nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build an approximate index that searches use from then on; its predicted memory and time are printed first.

    Scores stay exact: a coded index finds candidates, which are rescored from the vectors. Items that are added later
    are found at once. --spec flat goes back to exact search. Searches are calibrated to a recall@10 of at least 0.95 on
    held-out items, across modalities where the index has images and texts; `tune` calibrates for another recall, or for
    your own queries.
    """
    from twinspire.index import Index

    memory_bytes = None if memory is None else memory << 20
    with Index.open(index, mode="read" if dry_run else "write") as opened:
        chosen, predicted = opened.predict(spec, threads=threads, memory_bytes=memory_bytes)
        document = {
            "path": printable(opened.path),
            "spec": chosen,
            "items": len(opened),
            "predicted_memory_bytes": predicted.memory_bytes,
            "predicted_build_s": round(predicted.build_s, 2),
        }
        if not as_json:
            typer.echo(
                f"{chosen} over {len(opened):,} items: about {size_of(predicted.memory_bytes)} of memory "
                f"in each process, {predicted.build_s:.0f} s to build"
            )
        if not dry_run:
            report = opened.build(chosen, threads=threads)
            document |= {"rows": report.rows, "build_s": round(report.build_s, 2), "file_bytes": report.file_bytes}
            document["calibration_s"] = round(report.calibration_s, 2)
            document["calibration"] = _calibration_document(report.calibration)
            if not as_json:
                typer.echo(f"built in {report.build_s:.1f} s, {size_of(report.file_bytes)} on disk")
                typer.echo(_calibration_line(report))
    if as_json:
        print_json(document)


def tune(
    index: IndexArgument,
    recall: Annotated[float, typer.Option(help="Share of the exact results that searches have to find.")] = 0.95,
    k: Annotated[int, typer.Option("-k", help="Number of results that the recall is measured on.")] = 10,
    queries: Annotated[Path | None, typer.Option(help=_QUERIES_HELP)] = None,
    bundle: BundleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the fastest effort and rescore factor with which searches reach this recall@k."""
    from twinspire.index import Index

    with Index.open(index, mode="write") as opened:
        vectors = _vectors(opened, queries, bundle)
        report = opened.tune(vectors, space=opened.space, recall=recall, k=k)
        stats = opened.stats().snapshot
    assert stats is not None
    if as_json:
        print_json(
            {
                "spec": stats.spec,
                "effort": report.effort,
                "rescore_factor": report.rescore_factor,
                "recall": round(report.recall, 5),
                "k": report.k,
                "queries": report.queries,
                "query_ms": round(report.query_ms, 4),
                "exact_query_ms": round(report.exact_query_ms, 4),
            }
        )
        return
    factor = f", rescore factor {report.rescore_factor}" if report.rescore_factor else ""
    typer.echo(
        f"{stats.spec}: effort {report.effort}{factor}: recall@{report.k} "
        f"{report.recall:.3f} on {report.queries:,} queries, {report.query_ms:.3f} ms a query "
        f"(exact: {report.exact_query_ms:.3f} ms)"
    )
    if queries is None:
        measured = ", ".join(f"{group.recall:.3f} on {group.count} {group.queries}" for group in report.measured)
        typer.echo(f"Measured {measured}. Queries of your users may need more effort: give --queries to be sure.")


def _vectors(index: Index, queries: Path | None, bundle: Path | None) -> NDArray[np.float32] | None:
    """Return the queries, (N, D) float32; None: held-out items."""
    import numpy as np

    if queries is None:
        return None
    if queries.suffix == ".npy":
        try:
            loaded: NDArray[np.float32] = np.load(queries, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{queries} cannot be read as an .npy file of embeddings: {error}") from error
        return loaded
    try:
        lines = [line.strip() for line in queries.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{queries} cannot be read as a UTF-8 text file of queries: {getattr(error, 'strerror', None) or error}"
        ) from error
    texts = [line for line in lines if line]
    if not texts:
        raise InputError(f"{queries} has no query: expected one on each line")
    with open_client(ClientOptions(bundle=bundle), index) as client:
        index.check_space(client.space)
        return client.encode_texts(texts)


def _calibration_line(report: BuildReport) -> str:
    """Return the line that says what recall searches reach from now on, and on which queries it was measured."""
    found = report.calibration
    if found is None:
        return "searches are exact" if report.file_bytes == 0 else "searches were not calibrated: too few items"
    effort = f"{found.effort_name} {found.effort:,}" + (f" of {found.lists:,} lists" if found.lists else "")
    rescored = f", {found.rescored_candidates:,} candidates rescored" if found.rescore_factor else ""
    measured = ", ".join(f"{group.recall:.3f} on {group.count} {group.queries}" for group in found.measured)
    reached = (
        f"recall@{found.k} of at least {found.target:g}"
        if found.reached
        else f"recall@{found.k} of {found.target:g} NOT reached, the highest measured is {found.recall:.3f}"
    )
    line = (
        f"{reached}: {measured}; {effort}{rescored}, "
        f"{found.query_ms:.3f} ms a query, calibrated in {report.calibration_s:.1f} s"
    )
    return line if found.reached else f"{line}. Build one with longer codes, or flat, which is exact"


def _calibration_document(found: Calibration | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "k": found.k,
        "target_recall": found.target,
        "recall": round(found.recall, 5),
        "reached": found.reached,
        "effort_name": found.effort_name,
        "effort": found.effort,
        "lists": found.lists,
        "rescored_candidates": found.rescored_candidates,
        "query_ms": round(found.query_ms, 4),
        "measured": [
            dataclasses.asdict(group) | {"recall": round(group.recall, 5), "query_ms": round(group.query_ms, 4)}
            for group in found.measured
        ],
    }
