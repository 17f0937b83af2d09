"""The commands `twinspire bench run`, `history`, `report` and `gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.shared import BundleOption, JsonOption
from twinspire.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinspire_bench.tracking.gate import Judgement

DEFAULT_HISTORY = Path("runs/history")
_DATA = "scenes:1000:7"
HistoryArgument = Annotated[Path, typer.Argument(help="Folder of the history, of a machine or of a commit in it.")]


def run(
    suite: Annotated[str, typer.Option(help="smoke: minutes, to see that nothing broke; full: figures that matter.")],
    bundle: BundleOption = None,
    data: Annotated[str, typer.Option(help="Captioned images, as `bench recall --data` takes them.")] = _DATA,
    history: Annotated[Path, typer.Option(help="Folder that the records go to.")] = DEFAULT_HISTORY,
    only: Annotated[list[str] | None, typer.Option(help="Run this step alone; may be repeated.")] = None,
    visits: Annotated[int, typer.Option(min=1, help="Run every step so many times, one after the other.")] = 1,
    again: Annotated[bool, typer.Option("--again", help="Also measure what the history has already.")] = False,
    time_limit: Annotated[float | None, typer.Option(help="Seconds after which a step is stopped.")] = None,
) -> None:
    """Run the benchmarks of a suite, one record each, into a history by machine and commit.

    What the history has of this commit is not measured again, so that an interrupted run goes on where it was. A step
    that fails or hangs is reported, the others go on, and the exit status is 1.
    """
    from rich.console import Console

    from twinspire import sample_bundle
    from twinspire._arguments import as_member
    from twinspire_bench.scripts import progress_lines
    from twinspire_bench.tracking.plan import Suite, Target
    from twinspire_bench.tracking.run import run_suite
    from twinspire_eval.tables import figures_console, figures_table

    chosen = as_member(suite, Suite, "--suite")
    target = Target(bundle=bundle or sample_bundle(), data=data, work=history / "work")
    outcomes = run_suite(
        chosen,
        target,
        history,
        visits=visits,
        only=only or (),
        again=again,
        limit_s=time_limit,
        say=progress_lines(Console(stderr=True)),
    )
    table = figures_table(["step", "visit", "", "record or reason"], [])
    for one in outcomes:
        table.add_row(one.step, str(one.visit), one.state, one.reason or str(one.file))
    figures_console().print(table)
    if any(one.state == "failed" for one in outcomes):
        raise typer.Exit(1)


def history(
    folder: HistoryArgument = DEFAULT_HISTORY,
    step: Annotated[str | None, typer.Option(help="Show this step alone.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the figures over the commits into this file.")] = None,
) -> None:
    """Show the figures of a history: each commit's median over its runs, and their range."""
    from twinspire_bench.tracking.history import entries, points, short_commit
    from twinspire_bench.tracking.plot import save_plot
    from twinspire_eval.tables import figure, figures_console, figures_table

    found = [entry for entry in entries(folder) if step in (None, entry.step)]
    if not found:
        raise InputError(f"{folder} has no records of the step {step!r}", option="step")
    console = figures_console()
    for machine in dict.fromkeys(entry.machine for entry in found):
        table = figures_table(["figure", "commit", "measured"], ["median", "range", "runs", "unit"], title=machine)
        last = ""
        of_machine = points([entry for entry in found if entry.machine == machine])
        for point in sorted(of_machine, key=lambda point: (point.figure.name, point.created)):
            name = point.figure.name if point.figure.name != last else ""
            last = point.figure.name
            spread = f"{figure(min(point.values))} to {figure(max(point.values))}" if len(point.values) > 1 else ""
            commit = short_commit(point.commit)
            cells = (figure(point.figure.value), spread, str(len(point.values)), point.figure.unit)
            table.add_row(name, commit, point.created[:16].replace("T", " "), *cells)
        console.print(table)
    if png is not None:
        save_plot(found, png)


def report(
    folder: HistoryArgument = DEFAULT_HISTORY,
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write a page of a history that needs no network: speed, recall, the frontier, and every record."""
    from twinspire_bench.tracking.history import entries
    from twinspire_bench.tracking.report import write_report

    write_report(entries(folder), out)
    typer.echo(f"{out}")


def gate(
    base: Annotated[Path, typer.Argument(help="Records of the commit to compare with; with --rounds a bundle.")],
    head: Annotated[Path, typer.Argument(help="Records of the commit to judge; with --rounds a bundle.")],
    recall_only: Annotated[bool, typer.Option("--recall-only", help="Compare recall alone, also of two machines.")] = (
        False
    ),
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Share of speed that may be lost, however sure the loss is.")
    ] = 0.05,
    rounds: Annotated[
        int | None,
        typer.Option(min=5, help="Measure the speed of two bundles now, in turn, in so many rounds."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two commits, or two bundles: exit status 1 where HEAD lost recall or speed beyond noise.

    Recall is compared query by query. Speed is compared by pairs of runs, of which it takes three or more (`bench run
    --visits`), on one machine alone.
    """
    import json

    from twinspire_bench.tracking.gate import Verdict, as_document, judge, judge_rounds
    from twinspire_bench.tracking.history import entries

    if rounds is not None:
        from twinspire.bundle import Bundle
        from twinspire_bench.tracking.interleaved import measure_in_turn

        speeds = measure_in_turn(Bundle.open(base), Bundle.open(head), rounds=rounds)
        found = judge_rounds(speeds, tolerance)
    else:
        found = judge(entries(base), entries(head), recall_only=recall_only, tolerance=tolerance)
    if as_json:
        typer.echo(json.dumps(as_document(found), indent=1))
    else:
        _show(found)
    if any(one.verdict is Verdict.REGRESSED for one in found):
        raise typer.Exit(1)


def _show(found: Sequence[Judgement]) -> None:
    from twinspire_eval.tables import MISSING, figures_console, figures_table

    table = figures_table(["figure", ""], ["head against base", "99% interval"])
    for one in found:
        is_ratio = one.unit == "ratio"
        form = "{:.3f}" if is_ratio else "{:+.2f}"
        spread = (
            MISSING if one.interval is None else f"{form.format(one.interval.low)} to {form.format(one.interval.high)}"
        )
        value = form.format(one.change) + ("" if is_ratio else " points")
        table.add_row(one.name, one.verdict.value, value, spread)
    figures_console().print(table)
