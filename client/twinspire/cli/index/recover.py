"""`twinspire index recover`: changes that are missing after a crash."""

from __future__ import annotations

import dataclasses

from twinspire.cli.index.add import IndexArgument
from twinspire.cli.shared import JsonOption, print_json, printable


def recover(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Bring back changes that were acknowledged and are missing after a crash. Does nothing where none are.

    What cannot be brought back is saved in a folder of the index, which can be opened to write then.
    """
    import typer

    from twinspire.cli.index import EXIT_DAMAGED
    from twinspire.index import recover_index

    report = recover_index(index)
    saved_in = printable(report.saved_in) if report.saved_in is not None else None
    if as_json:
        document = dataclasses.asdict(report) | {"path": printable(report.path), "saved_in": saved_in}
        print_json({"schema_version": 1, **document, "complete": report.complete})
    elif saved_in is None:
        typer.echo("nothing is missing")
    else:
        typer.echo(
            f"generation {report.generation_before:,} with {report.items_before:,} items became "
            f"{report.generation_after:,} with {report.items_after:,}; what was found is kept in {saved_in}"
        )
        if not report.complete:
            typer.echo(
                f"not brought back: changes up to generation {report.acknowledged or 'unknown'}; "
                f"{report.vectors_saved:,} vectors without their items are saved there"
            )
    if not report.complete:
        raise typer.Exit(EXIT_DAMAGED)
