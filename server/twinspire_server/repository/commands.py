"""`twinspire build`: from bundles to a model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime


def register(app: typer.Typer) -> None:
    """Add `build` to `app`."""
    app.command()(build)


def build(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="The bundles to serve.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The repository's folder; other models in it stay.")
    ],
    precision: Annotated[
        str,
        typer.Option(help="fp32, fp16, int8, int8-tensorrt, or auto: the fastest certified for this machine."),
    ] = "auto",
    runtime: Annotated[
        RepositoryRuntime, typer.Option(help="The Triton that will serve: nvidia-pytriton's, or NVIDIA's container.")
    ] = RepositoryRuntime.WHEEL,
    device: Annotated[Device, typer.Option(help="What computes.")] = Device.CPU,
    threads: Annotated[
        int | None, typer.Option(help="Threads on the CPU; by default all cores, for the container this machine's.")
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(
            help="Batches, or parts of one, computed in parallel on the CPU; they divide the threads. More gain "
            "throughput, not latency. By default what the bundle was measured best with."
        ),
    ] = None,
    accelerator: Annotated[
        Accelerator,
        typer.Option(
            help="What runs engines on the container's GPU: ONNX Runtime with TensorRT or CUDA, or TensorRT with plans "
            "that `twinspire tensorrt` built."
        ),
    ] = Accelerator.TENSORRT,
    plans: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="The folder of a bundle's plans; may be repeated. By default BUNDLE.plans."),
    ] = None,
) -> None:
    """Write the folder that Triton loads: a model for each tower of a bundle.

    For NVIDIA's container the text tower is two: one that checks texts and forms batches, and its engine.
    """
    from twinspire_server.repository.build import build_repository

    models = build_repository(
        bundles,
        output,
        precision=precision,
        runtime=runtime,
        device=device,
        threads=threads,
        streams=streams,
        accelerator=accelerator,
        plans=plans or (),
    )
    for model in models:
        typer.echo(f"{model.folder}: version {model.version}, {model.precision}, space {model.space[:12]}")
