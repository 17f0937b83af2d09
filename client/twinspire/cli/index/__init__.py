"""`twinspire index`: create, fill, watch, inspect, repair and export indexes of images and texts."""

from __future__ import annotations

import typer

from twinspire.cli.index import add, build, duplicates, maintenance, migrate, watch

app = typer.Typer(help="Create and maintain indexes of images and texts.", no_args_is_help=True)
for _command in (
    *(add.add, watch.sync, watch.watch, build.build, build.tune, migrate.migrate),
    *(maintenance.export, maintenance.recover, maintenance.remove, maintenance.compact, maintenance.verify),
    *(maintenance.stats, duplicates.duplicates),
):
    app.command()(_command)
