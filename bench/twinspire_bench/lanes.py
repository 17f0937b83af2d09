"""Lanes: what texts wait for while images are indexed on the same server.

`python -m twinspire_bench.lanes` makes ViT-B/32 at full size with random weights, quantizes it, serves it and measures,
in rounds, the latency of single texts that come at random moments, alone and while full batches of images are encoded
as fast as the server can, and the images/s of these, alone and beside the texts.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console

from twinspire._cores import thread_count
from twinspire.bundle import Bundle, Tower
from twinspire.text import Tokenizer
from twinspire.towers import TritonTowers
from twinspire.towers.local import BATCH
from twinspire_bench.load_generator import Generator, Request, requests_of
from twinspire_bench.scripts import (
    DEFAULT_WORK,
    JsonFileOption,
    RunningServer,
    ServedOptions,
    SizeOption,
    ThreadsOption,
    VocabularyOption,
    WorkOption,
    exit_on_error,
    progress_lines,
    random_model,
    read_captions,
)
from twinspire_bench.server_usage import ServerUsage
from twinspire_eval.load import open_loop
from twinspire_eval.records import Record, series
from twinspire_eval.smoke import smoke_option
from twinspire_eval.statistics import paired_ratio, percentiles
from twinspire_eval.tables import figure, figures_console, figures_table

_DEADLINE_S = 30.0
_BATCHES_IN_FLIGHT = 2


@dataclass(frozen=True, kw_only=True)
class LaneSettings:
    """Amount of measurement: each round lasts three times `visit_s`; `texts_per_s` come at random moments."""

    rounds: int = 3
    visit_s: float = 15.0
    texts_per_s: float = 10.0


def measure(
    server: RunningServer,
    bundle: Bundle,
    request: Request,
    *,
    settings: LaneSettings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure texts and images, alone and together; return results for a record."""
    captions = Tokenizer(bundle.tokenizer_path, bundle.text).encode(read_captions(None, 100))
    alone_ms: list[float] = []
    beside_ms: list[float] = []
    alone_per_s, beside_per_s, p99s = [], [], []
    with (
        closing(Generator(server.address, deadline_s=_DEADLINE_S)) as generator,
        closing(TritonTowers(server.address, bundle)) as towers,
        ThreadPoolExecutor(1) as pool,
    ):

        def texts(seed: int) -> list[float]:
            found = open_loop(
                lambda ids: towers.encode_texts([ids]),
                captions,
                rate_per_s=settings.texts_per_s,
                seed=seed,
                duration_s=settings.visit_s,
            )
            return list(map(float, found.latencies_ms))

        def images() -> float:
            return generator.closed_loop(request, in_flight=_BATCHES_IN_FLIGHT, seconds=settings.visit_s)

        towers.encode_texts(captions)
        usage = ServerUsage(server.pid)
        for turn in range(settings.rounds):
            say(f"round {turn + 1} of {settings.rounds}")
            alone = texts(turn)
            alone_per_s.append(images())
            running = pool.submit(images)
            beside = texts(turn)
            beside_per_s.append(running.result())
            p99s.append((percentiles(alone).p99, percentiles(beside).p99))
            alone_ms += alone
            beside_ms += beside
        cores = usage.lap()
    return {
        "texts": {
            "alone_ms": series(alone_ms, "p50", "p95", "p99"),
            "beside_images_ms": series(beside_ms, "p50", "p95", "p99"),
            "p99_ratio": percentiles(beside_ms).p99 / percentiles(alone_ms).p99,
            "p99_ms_of_rounds": p99s,
        },
        "images": {
            "alone_per_s": series(alone_per_s, "median"),
            "beside_texts_per_s": series(beside_per_s, "median"),
            "ratio": paired_ratio(beside_per_s, alone_per_s),
        },
        "cores": cores,
    }


def measure_bundle(served: ServedOptions, *, settings: LaneSettings, say: Callable[[str], None]) -> Record:
    """Serve a bundle and measure its lanes. Raises EngineError and ServerError as `ServedOptions.serve`."""
    rows = BATCH[Tower.IMAGE]
    found = requests_of(served.bundle, rows, deadline_s=_DEADLINE_S, has_bytes=False).values()
    (request,) = [request for request in found if request.rows == rows]
    with served.serve() as server:
        results = measure(server, served.bundle, request, settings=settings, say=say)
    return served.record("lanes", server, asdict(settings), results)


def show(record: Record, console: Console) -> None:
    """Print a record of this benchmark."""
    texts, images = record.results["texts"], record.results["images"]
    table = figures_table(
        ["load"], ["alone", "together", "ratio"], title=f"{record.subject['bundle']} {record.parameters['precision']}"
    )
    for name in ("p50", "p99"):
        alone, together = texts["alone_ms"][name], texts["beside_images_ms"][name]
        table.add_row(f"single texts, {name} ms", figure(alone), figure(together), f"{together / alone:.2f}")
    speeds = (images["alone_per_s"]["median"], images["beside_texts_per_s"]["median"])
    table.add_row("images/s", *map(figure, speeds), f"{images['ratio']['value']:.2f}")
    console.print(table)


def main(
    size: SizeOption = "vit-b-32",
    work: WorkOption = DEFAULT_WORK,
    vocabulary: VocabularyOption = None,
    threads: ThreadsOption = None,
    streams: Annotated[int, typer.Option(help="Streams: parts of a batch computed in parallel.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = LaneSettings.rounds,
    visit: Annotated[float, typer.Option(help="Seconds of each of a round's three parts.")] = LaneSettings.visit_s,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", rounds=1, visit=2.0)] = False,
) -> None:
    """Encode single texts beside a bulk load of images. Progress is printed on standard error."""
    console = Console(stderr=True)
    with exit_on_error(console):
        model = random_model(size, work, vocabulary=vocabulary)
        record = measure_bundle(
            ServedOptions(bundle=model.bundle, threads=thread_count(threads), streams=streams, work=model.folder),
            settings=LaneSettings(rounds=rounds, visit_s=visit),
            say=progress_lines(console),
        )
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
