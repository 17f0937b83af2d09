"""The command `python -m twinspire_bench.gpu_check`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from twinspire import _cuda
from twinspire.bundle import Bundle, Precision
from twinspire.errors import BundleError, ProviderError
from twinspire_bench.gpu_check import indexes, speed, towers
from twinspire_bench.gpu_check.steps import CheckStep, Outcome, Scope, Status, driver_round_trip, run_steps
from twinspire_bench.scripts import (
    DEFAULT_WORK,
    TWINSPIRE,
    JsonFileOption,
    SizeOption,
    WorkOption,
    exit_on_error,
    progress_lines,
    random_model,
    run,
)
from twinspire_eval.records import Record
from twinspire_eval.smoke import smoke_option

STEPS = (
    CheckStep("driver", driver_round_trip, 5),
    CheckStep("providers", towers.providers, 30),
    CheckStep("threads", towers.threads, 30),
    CheckStep("fp16 nodes", towers.fp16_nodes, 30),
    CheckStep("indexes of float32", partial(indexes.check_indexes, dtype="float32"), 60),
    CheckStep("indexes of float16", partial(indexes.check_indexes, dtype="float16"), 60),
    CheckStep("images/s", speed.engines, 60),
    CheckStep("images/s of torch", speed.torch_peers, 90),
)


def main(
    size: SizeOption = "vit-b-32",
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle with fp32 and fp16 engines, in place of a random model of --size.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint that --bundle was exported from, to measure torch too.")
    ] = None,
    work: WorkOption = DEFAULT_WORK,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time limit: steps that may end later are skipped.")] = 10,
    vectors: Annotated[int, typer.Option(min=5000, help="Vectors in an index.")] = 100_000,
    seconds: Annotated[float, typer.Option(min=0, help="Duration of a speed measurement.")] = 2,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Run on the processor, without a GPU.")] = False,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", vectors=5000, seconds=0.0)] = False,
) -> None:
    """Check a machine with a GPU, shortest step first; the record is written after every step.

    Exits with status 1 where a step failed. Making the model needs torch and optimum: where they are missing, run the
    check with --rehearse on another machine and copy its folder --work, or pass --bundle.
    """
    console = Console(stderr=True)
    with exit_on_error(console):
        if not rehearse:
            reason = _cuda.unavailable_reason()
            if reason is not None:
                raise ProviderError(f"no GPU can be used: {reason}. --rehearse runs the steps on the processor")
        opened, source = _model(size, work, bundle, checkpoint)
        work.mkdir(parents=True, exist_ok=True)
        scope = Scope(bundle=opened, checkpoint=source, work=work, rehearsal=rehearse, vectors=vectors, seconds=seconds)
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
    """Return the bundle to check, with fp32 and fp16 engines, and its checkpoint. Makes both where none is given."""
    if bundle is not None:
        opened, source = Bundle.open(bundle), checkpoint
    else:
        model = random_model(size, work)
        fp16 = model.folder / "fp16"
        if not fp16.exists():
            run(*TWINSPIRE, "quantize", model.folder / "fp32", "-o", fp16, "--precision", "fp16")
        opened, source = Bundle.open(fp16), model.checkpoint
    for precision in towers.PRECISIONS:
        for tower in opened.towers:
            if precision not in opened.manifest.engines[tower]:
                raise BundleError(
                    f"{opened.path} has no {precision} engine for the {tower} tower: `twinspire quantize {opened.path} "
                    f"-o OUT --precision {Precision.FP16}` makes a bundle with one"
                )
    return opened, source


def _show(outcomes: Mapping[str, Outcome], *, rehearsal: bool) -> None:
    title = "GPU check, rehearsed on the processor" if rehearsal else "GPU check"
    table = Table("step", "status", "s", "reason", title=title)
    for name, outcome in outcomes.items():
        table.add_row(name, str(outcome.status), f"{outcome.seconds:.1f}", outcome.reason or "")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
