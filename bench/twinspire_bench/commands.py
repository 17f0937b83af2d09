"""The commands that this package adds to `twinspire`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from twinspire.cli.shared import BundleOption
from twinspire.errors import InputError
from twinspire_bench.index.command import index
from twinspire_bench.recall import recall
from twinspire_bench.search.command import search
from twinspire_eval.scenes.commands import app as scenes
from twinspire_eval.smoke import smoke_option

Value = TypeVar("Value", int, float)

bench = typer.Typer(help="Measure speed and recall, and compare what was measured.", no_args_is_help=True)
bench.command()(recall)
bench.command()(index)
bench.command()(search)


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    app.add_typer(scenes, name="scenes")
    app.add_typer(bench, name="bench")


@bench.callback()
def group() -> None:
    """Measure speed and recall, and compare what was measured."""


@bench.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A record, as --json writes it.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another of the same machine.", show_default=False)],
) -> None:
    """Show the figures of two records side by side, with the ratio of B to A.

    Records of different machines, kinds or parameters are refused.
    """
    from twinspire_eval.comparison import compare as compare_records
    from twinspire_eval.records import Record
    from twinspire_eval.tables import figure, figures_console, figures_table, spread

    found = compare_records(Record.load(a), Record.load(b))
    table = figures_table(["figure"], ["A", "B", "B / A", "95% interval"])
    for each in found:
        row = [figure(each.a), figure(each.b), figure(each.ratio), spread(each.interval)]
        table.add_row(" · ".join(each.name), *row)
    figures_console().print(table)


@bench.command()
def latency(
    bundle: BundleOption = None,
    precision: Annotated[list[str] | None, typer.Option("--precision", "-p", help="Engines; all if not given.")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="What runs them: cpu, openvino, cuda; all here.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads a call computes with.")] = None,
    streams: Annotated[list[str] | None, typer.Option(help="Parts a call is cut into, side by side: 1.")] = None,
    batch: Annotated[list[str] | None, typer.Option(help="Pictures or texts a call: 1,8,32; of a server 1.")] = None,
    lengths: Annotated[list[str] | None, typer.Option(help="Token ids a text: 8,16 and the context.")] = None,
    url: Annotated[str | None, typer.Option(help="Measure the server of the bundle at HOST:PORT.")] = None,
    in_flight: Annotated[list[str] | None, typer.Option(help="Calls in flight: 1; of a server 1,16.")] = None,
    rate: Annotated[list[str] | None, typer.Option(help="Also an open loop with so many calls a second.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each case is visited.")] = 10,
    visit: Annotated[float | None, typer.Option(help="Seconds of a visit: 0.2; of a server 1.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    _smoke: Annotated[bool, smoke_option(rounds=1, visit=0.01)] = False,
) -> None:
    """Measure how fast the towers answer, in this process or on a server.

    What takes several values takes them with commas between, or comes several times.
    """
    from twinspire_bench.latency.command import LatencyRequest, run_latency

    run_latency(
        LatencyRequest(
            bundle=bundle,
            precisions=_words(precision),
            providers=_words(provider),
            threads=threads,
            streams=_numbers(streams, int, "--streams"),
            batches=_numbers(batch, int, "--batch"),
            lengths=_numbers(lengths, int, "--lengths"),
            url=url,
            in_flight=_numbers(in_flight, int, "--in-flight"),
            rates_per_s=_numbers(rate, float, "--rate"),
            rounds=rounds,
            visit_s=visit,
            json_file=json_file,
        )
    )


def _words(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(word.strip() for value in values for word in value.split(",")) if values else None


def _numbers(values: Sequence[str] | None, kind: Callable[[str], Value], option: str) -> tuple[Value, ...] | None:
    words = _words(values)
    if words is None:
        return None
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise InputError(
            f"{option} {','.join(words)}: expected numbers with commas between them, such as 1,8,32"
        ) from None
