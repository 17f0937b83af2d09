"""Overhead of serving: the same engine with the same threads in this process and through Triton, in the same rounds.

`python -m twinspire_bench.serving_overhead` makes ViT-B/32 at full size with random weights, quantizes it, and measures

- the image tower with 16 images in flight: in process as one batch of 16, through Triton as requests of one image,
  the next one sent when one is answered;
- the image tower with one image in flight;
- the text tower with 64 captions in flight: in process in calls of 64, through Triton in requests of one caption, and
  the mean size of the batches that Triton makes of them.

`--runtime container` serves with Triton's onnxruntime backend, from the folder `--backend-directory` where the server's
installation lacks it.

Clients, server and engine share this machine: CPU time of the clients is missing to the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from twinspire._cores import thread_count
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.text import Tokenizer
from twinspire.towers import LocalTowers, Provider, TritonTowers
from twinspire_bench.scripts import (
    DEFAULT_WORK,
    TWINSPIRE,
    CaptionsOption,
    GivenBundleOption,
    JsonFileOption,
    SizeOption,
    ThreadsOption,
    VocabularyOption,
    WorkOption,
    batches_of,
    exit_on_error,
    limit_images_per_s,
    measured_bundle,
    progress_lines,
    rate,
    read_captions,
    run,
    running_server,
)
from twinspire_eval.load import closed_loop, interleaved
from twinspire_eval.records import Record, series
from twinspire_eval.smoke import smoke_option
from twinspire_eval.statistics import paired_ratio, percentiles

PRECISION = Precision.INT8
IMAGES_IN_FLIGHT = 16
TEXTS_IN_FLIGHT = 64

WHEEL = "wheel"
IN_PROCESS, THROUGH_TRITON = "in process", "through Triton"


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """Amount of measurement in each round, in process and through Triton alike."""

    rounds: int = 10
    images: int = 480
    lone_images: int = 15
    texts: int = 512


class _TowerPair:
    """The same towers in this process and on a server; each method measures one of them once."""

    def __init__(
        self,
        local: LocalTowers,
        remote: TritonTowers,
        captions: Sequence[NDArray[np.int32]],
        *,
        size: int,
        settings: ServingSettings,
    ) -> None:
        self._local, self._remote, self._captions, self._settings = local, remote, captions, settings
        self._noise = np.random.default_rng(0).integers(0, 256, (settings.images, size, size, 3), np.uint8)
        self._singly = batches_of(self._noise, 1)
        self.lone_ms: dict[str, list[float]] = {IN_PROCESS: [], THROUGH_TRITON: []}
        self.caption_ms: list[float] = []

    def together(self) -> float:
        """Return images/s in process, in successive calls of 16 images."""
        return rate(self._local.encode_images, batches_of(self._noise, IMAGES_IN_FLIGHT))

    def in_flight(self) -> float:
        """Return images/s through Triton, in requests of one image with 16 in flight."""
        return rate(self._remote.encode_images, [self._noise])

    def lone(self, variant: str) -> float:
        """Return the median latency in ms with one image in flight."""
        encode = self._local.encode_images if variant == IN_PROCESS else self._remote.encode_images
        found = closed_loop(encode, self._singly, in_flight=1, requests=self._settings.lone_images)
        self.lone_ms[variant] += found.latencies_ms.tolist()
        return percentiles(found.latencies_ms).p50

    def captions_together(self) -> float:
        """Return texts/s in process, in successive calls of 64 captions."""
        return rate(self._local.encode_texts, batches_of(self._captions, TEXTS_IN_FLIGHT))

    def captions_in_flight(self) -> float:
        """Return texts/s through Triton, in requests of one caption with 64 in flight."""
        found = closed_loop(
            lambda ids: self._remote.encode_texts([ids]),
            self._captions,
            in_flight=TEXTS_IN_FLIGHT,
            requests=len(self._captions),
        )
        self.caption_ms += found.latencies_ms.tolist()
        return found.throughput_per_s


def measure(
    bundle: Bundle,
    captions: Sequence[str],
    *,
    threads: int,
    streams: int,
    settings: ServingSettings,
    work: Path,
    say: Callable[[str], None],
    runtime: str = WHEEL,
    backend_directory: Path | None = None,
) -> Record:
    """Serve `bundle` and measure it and the same towers in this process in turn.

    `runtime` is the runtime of the model repository; `backend_directory` holds backends that the server lacks. `say`
    receives each stage. Raises EngineError where a command fails, ServerError where the server does not start.
    """
    repository = work / f"{bundle.name}-models-{runtime}-{streams}"
    options = {"precision": PRECISION, "threads": threads, "streams": streams, "runtime": runtime}
    words = [f"--{name}={value}" for name, value in options.items()]
    run(*TWINSPIRE, "build", bundle.path, "-o", repository, *words)
    limit_per_s = limit_images_per_s(bundle, PRECISION, threads)
    # On a CPU the container has only onnxruntime's CPU provider.
    providers = "auto" if runtime == WHEEL else Provider.CPU
    local = LocalTowers(bundle, precision=PRECISION, provider=providers, threads=threads, streams=streams)
    server_block = running_server(repository, backend_directory=backend_directory)
    sequences = Tokenizer(bundle.tokenizer_path, bundle.text).encode(captions[: settings.texts])
    with (
        closing(local),
        server_block as server,
        closing(TritonTowers(server.address, bundle, in_flight=IMAGES_IN_FLIGHT, send_images_singly=True)) as remote,
    ):
        say(f"Triton {server.version} ({server.origin}) serves {bundle.name}; in process {local.runtime}")
        pair = _TowerPair(local, remote, sequences, size=bundle.image.size, settings=settings)
        in_turn = partial(interleaved, rounds=settings.rounds, on_round=say)
        before = remote.statistics(Tower.IMAGE)
        say(f"{settings.rounds} rounds: {settings.images} images on each side, {IMAGES_IN_FLIGHT} in flight")
        speed = in_turn({IN_PROCESS: pair.together, THROUGH_TRITON: pair.in_flight})
        counted = remote.statistics(Tower.IMAGE).since(before)
        say(f"{settings.rounds} rounds: {settings.lone_images} images on each side, one in flight")
        lone = in_turn({variant: partial(pair.lone, variant) for variant in (IN_PROCESS, THROUGH_TRITON)})
        say(f"{settings.rounds} rounds: {settings.texts} captions on each side, {TEXTS_IN_FLIGHT} in flight")
        text_before = remote.statistics(Tower.TEXT)
        text_speed = in_turn({IN_PROCESS: pair.captions_together, THROUGH_TRITON: pair.captions_in_flight})
        time.sleep(0.1)  # Triton counts a batch after its response
        text_counted = remote.statistics(Tower.TEXT).since(text_before)
    return Record(
        kind="served",
        parameters={
            **asdict(settings),
            **options,
            "images_in_flight": IMAGES_IN_FLIGHT,
            "texts_in_flight": TEXTS_IN_FLIGHT,
        },
        subject={"bundle": bundle.name, "space": bundle.space, "triton": server.version, "triton_from": server.origin},
        results={
            "limit_images_per_s": limit_per_s,
            "images_in_flight": {
                "images_per_s": {name: series(figures, "median") for name, figures in speed.items()},
                "ratio": paired_ratio(speed[THROUGH_TRITON], speed[IN_PROCESS]),
                "mean_batch_size": counted.mean_batch_size,
            },
            "one_image_in_flight": {
                "latency_ms": {name: series(ms, "p50", "p90", "p95", "p99") for name, ms in pair.lone_ms.items()},
                "added_ms": series(lone[THROUGH_TRITON] - lone[IN_PROCESS], "median"),
            },
            "texts_in_flight": {
                "texts_per_s": {name: series(figures, "median") for name, figures in text_speed.items()},
                "ratio": paired_ratio(text_speed[THROUGH_TRITON], text_speed[IN_PROCESS]),
                "mean_batch_size": text_counted.mean_batch_size,
                "requests": text_counted.requests,
                "executions": text_counted.executions,
                "latency_ms": series(pair.caption_ms, "p50", "p90", "p95", "p99"),
            },
        },
    )


def show(record: Record, console: Console) -> None:
    """Print a record of this benchmark: the theoretical limit first, then a table."""
    found, hardware = record.results, record.hardware
    console.print(
        f"{hardware.cpu_model}, {record.parameters['threads']} threads in {record.parameters['streams']} streams; "
        f"theoretical limit: {found['limit_images_per_s']:.0f} images/s"
    )
    table = Table(
        "load",
        IN_PROCESS,
        THROUGH_TRITON,
        "Triton / in process",
        title=f"{record.subject['bundle']} {record.parameters['precision']}",
    )
    alone = found["one_image_in_flight"]
    for name, in_flight in (("images", IMAGES_IN_FLIGHT), ("texts", TEXTS_IN_FLIGHT)):
        busy = found[f"{name}_in_flight"]
        speeds, ratio = busy[f"{name}_per_s"], busy["ratio"]
        table.add_row(
            f"{in_flight} {name} in flight, {name}/s",
            *(f"{speeds[variant]['median']:.1f}" for variant in (IN_PROCESS, THROUGH_TRITON)),
            f"{ratio['value']:.3f} ({ratio['interval']['low']:.3f} to {ratio['interval']['high']:.3f}), "
            f"mean batch {busy['mean_batch_size']:.1f}",
        )
    table.add_row(
        "one image in flight, median ms",
        *(f"{alone['latency_ms'][name]['p50']:.1f}" for name in (IN_PROCESS, THROUGH_TRITON)),
        f"{alone['added_ms']['median']:+.2f} ms",
    )
    console.print(table)


def main(
    size: SizeOption = "vit-b-32",
    bundle: GivenBundleOption = None,
    work: WorkOption = DEFAULT_WORK,
    vocabulary: VocabularyOption = None,
    captions: CaptionsOption = None,
    threads: ThreadsOption = None,
    streams: Annotated[
        int, typer.Option(help="Streams: parts of a batch computed in parallel, in this process and on the server.")
    ] = 2,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; each measures this process and the server.")
    ] = ServingSettings.rounds,
    images: Annotated[
        int, typer.Option(min=1, help="Images encoded in this process, and on the server, in a round.")
    ] = ServingSettings.images,
    texts: Annotated[
        int, typer.Option(min=1, help="Captions encoded in this process, and on the server, in a round.")
    ] = ServingSettings.texts,
    runtime: Annotated[str, typer.Option(help="wheel or container, as in `twinspire build`.")] = WHEEL,
    backend_directory: Annotated[
        Path | None, typer.Option(help="Folder of Triton backends that the server lacks, such as onnxruntime/.")
    ] = None,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", rounds=1, images=32, texts=64)] = False,
) -> None:
    """Measure int8 engines of a published size in process and through Triton. Progress is printed on standard error.

    Making the model takes minutes the first time; --work keeps it.
    """
    console = Console(stderr=True)
    settings = ServingSettings(rounds=rounds, images=images, texts=texts)
    with exit_on_error(console):
        sentences = read_captions(captions, settings.texts)
        measured, folder = measured_bundle(bundle, size, work, vocabulary=vocabulary)
        record = measure(
            measured,
            sentences,
            threads=thread_count(threads),
            streams=streams,
            settings=settings,
            work=folder,
            say=progress_lines(console),
            runtime=runtime,
            backend_directory=backend_directory,
        )
        show(record, Console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
