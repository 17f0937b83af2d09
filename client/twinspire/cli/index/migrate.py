"""`twinspire index migrate`: give an index the vectors of another model."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.bundles import reference_to
from twinspire.cli.client_options import ClientOptions, open_client, with_client_options
from twinspire.cli.index.shared import IndexArgument, ProgressBar, counted, print_failed, print_index_json
from twinspire.cli.shared import EXIT_SOME_FAILED, JsonOption, printable
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.bundle import BundleDescription
    from twinspire.migration import MigrationReport


@with_client_options
def migrate(
    index: IndexArgument,
    *,
    options: ClientOptions,
    spec: Annotated[
        str | None,
        typer.Option(
            "--spec",
            help="Index spec to build for the new vectors, as of `index build`; default: the one searched with now.",
        ),
    ] = None,
    drop_missing: Annotated[
        bool,
        typer.Option(
            "--drop-missing", help="Remove the items that cannot be encoded again: their file is gone or unreadable."
        ),
    ] = False,
    keep_old: Annotated[
        Path | None, typer.Option("--keep-old", metavar="FOLDER", help="Keep the index as it was in this new folder.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an interrupted migration has encoded.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report how many items would be encoded, and which cannot be.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Encode all items again with the model of --bundle, then switch the index to its vectors in one step.

    Images and sounds are read from their files, texts from the index. Searches and changes of the index go on
    meanwhile, with the old model; a process that has it open must open it again after the switch. An interrupted run
    is finished by running it again. Ends with status 3, and does not switch, where items cannot be encoded again.
    """
    from twinspire import migration

    if options.bundle is None:
        raise InputError("index migrate needs the bundle of the new model: pass --bundle", option="--bundle")
    start_s = time.perf_counter()
    with open_client(options) as client:
        with ProgressBar("items") as bar:
            report = migration.migrate(
                index,
                client,
                bundle=reference_to(client.bundle),
                spec=spec,
                drop_missing=drop_missing,
                keep_old=keep_old,
                restart=restart,
                dry_run=dry_run,
                on_progress=bar.update,
            )
        bundle = client.bundle
    elapsed_s = time.perf_counter() - start_s
    if as_json:
        document = dataclasses.asdict(report)
        document["lost"] = [
            {"id": lost.id, "uri": printable(lost.uri), "kind": lost.kind.value, "cause": lost.cause}
            for lost in report.lost
        ]
        made_by = {"name": bundle.name, "path": printable(options.bundle.absolute())}
        print_index_json(index, {**document, "dry_run": dry_run, "bundle": made_by, "elapsed_s": round(elapsed_s, 3)})
    else:
        _print(index, report, bundle, elapsed_s, dry_run=dry_run)
    if report.lost and not (report.switched or dry_run):
        raise typer.Exit(EXIT_SOME_FAILED)


def _print(index: Path, report: MigrationReport, bundle: BundleDescription, elapsed_s: float, *, dry_run: bool) -> None:
    rate = (
        f" in {elapsed_s:.1f} s ({report.encoded / elapsed_s:,.1f} items/s)" if report.encoded and not dry_run else ""
    )
    counts = {
        "already encoded": report.already,
        "with changed files": report.changed,
        "dropped" if report.switched else "that cannot be encoded again": len(report.lost),
    }
    done = f"{report.encoded:,} {'would be ' if dry_run else ''}encoded{rate}"
    typer.echo(", ".join([done, *(f"{count:,} {name}" for name, count in counts.items() if count)]))
    for lost in report.lost:
        print_failed(Path(lost.uri), f"{lost.cause} (item {lost.id})")
    if report.switched:
        typer.echo(f"{printable(index)} holds {counted(report.items)}, with vectors of {printable(bundle.name)}")
    elif report.lost and not dry_run:
        typer.echo(
            f"{printable(index)} is as it was: {counted(len(report.lost))} cannot be encoded again. Bring the files "
            "back (`twinspire index sync` follows moved ones), or pass --drop-missing, then run the command again",
            err=True,
        )
