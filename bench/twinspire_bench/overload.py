"""Overload: an open loop of image requests at a multiple of what a server can answer.

`python -m twinspire_bench.overload` makes ViT-B/32 at full size with random weights, quantizes it, serves it and
measures, for requests of one image, of a list of images, and of a list of JPEG files:

- capacity: images/s of a closed loop with two full batches in flight;
- goodput: images/s that are answered while requests come at `--factor` times the capacity, with the latency of answers
  and of refusals, and the server's memory;
- recovery: images/s of the closed loop two seconds after the last request of the open loop;
- what callers that went away cost: the time until a request is answered when a full queue has just been cancelled.

The load generator shares the processors with the server. It sends the same bytes again and again, without protobuf's or
twinspire's own work; `generator_cores` and `server_cores` say what each used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from twinspire._cores import thread_count
from twinspire.bundle import Tower
from twinspire.errors import ServerError
from twinspire.towers.local import BATCH
from twinspire_bench.load_generator import LONGEST_S, Generator, Request, requests_of
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
)
from twinspire_bench.server_usage import ServerUsage
from twinspire_eval.load import arrivals
from twinspire_eval.records import Record
from twinspire_eval.smoke import smoke_option
from twinspire_eval.statistics import percentiles
from twinspire_eval.tables import figure, figures_console, figures_table

_SETTLED_S = 2.0


@dataclass(frozen=True, kw_only=True)
class OverloadSettings:
    """Amount of load: `factor` times the capacity for `seconds`; lists of `rows` images; `deadline_s` of a request."""

    factor: float = 10.0
    seconds: float = 30.0
    closed_s: float = 5.0
    rows: int = 16
    deadline_s: float = 30.0


def measure(
    server: RunningServer, request: Request, *, full_batch: int, settings: OverloadSettings, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure one kind of request on a server that computes nothing else. Return results for a record."""
    with closing(Generator(server.address, deadline_s=settings.deadline_s)) as generator:
        in_flight = max(2, 2 * full_batch // request.rows)
        generator.closed_loop(request, in_flight=in_flight, seconds=settings.closed_s / 4)
        usage = ServerUsage(server.pid)
        capacity = generator.closed_loop(request, in_flight=in_flight, seconds=settings.closed_s)
        closed = usage.lap()
        say(f"capacity {capacity:.0f} images/s; {settings.factor:g} times that for {settings.seconds:g} s")
        found = _open_loop(generator, request, capacity, settings, usage)
        time.sleep(_SETTLED_S)
        recovered = generator.closed_loop(request, in_flight=in_flight, seconds=settings.closed_s)
    return {
        "rows": request.rows,
        "request_bytes": len(request.content),
        "capacity_images_per_s": capacity,
        "capacity_cores": closed,
        **found,
        "goodput_of_capacity": found["goodput_images_per_s"] / capacity,
        "recovered_of_capacity": recovered / capacity,
        **measure_cancelled(server.address, request, full_batch=full_batch),
    }


def _open_loop(
    generator: Generator, request: Request, capacity: float, settings: OverloadSettings, usage: ServerUsage
) -> dict[str, Any]:
    schedule = arrivals(settings.factor * capacity / request.rows, seed=0, duration_s=settings.seconds)
    done: SimpleQueue[tuple[str, float, float]] = SimpleQueue()
    start_s = time.perf_counter()

    def note(future: Any, due_s: float) -> None:  # noqa: ANN401 - grpc.Future
        done.put((future.code().name, due_s, time.perf_counter() - start_s))

    megabytes: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            megabytes.append(usage.memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    sent_late_ms = []
    for due_s in schedule:
        early_s = due_s - (time.perf_counter() - start_s)
        if early_s > 0:
            time.sleep(early_s)
        sent_late_ms.append(-1000 * min(0.0, early_s))
        generator.send(request).add_done_callback(lambda future, due_s=due_s: note(future, due_s))
    sending_s = time.perf_counter() - start_s
    cores = usage.lap()
    ended.set()
    watcher.join()
    outcomes: list[tuple[str, float, float]] = []
    try:
        while len(outcomes) < len(schedule):
            outcomes.append(done.get(timeout=LONGEST_S))
    except Empty:
        raise ServerError(f"{len(schedule) - len(outcomes)} requests were never answered nor refused") from None
    # Without the first second, in which the queue fills.
    answered = [(due_s, at_s) for code, due_s, at_s in outcomes if code == "OK" and 1 < at_s <= sending_s]
    refused_ms = [1000 * (at_s - due_s) for code, due_s, at_s in outcomes if code == "UNAVAILABLE"]
    third = max(1, len(megabytes) // 3)
    return {
        "offered_of_capacity": len(schedule) * request.rows / sending_s / capacity,
        "goodput_images_per_s": len(answered) * request.rows / (sending_s - 1),
        "answered_ms": _quantiles([1000 * (at_s - due_s) for due_s, at_s in answered]),
        "refused_ms": _quantiles(refused_ms),
        "sent_late_ms": _quantiles(sent_late_ms),
        "outcomes": {name: sum(code == name for code, _, _ in outcomes) for name in {code for code, _, _ in outcomes}},
        "memory_mb": {
            "first_third": float(np.mean(megabytes[:third])),
            "last_third": float(np.mean(megabytes[-third:])),
        }
        if megabytes
        else None,
        "overload_cores": cores,
    }


def measure_cancelled(address: str, request: Request, *, full_batch: int) -> dict[str, float]:
    """Return how long one request takes behind eight full batches that wait, and behind as many that were cancelled."""
    seconds = {}
    for name in ("behind_waiting_ms", "behind_cancelled_ms"):
        with closing(Generator(address, deadline_s=LONGEST_S)) as generator:
            gone = Generator(address, deadline_s=LONGEST_S)
            futures = [gone.send(request) for _ in range(8 * full_batch // request.rows)]
            time.sleep(0.3)  # until they have arrived
            if name == "behind_cancelled_ms":
                for future in futures:
                    future.cancel()
            start_s = time.perf_counter()
            generator.send(request).result()
            seconds[name] = 1000 * (time.perf_counter() - start_s)
            gone.close()
            time.sleep(1)
    return seconds


def _quantiles(milliseconds: Sequence[float]) -> dict[str, float] | None:
    return asdict(percentiles(milliseconds)) if milliseconds else None


def measure_bundle(served: ServedOptions, *, settings: OverloadSettings, say: Callable[[str], None]) -> Record:
    """Serve a bundle and measure each kind of request. Raises EngineError and ServerError as `ServedOptions.serve`."""
    results: dict[str, Any] = {}
    with served.serve() as server:
        has_bytes = (served.repository / f"{served.bundle.name}_image_bytes").exists()
        requests = requests_of(served.bundle, settings.rows, deadline_s=settings.deadline_s, has_bytes=has_bytes)
        for name, request in requests.items():
            say(f"requests of {name}, {len(request.content):,} bytes")
            results[name] = measure(server, request, full_batch=BATCH[Tower.IMAGE], settings=settings, say=say)
    return served.record("overload", server, asdict(settings), results)


def show(record: Record, console: Console) -> None:
    """Print a record of this benchmark."""
    factor = record.parameters["factor"]
    table = figures_table(
        ["requests of"],
        [
            "capacity, images/s",
            "offered",
            "goodput",
            "refused p50 / p99, ms",
            "memory, MB",
            "2 s after",
            "cancelled, ms",
        ],
        title=f"{record.subject['bundle']} {record.parameters['precision']}, {factor:g} times the capacity",
    )
    for name, found in record.results.items():
        refused, memory = found["refused_ms"], found["memory_mb"]
        table.add_row(
            name,
            figure(found["capacity_images_per_s"]),
            f"{found['offered_of_capacity']:.1f}",
            f"{found['goodput_of_capacity']:.2f}",
            "-" if refused is None else f"{refused['p50']:.0f} / {refused['p99']:.0f}",
            "-" if memory is None else f"{memory['first_third']:.0f} to {memory['last_third']:.0f}",
            f"{found['recovered_of_capacity']:.2f}",
            f"{found['behind_waiting_ms']:.0f} to {found['behind_cancelled_ms']:.0f}",
        )
    console.print(table)


def main(
    size: SizeOption = "vit-b-32",
    work: WorkOption = DEFAULT_WORK,
    vocabulary: VocabularyOption = None,
    threads: ThreadsOption = None,
    streams: Annotated[int, typer.Option(help="Streams: parts of a batch computed in parallel.")] = 2,
    factor: Annotated[float, typer.Option(help="Offered load as a multiple of the capacity.")] = 10.0,
    seconds: Annotated[float, typer.Option(help="Seconds of the open loop.")] = 30.0,
    rows: Annotated[int, typer.Option(min=1, max=32, help="Images of a list.")] = OverloadSettings.rows,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", seconds=2.0, factor=3.0)] = False,
) -> None:
    """Offer more images than a server can encode. Progress is printed on standard error."""
    console = Console(stderr=True)
    with exit_on_error(console):
        model = random_model(size, work, vocabulary=vocabulary)
        record = measure_bundle(
            ServedOptions(bundle=model.bundle, threads=thread_count(threads), streams=streams, work=model.folder),
            settings=OverloadSettings(factor=factor, seconds=seconds, rows=rows),
            say=progress_lines(console),
        )
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
