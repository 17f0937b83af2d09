"""Merged tokens: image towers that merge similar tokens beside OpenVINO's own engines of the whole tower.

`python -m twinspire_bench.merged_tokens --size vit-l-14 --merge-tokens 8 --merge-tokens 12` makes the model with random
weights, quantizes it, merges tokens in its engines and measures images/s in interleaved rounds. Random weights say
nothing of recall: `twinspire precision --merge-tokens` measures that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from twinspire._cores import thread_count
from twinspire.bundle import Precision
from twinspire_bench.engines.inputs import PeerInputs, make_inputs
from twinspire_bench.engines.measure import BATCH, measure_peers
from twinspire_bench.engines.peer import EnginePeer, PeerTask, peer_name, require_peers, with_streams
from twinspire_bench.engines.peers import OpenVinoFp32Images, OpenVinoImages, TwinspireBf16Images, TwinspireImages
from twinspire_bench.scripts import (
    DEFAULT_WORK,
    MERGE_TOKENS,
    JsonFileOption,
    SizeOption,
    ThreadsOption,
    WorkOption,
    exit_on_error,
    progress_lines,
    random_model,
    read_captions,
    run,
)
from twinspire_eval.datasets import open_dataset
from twinspire_eval.records import Record, series
from twinspire_eval.smoke import smoke_option
from twinspire_eval.statistics import paired_ratio
from twinspire_eval.tables import figure, figures_console, figures_table, ratio_cells

_OPENVINO: dict[Precision, type[OpenVinoImages]] = {
    Precision.INT8: OpenVinoImages,
    Precision.FP32: OpenVinoFp32Images,
}
_STREAMS = (1, 2)


def merged_bundles(bundle: Path, precision: Precision, numbers: Sequence[int], folder: Path) -> dict[int, Path]:
    """Return bundles with `numbers` of tokens merged in each block, made where `folder` lacks them."""
    bundles = {number: folder / str(precision) / str(number) for number in numbers}
    for number, path in bundles.items():
        if not path.exists():
            words = ("--precision", precision, "--merge-tokens", str(number))
            run(*MERGE_TOKENS, bundle, "-o", path.parent, *words)
    return bundles


def tasks_of(
    inputs: PeerInputs, precision: Precision, bundles: Mapping[int, Path], *, threads: int
) -> dict[str, PeerTask]:
    """Return the tasks by label: OpenVINO's engine in one and two streams, ours whole, and with tokens merged."""

    def task(peer: type[EnginePeer], engine: Precision, bundle: Path, streams: int) -> PeerTask:
        return PeerTask(
            peer=peer_name(peer),
            inputs=replace(inputs, bundle=bundle),
            threads=threads,
            streams=streams,
            precision=engine,
            batch=BATCH,
        )

    merged = precision.with_merged_tokens
    assert merged is not None  # else no bundle could be made
    ours = {"whole": (precision, inputs.bundle)}
    ours |= {f"r {number}": (merged, bundle) for number, bundle in bundles.items()}
    tasks = {
        openvino_label(streams): task(_OPENVINO[precision], precision, inputs.bundle, streams) for streams in _STREAMS
    }
    for label, (engine, bundle) in ours.items():
        tasks[label] = task(TwinspireImages, engine, bundle, max(_STREAMS))
        if TwinspireBf16Images.is_usable():
            tasks[f"{label}, float operators in bf16"] = task(TwinspireBf16Images, engine, bundle, max(_STREAMS))
    return tasks


def openvino_label(streams: int) -> str:
    """Return the label of OpenVINO's engine of the whole tower."""
    return with_streams("OpenVINO, whole", streams)


def measure(tasks: Mapping[str, PeerTask], *, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure in turn; ours are compared with the better of OpenVINO's numbers of streams in the same round.

    Raises EngineError where a peer cannot run.
    """
    rates, _ = measure_peers(tasks, rounds=rounds, say=say)
    theirs = [openvino_label(streams) for streams in _STREAMS]
    better = np.max([rates[label] for label in theirs], axis=0)
    return {
        "images_per_s": {label: series(found, "median") for label, found in rates.items()},
        "times_as_fast_as_openvino": {
            label: paired_ratio(found, better) for label, found in rates.items() if label not in theirs
        },
    }


def show(record: Record, console: Console) -> None:
    """Print a table for each precision."""
    parameters = record.parameters
    console.print(f"{record.hardware.cpu_model}, {parameters['threads']} threads; {record.subject['bundle']}")
    for precision, found in record.results.items():
        table = figures_table(["image tower"], ["images/s", "times OpenVINO's", "95% interval"], title=f"\n{precision}")
        for label, rates in found["images_per_s"].items():
            ratio = found["times_as_fast_as_openvino"].get(label)
            table.add_row(label, figure(rates["median"]), *ratio_cells(ratio))
        console.print(table)


def main(
    size: SizeOption = "vit-b-16",
    work: WorkOption = DEFAULT_WORK,
    merge_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens to merge in each block; more than one may be given.")
    ] = None,
    precisions: Annotated[
        list[Precision] | None, typer.Option("--precision", help="int8 or fp32; by default both.")
    ] = None,
    data: Annotated[str, typer.Option(help="Data set of images, such as coco:DIR.")] = "scenes:64",
    threads: ThreadsOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every engine once.")] = 5,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", data="scenes:8", rounds=1, merge_tokens=["2"])] = False,
) -> None:
    """Compare image towers that merge tokens with OpenVINO's own engines. Progress is printed on standard error."""
    console = Console(stderr=True)
    with exit_on_error(console):
        say = progress_lines(console)
        require_peers()
        dataset, numbers = open_dataset(data), merge_tokens or [8]
        model = random_model(size, work)
        inputs = make_inputs(model, data=dataset, captions=read_captions(None, 1), say=say)
        results = {}
        for precision in precisions or _OPENVINO:
            bundles = merged_bundles(model.bundle.path, precision, numbers, model.folder / "merged")
            tasks = tasks_of(inputs, precision, bundles, threads=thread_count(threads))
            results[str(precision)] = measure(tasks, rounds=rounds, say=say)
        record = Record(
            kind="merged-tokens",
            parameters={
                "rounds": rounds,
                "threads": thread_count(threads),
                "batch": BATCH,
                "data": dataset.name,
                "merge_tokens": list(numbers),
            },
            subject={"bundle": model.bundle.name, "space": model.bundle.space},
            results=results,
        )
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
