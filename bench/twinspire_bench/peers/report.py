"""Tables of a record of peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twinspire_bench.peers.catalogue import PeerKind
from twinspire_eval.tables import MISSING, figure, figures_table, ratio_cells

if TYPE_CHECKING:
    from rich.console import Console

    from twinspire_eval.records import Record

_RATIO = ("twinspire / peer", "95% interval")
_EMBEDDING_FIGURES = ("images/s", *_RATIO, "text p50 ms", "p95", *_RATIO, "cosine images", "texts")
_STORE_FIGURES = (
    *("added/s", "found after ms", "search p50 ms", "p95", *_RATIO, "recall@{k}"),
    *("with filter p50 ms", "p95", "recall@{k}"),
)


def show(record: Record, console: Console) -> None:
    """Print what was measured, a table for each kind of peer, and the peers that were not measured."""
    parameters, results = record.parameters, record.results

    def line(text: str) -> None:
        console.print(text, soft_wrap=True)

    line(
        f"{record.hardware.cpu_model}, {parameters['threads']} threads; {record.subject['bundle']}; "
        f"{record.subject['data']}: {parameters['images']:,} images, {parameters['texts']} texts "
        f"({parameters['texts_from']}); {parameters['rounds']} rounds"
    )
    if rows := results.get(PeerKind.EMBEDDING):
        _show_embedding(rows, console)
        for name, row in rows.items():
            line(f"{name}: {row['description']}")
    if rows := results.get(PeerKind.STORE):
        _show_stores(rows, parameters, console)
        for name, row in rows.items():
            line(f"{name}: an add {row['durability']}; filters: {row['filtering']}")
    if results["not_measured"]:
        line("\nNot measured")
        for name, reason in results["not_measured"].items():
            line(f"{name}: {reason}")


def _show_embedding(rows: Mapping[str, Any], console: Console) -> None:
    table = figures_table(
        ["peer"],
        _EMBEDDING_FIGURES,
        title="\nFolder to embeddings, and one text at a time",
    )
    table.add_column("")
    for name, row in rows.items():
        ratios, cosines = row["twinspire_times_as_fast"], row["cosine_to_fp32"]
        note = ", ".join(f"{tower}: {reason}" for tower, reason in row["other_vectors"].items())
        table.add_row(
            name,
            figure(row["images_per_s"]["median"]),
            *ratio_cells(ratios["images"]),
            *_times(row["text_ms"]),
            *ratio_cells(ratios["texts"]),
            *(MISSING if cosine["mean"] is None else f"{cosine['mean']:.4f}" for cosine in cosines.values()),
            f"other vectors, not comparable: {note}" if note else "",
        )
    console.print(table)


def _show_stores(rows: Mapping[str, Any], parameters: Mapping[str, Any], console: Console) -> None:
    table = figures_table(
        ["store"],
        [name.format(k=parameters["k"]) for name in _STORE_FIGURES],
        title=f"\n{parameters['images']:,} vectors of {parameters['dim']} numbers in a store",
    )
    for name, row in rows.items():
        table.add_row(
            name,
            figure(row["added_per_s"]["median"]),
            figure(row["found_ms"]["median"]),
            *_times(row["search_ms"]),
            *ratio_cells(row["twinspire_times_as_fast"]["search"]),
            figure(row["recall"]),
            *_times(row["filtered_ms"]),
            figure(row["filtered_recall"]),
        )
    console.print(table)


def _times(found: Mapping[str, Any] | None) -> tuple[str, str]:
    return (MISSING, MISSING) if found is None else (figure(found["p50"]), figure(found["p95"]))
