"""`twinspire tune`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from twinspire_eval.smoke import smoke_option


def tune(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to serve.", show_default=False)],
    p99_ms: Annotated[
        float, typer.Option("--p99-ms", help="Latency budget: the 99th percentile of a call of one image or text.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Repository to write with the choice; other models stay."),
    ],
    tower: Annotated[str, typer.Option(help="Tower whose calls are measured: image or text.")] = "image",
    precision: Annotated[str, typer.Option(help="Precision of the engines, as of `twinspire build`.")] = "auto",
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of raw results, record and plot, where an interrupted run continues. Default: DIR.tuning."
        ),
    ] = None,
    visit: Annotated[float, typer.Option(help="Seconds of each load.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the best points are measured again.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the sweep; by default all.", hidden=True)] = 99,
    _smoke: Annotated[bool, smoke_option(visit=0.1, rounds=1, steps=0)] = False,
) -> None:
    """Find the options of `twinspire build` with the most throughput within a latency budget on this machine.

    Serves the bundle with one set of options after the other (processes, threads, streams, batch, queue) and loads it
    with an open loop, whose latencies include all waiting. Then builds the repository with the best ones, and puts the
    record with all raw results into it. Takes about half a minute for each of some 20 points; keep the machine
    idle meanwhile. For the server in the wheel, on the CPU.
    """
    from rich.console import Console

    from twinspire._arguments import as_member
    from twinspire._cores import usable_cores
    from twinspire.bundle import MANIFEST_NAME, Bundle, Tower
    from twinspire_bench.scripts import TWINSPIRE, progress_lines, run
    from twinspire_bench.tune.journal import JOURNAL, Journal
    from twinspire_bench.tune.knobs import Point, shown
    from twinspire_bench.tune.measure import Budget, Load, measure_point
    from twinspire_bench.tune.report import results, save_plot, show
    from twinspire_bench.tune.sweep import sweep
    from twinspire_eval.machine import this_machine
    from twinspire_eval.plots import require_matplotlib
    from twinspire_eval.records import Record, versions

    budget = Budget(tower=as_member(tower, Tower, "--tower"), p99_ms=p99_ms, visit_s=visit)
    opened = Bundle.open(bundle)
    opened.manifest.tower(budget.tower)
    require_matplotlib()
    folder = work or output.with_name(f"{output.name}.tuning")
    hardware, parameters = this_machine(), {"tower": budget.tower, "p99_ms": p99_ms, "visit_s": visit}
    parts = [(opened.path / MANIFEST_NAME).read_bytes(), repr((parameters, precision, hardware.cpu_model)).encode()]
    parts.append(repr(sorted(versions().items(), key=str)).encode())
    journal = Journal(folder, hashlib.sha256(b"\0".join(parts)).hexdigest())
    console = Console(stderr=True)

    def measure(options: Point, near_per_s: float | None, on_load: Callable[[Load], None]) -> float:
        return measure_point(
            opened,
            options,
            budget,
            precision=precision,
            repository=folder / "models",
            seed=len(journal.scores),
            near_per_s=near_per_s,
            on_load=on_load,
        )

    say = progress_lines(console)
    points = sweep(journal, measure, cores=usable_cores(), rounds=rounds, say=say, steps=steps)
    record = Record(
        kind="tuning",
        hardware=hardware,
        parameters={**parameters, "rounds": rounds, "precision": precision},
        subject={"bundle": opened.name, "space": opened.space},
        results=results(points, journal.loads, budget),
    )
    record.save(folder / "tuning.json")
    title = f"{opened.name}: {budget.tower}s, p99 within {p99_ms:g} ms\n{hardware.cpu_model}"
    save_plot(points, journal.loads, budget, title, folder / "tuning.png")
    show(points, journal.loads, budget, Console())
    run(
        *TWINSPIRE, "build", opened.path, "-o", output, f"--precision={precision}", f"--tuning={folder / 'tuning.json'}"
    )
    typer.echo(
        f"{output}: {shown(points[0].options)}, {points[0].goodput_per_s:.1f} {budget.tower}s/s within {p99_ms:g} ms; "
        f"record {folder / 'tuning.json'}, raw results {folder / JOURNAL}, plot {folder / 'tuning.png'}"
    )
