"""`python -m twinspire_bench.gpu_check`: what the package's docstring says, as a command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from twinspire import _cuda
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import BundleError, ProviderError
from twinspire_bench.cli_runner import TWINSPIRE, run, seeded_model
from twinspire_bench.gpu_check import driver, indexes, speed, towers
from twinspire_bench.gpu_check.steps import Outcome, Scope, Status, Step, run_steps
from twinspire_bench.script_options import (
    DEFAULT_WORK,
    JsonFileOption,
    SizeOption,
    WorkOption,
    errors_told,
    progress_lines,
)
from twinspire_eval.records import Record
from twinspire_eval.smoke import smoke_option

STEPS = (
    Step("driver", driver.driver_round_trip, 5),
    Step("providers", towers.providers, 30),
    Step("threads", towers.threads, 30),
    Step("fp16 nodes", towers.fp16_nodes, 30),
    Step("indexes of float32", indexes.float32, 60),
    Step("indexes of float16", indexes.float16, 60),
    Step("images/s", speed.engines, 60),
    Step("images/s of torch", speed.torch_peers, 90),
)


def main(
    size: SizeOption = "vit-b-32",
    bundle: Annotated[
        Path | None, typer.Option(help="One with fp32 and fp16 engines, in place of a seeded model of that size.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint that --bundle was made of, to measure torch beside it.")
    ] = None,
    work: WorkOption = DEFAULT_WORK,
    minutes: Annotated[float, typer.Option(min=0.1, help="Steps that would end later are left out.")] = 10,
    vectors: Annotated[int, typer.Option(min=5000, help="How many an index holds.")] = 100_000,
    seconds: Annotated[float, typer.Option(min=0, help="How long a speed is measured.")] = 2,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Run on the processor what needs no GPU.")] = False,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", vectors=5000, seconds=0.0)] = False,
) -> None:
    """Check a machine with a GPU, cheapest first; the record is written after every step.

    Ends with status 1 where a step failed or could not be run. The model is made beforehand where torch and optimum
    are: run it once with --rehearse there and bring the folder --work along, or name a bundle.
    """
    console = Console(stderr=True)
    with errors_told(console):
        if not rehearse:
            reason = _cuda.unavailable_reason()
            if reason is not None:
                raise ProviderError(f"there is no GPU to check: {reason}. --rehearse runs the steps on the processor")
        opened, made_of = _model(size, work, bundle, checkpoint)
        work.mkdir(parents=True, exist_ok=True)
        scope = Scope(
            bundle=opened, checkpoint=made_of, work=work, rehearsal=rehearse, vectors=vectors, seconds=seconds
        )
        parameters = {"minutes": minutes, "vectors": vectors, "seconds": seconds, "rehearsal": rehearse}

        def save(outcomes: Mapping[str, Outcome]) -> None:
            if json_file is not None:
                results = {name: asdict(outcome) for name, outcome in outcomes.items()}
                subject = {"bundle": opened.name, "space": opened.space}
                Record(kind="gpu-check", parameters=parameters, subject=subject, results=results).save(json_file)

        outcomes = run_steps(STEPS, scope, limit_s=60 * minutes, after_each=save, say=progress_lines(console))
        _show(outcomes, rehearsal=rehearse)
    if any(outcome.status is Status.FAILED for outcome in outcomes.values()):
        raise typer.Exit(1)


def _model(size: str, work: Path, bundle: Path | None, checkpoint: Path | None) -> tuple[Bundle, Path | None]:
    """Return the bundle to check, with fp32 and fp16 engines, and its checkpoint. Makes both where none is named."""
    if bundle is not None:
        opened, made_of = Bundle.open(bundle), checkpoint
    else:
        model = seeded_model(size, work)
        half = model.folder / "fp16"
        if not half.exists():
            run(*TWINSPIRE, "quantize", model.folder / "fp32", "-o", half, "--precision", "fp16")
        opened, made_of = Bundle.open(half), model.checkpoint
    for precision in towers.PRECISIONS:
        for tower in Tower:
            if precision not in opened.manifest.engines[tower]:
                raise BundleError(
                    f"{opened.path} has no {precision} engine for the {tower} tower: `twinspire quantize {opened.path} "
                    f"-o OUT --precision {Precision.FP16}` makes a bundle with one"
                )
    return opened, made_of


def _show(outcomes: Mapping[str, Outcome], *, rehearsal: bool) -> None:
    title = "GPU check, rehearsed on the processor" if rehearsal else "GPU check"
    table = Table("step", "status", "s", "why", title=title)
    for name, outcome in outcomes.items():
        table.add_row(name, str(outcome.status), f"{outcome.seconds:.1f}", outcome.reason or "")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
