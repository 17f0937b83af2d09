"""The commands that this package adds to `twinspire`: `build` here, the others in their packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinspire._decode_mode import DecodeMode
from twinspire_server.demo.commands import demo
from twinspire_server.gateway.commands import gateway
from twinspire_server.repository.settings import Accelerator, Device, RepositoryRuntime
from twinspire_server.triton.commands import reload, serve


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (demo, build, serve, reload, gateway):
        app.command()(command)


def build(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Bundles to serve.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the repository; other models in it stay.")
    ],
    precision: Annotated[
        str, typer.Option(help="fp32, fp16, int8, int8-tensorrt, or auto: the fastest certified for this machine.")
    ] = "auto",
    runtime: Annotated[
        RepositoryRuntime,
        typer.Option(help="Triton that will serve: the one in the wheel nvidia-pytriton, or NVIDIA's container."),
    ] = RepositoryRuntime.WHEEL,
    device: Annotated[Device, typer.Option(help="Device that engines compute on.")] = Device.CPU,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads on the CPU. Default: one for each core; for the container, for each core here."),
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(
            help="Number of batches, or parts of one, computed in parallel on the CPU; the threads are divided among "
            "them. More streams raise throughput, not latency. Default: what the bundle was measured best with."
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
        typer.Option(metavar="DIR", help="Folder of a bundle's TensorRT plans; repeatable. Default: BUNDLE.plans."),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(help="Processes that compute each tower, with --threads each; wheel only. Default: 1."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Most images or texts of a batch; wheel only. Default: 32 images, 64 texts.")
    ] = None,
    queue_batches: Annotated[
        int | None,
        typer.Option(help="Full batches that wait in an instance before requests are refused; wheel only. Default: 8."),
    ] = None,
    tuning: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Record of `twinspire tune`: use the options that it chose, and keep it in the models."
        ),
    ] = None,
    raw_inputs: Annotated[
        bool | None,
        typer.Option(
            "--raw-inputs/--no-raw-inputs",
            help="Also serve encoded images and sounds and plain texts as inputs, for clients in any language: "
            "NAME_image_bytes, NAME_audio_bytes, NAME_text_raw. A process of some 60 MB for each. Default: for the "
            "wheel; the container needs further packages for it.",
        ),
    ] = None,
    decode: Annotated[
        DecodeMode,
        typer.Option(
            help="How NAME_image_bytes decodes images. scaled: JPEG files at a fraction of their size, several times "
            "as fast for photographs."
        ),
    ] = DecodeMode.EXACT,
) -> None:
    """Write a model repository, the folder that Triton loads: a model for each tower of a bundle.

    The model `twinspire` describes what is served, so that clients need no bundle.

    For NVIDIA's container the text tower has two: NAME_text, which clients call, checks texts and forms batches for
    NAME_engine_text, which computes them.
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
        instances=instances,
        max_batch=max_batch,
        queue_batches=queue_batches,
        tuning=tuning,
        raw_inputs=runtime is RepositoryRuntime.WHEEL if raw_inputs is None else raw_inputs,
        decode=decode,
        description=True,
    )
    for model in models:
        space = None if model.spec.space is None else f"space {model.spec.space[:12]}"
        facts = [f"version {model.version}", model.spec.precision, space]
        typer.echo(f"{model.folder}: {', '.join(fact for fact in facts if fact)}")
