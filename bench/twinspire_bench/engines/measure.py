"""Measurement of the peers in interleaved rounds, its record and its tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import twinspire_bench.engines.peers  # noqa: F401 - registers them
from twinspire._codec import encode
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError
from twinspire.text import Tokenizer
from twinspire.towers import LocalTowers
from twinspire_bench.engines.inputs import PeerInputs
from twinspire_bench.engines.peer import EngineComparison, PeerTask, peer_tasks, start_peer
from twinspire_bench.scripts import limit_images_per_s
from twinspire_bench.worker import Worker
from twinspire_eval.datasets import CaptionedImages
from twinspire_eval.load import interleaved
from twinspire_eval.records import Record, series
from twinspire_eval.statistics import paired_ratio, row_cosines
from twinspire_eval.tables import figure, figures_table, ratio_cells

if TYPE_CHECKING:
    from rich.console import Console

OURS = "twinspire"
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Amount of measurement. The slow text peers encode only `padded_texts` or `bf16_texts` captions a round."""

    rounds: int = 10
    padded_texts: int = 96
    bf16_texts: int = 512


def check_names(only: Collection[str]) -> None:
    """Raise InputError for a name in `only` that is no comparison's."""
    unknown = sorted(set(only) - set(EngineComparison))
    if unknown:
        raise InputError(f"unknown comparison {', '.join(unknown)}: expected some of {', '.join(EngineComparison)}")


def comparisons(
    inputs: PeerInputs, *, threads: int, streams: int, settings: EngineSettings
) -> dict[EngineComparison, dict[str, PeerTask]]:
    """Return the tasks of the peers of each comparison, by label."""
    task = PeerTask(
        inputs=inputs,
        threads=threads,
        streams=streams,
        batch=BATCH,
        padded_texts=settings.padded_texts,
        bf16_texts=settings.bf16_texts,
    )
    return {comparison: peer_tasks(comparison, task) for comparison in EngineComparison}


def start_worker(label: str, task: PeerTask) -> Worker:
    """Start the process of a peer. Raises EngineError where the peer cannot run."""
    return Worker(start_peer, encode(task), label=label)


def measure_peers(
    tasks: Mapping[str, PeerTask], *, rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, int]]:
    """Measure peers in turn, in each round; return the rates and the peak memory in bytes of each, by label.

    `say` receives each stage. Raises EngineError where a peer cannot run.
    """
    with ExitStack() as stack:
        workers = {}
        for label, task in tasks.items():
            say(f"starting {label}")
            workers[label] = stack.enter_context(start_worker(label, task))
        measures = {label: worker.call for label, worker in workers.items()}
        rates = interleaved(measures, rounds=rounds, on_round=say)
        return rates, {label: worker.peak_memory_bytes for label, worker in workers.items()}


def run_comparison(
    comparison: EngineComparison, tasks: Mapping[str, PeerTask], *, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure peers in turn: each one's rates and memory, and the speed of twinspire relative to it, paired by round.

    `say` receives each stage. Raises EngineError where a peer cannot run.
    """
    title = comparison.replace("_", " ")
    rates, memory = measure_peers(tasks, rounds=rounds, say=lambda stage: say(f"{title}: {stage}"))
    return {
        "peak_memory_bytes": memory,
        comparison.unit: {label: series(found, "median") for label, found in rates.items()},
        "times_as_fast_as": {
            label: paired_ratio(rates[OURS], found) for label, found in rates.items() if label != OURS
        },
    }


def measure(
    inputs: PeerInputs,
    *,
    data: CaptionedImages,
    threads: int,
    streams: int,
    settings: EngineSettings,
    say: Callable[[str], None],
    only: Collection[str] = (),
) -> Record:
    """Run all comparisons, or `only` the named ones. `say` receives each stage.

    Raises InputError for an unknown name.
    """
    check_names(only)
    bundle = Bundle.open(inputs.bundle)
    chosen = comparisons(inputs, threads=threads, streams=streams, settings=settings)
    results = {
        str(comparison): run_comparison(comparison, tasks, rounds=settings.rounds, say=say)
        for comparison, tasks in chosen.items()
        if not only or comparison in only
    }
    say("cosines of the int8 engines to the fp32 ones")
    return Record(
        kind="engines",
        parameters={
            **asdict(settings),
            "texts": len(json.loads(inputs.captions.read_text(encoding="utf-8"))),
            "threads": threads,
            "streams": streams,
            "batch": BATCH,
            "data": data.name,
        },
        subject={"bundle": bundle.name, "space": bundle.space},
        results={
            "limit_images_per_s": limit_images_per_s(bundle, Precision.INT8, threads),
            "cosine_to_fp32": cosines(bundle, data, np.load(inputs.images), threads=threads),
            "comparisons": results,
        },
    )


def cosines(
    bundle: Bundle, data: CaptionedImages, images: NDArray[np.uint8], *, threads: int
) -> dict[str, dict[str, Any]]:
    """Return the mean and minimum cosine of int8 to fp32 embeddings of `images` (N, S, S, 3) and all captions."""
    sequences = Tokenizer(bundle.tokenizer_path, bundle.text).encode(
        [caption.text for captions in data.captions for caption in captions]
    )
    embeddings = []
    for precision in (Precision.FP32, Precision.INT8):
        towers = LocalTowers(bundle, precision=precision, threads=threads)
        embeddings.append((towers.encode_images(images), towers.encode_texts(sequences)))
        towers.close()
    found = {}
    for tower, reference, int8 in zip((Tower.IMAGE, Tower.TEXT), *embeddings, strict=True):
        cosine = row_cosines(int8, reference)  # (N,)
        found[str(tower)] = {"samples": len(cosine), "mean": float(cosine.mean()), "min": float(cosine.min())}
    return found


def show(record: Record, console: Console) -> None:
    """Print a record of this benchmark: the theoretical limit first, then a table for each comparison."""
    results, parameters = record.results, record.parameters
    console.print(
        f"{record.hardware.cpu_model}, {parameters['threads']} threads; {record.subject['bundle']} int8 in "
        f"{parameters['streams']} streams; theoretical limit: {results['limit_images_per_s']:.0f} images/s"
    )
    for tower, cosine in results["cosine_to_fp32"].items():
        console.print(
            f"{tower}: cosine of int8 to fp32, mean {cosine['mean']:.5f}, minimum {cosine['min']:.5f} "
            f"({cosine['samples']} of {parameters['data']})"
        )
    for name, comparison in results["comparisons"].items():
        unit = EngineComparison(name).unit
        table = figures_table(
            ["peer"],
            [unit.replace("_per_s", "/s"), f"{OURS} / peer", "95% interval", "MiB"],
            title=f"\n{name.replace('_', ' ')}",
        )
        for label, rates in comparison[unit].items():
            ratio = comparison["times_as_fast_as"].get(label)
            memory = figure(comparison["peak_memory_bytes"][label] / 2**20)
            table.add_row(label, figure(rates["median"]), *ratio_cells(ratio), memory)
        console.print(table)
