"""`twinspire index build` and `tune`: which kind of index answers, and with how much effort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.client_options import BundleOption, ClientOptions, open_client
from twinspire.cli.shared import JsonOption, completing, print_json, printable
from twinspire.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from twinspire.index import Index
    from twinspire.index.ann.reports import BuildReport, Calibration

_KIND_HELP = (
    "flat, ivf, ivf,sq8, ivf,pq64, ivf,pq128x4, hnsw, hnsw,sq8, pca256 in front of any; cagra, gpu-flat, gpu-ivf on a "
    "GPU; auto: exact below 100,000 items."
)
_COMPLETED_KINDS = completing("auto", "flat", "ivf", "ivf,sq8", "ivf,pq64", "hnsw", "hnsw,sq8")
_QUERIES_HELP = (
    "What people ask: a text file with a query a line, encoded with the bundle, or an .npy file of embeddings, "
    "(N, D) float32. Without it, held-out items of the index are asked with."
)
IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.", show_default=False)]


def build(
    index: IndexArgument,
    kind: Annotated[str, typer.Option("--kind", "-k", help=_KIND_HELP, autocompletion=_COMPLETED_KINDS)] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to build with; all cores if not given.")] = None,
    memory: Annotated[int | None, typer.Option(min=1, help="What auto may take, in MiB; half of what is free.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be built and what it takes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a kind of index that searches use from then on; memory and time are told before.

    Scores stay exact: coded kinds find candidates, and rescore them from the vectors. What is added later is found
    at once. flat goes back to exact search. Searches are calibrated to a recall@10 of at least 0.95 on held-out items,
    across modalities where images and texts are there; `tune` does it for another recall or for queries of your own.
    """
    from twinspire.index import Index

    memory_bytes = None if memory is None else memory << 20
    with Index.open(index, mode="read" if dry_run else "write") as opened:
        chosen, predicted = opened.predict(kind, threads=threads, memory_bytes=memory_bytes)
        document = {
            "path": printable(opened.path),
            "kind": chosen,
            "items": len(opened),
            "predicted_memory_bytes": predicted.memory_bytes,
            "predicted_build_s": round(predicted.build_s, 2),
        }
        if not as_json:
            typer.echo(
                f"{chosen} over {len(opened):,} items: about {_size(predicted.memory_bytes)} of memory "
                f"in each process, {predicted.build_s:.0f} s to build"
            )
        if not dry_run:
            report = opened.build(chosen, threads=threads)
            document |= {"rows": report.rows, "build_s": round(report.build_s, 2), "file_bytes": report.file_bytes}
            document["calibration_s"] = round(report.calibration_s, 2)
            document["calibration"] = _calibration_document(report.calibration)
            if not as_json:
                typer.echo(f"built in {report.build_s:.1f} s, {_size(report.file_bytes)} on disk")
                typer.echo(_calibration_line(report))
    if as_json:
        print_json(document)


def tune(
    index: IndexArgument,
    recall: Annotated[float, typer.Option(help="The share of the best hits to be found.")] = 0.95,
    k: Annotated[int, typer.Option("-k", help="How many hits are best.")] = 10,
    queries: Annotated[Path | None, typer.Option(help=_QUERIES_HELP)] = None,
    bundle: BundleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the least effort with which searches find this share of what exact search finds."""
    from twinspire.index import Index

    with Index.open(index, mode="write") as opened:
        vectors = _vectors(opened, queries, bundle)
        report = opened.tune(vectors, space=opened.space, recall=recall, k=k)
        stats = opened.stats().snapshot
    assert stats is not None
    if as_json:
        print_json(
            {
                "kind": stats.kind,
                "effort": report.effort,
                "reach": report.reach,
                "recall": round(report.recall, 5),
                "k": report.k,
                "queries": report.queries,
                "query_ms": round(report.query_ms, 4),
                "exact_query_ms": round(report.exact_query_ms, 4),
            }
        )
        return
    typer.echo(
        f"{stats.kind}: effort {report.effort}, {report.reach} candidates a hit: recall@{report.k} {report.recall:.3f} "
        f"on {report.queries:,} queries, {report.query_ms:.3f} ms a query (exact: {report.exact_query_ms:.3f} ms)"
    )
    if queries is None:
        measured = ", ".join(f"{group.recall:.3f} on {group.count} {group.queries}" for group in report.measured)
        typer.echo(f"Measured {measured}. What people ask may lie farther away: give --queries to be sure.")


def _vectors(index: Index, queries: Path | None, bundle: Path | None) -> NDArray[np.float32] | None:
    """Return what to ask with, (N, D) float32; None: held-out items."""
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
        raise InputError(f"{queries} cannot be read as a text file of queries: {error}") from error
    texts = [line for line in lines if line]
    if not texts:
        raise InputError(f"{queries} holds no query: expected one a line")
    with open_client(ClientOptions(bundle=bundle), index) as client:
        index.check_space(client.space)
        return client.encode_texts(texts)


def _calibration_line(report: BuildReport) -> str:
    """Return what searches reach from now on, measured on what."""
    found = report.calibration
    if found is None:
        return "searches are exact" if report.file_bytes == 0 else "searches were not calibrated: too few items"
    effort = f"{found.effort_name} {found.effort:,}" + (f" of {found.lists:,} lists" if found.lists else "")
    rescored = f", {found.rescored_candidates:,} candidates rescored" if found.rescore_factor else ""
    measured = ", ".join(f"{group.recall:.3f} on {group.count} {group.queries}" for group in found.measured)
    reached = (
        f"recall@{found.k} of at least {found.target:g}"
        if found.reached
        else f"recall@{found.k} of {found.target:g} NOT reached, {found.recall:.3f} is the best that was measured"
    )
    line = (
        f"{reached}: {measured}; {effort}{rescored}, "
        f"{found.query_ms:.3f} ms a query, calibrated in {report.calibration_s:.1f} s"
    )
    return line if found.reached else f"{line}. Build a kind with longer codes, or flat, which is exact"


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
            {
                "queries": group.queries,
                "count": group.count,
                "recall": round(group.recall, 5),
                "query_ms": round(group.query_ms, 4),
            }
            for group in found.measured
        ],
    }


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB" if size_bytes >= 2**20 else f"{size_bytes / 2**10:.1f} KiB"
