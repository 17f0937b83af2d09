"""The command `python -m twinspire_bench.sentences`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from twinspire import Client
from twinspire._codec import encode
from twinspire._cores import thread_count
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.contract import EMBEDDING, INPUT_NAMES
from twinspire.errors import InputError
from twinspire.index import flat
from twinspire.text import Tokenizer
from twinspire.towers.providers import Provider
from twinspire_bench.engines.inputs import quantize_for_openvino
from twinspire_bench.scripts import (
    DEFAULT_WORK,
    TWINSPIRE,
    CaptionsOption,
    JsonFileOption,
    ThreadsOption,
    exit_on_error,
    progress_lines,
    read_captions,
    run,
)
from twinspire_bench.sentences.peers import BATCH, ENGINE, PEERS, STRINGS, OpenVinoInt8, SentenceTask, start_peer
from twinspire_bench.worker import Worker
from twinspire_eval.load import interleaved
from twinspire_eval.records import Record, series
from twinspire_eval.smoke import smoke_option
from twinspire_eval.statistics import paired_ratio, row_cosines
from twinspire_eval.tables import figure, figures_console, figures_table, ratio_cells

_CALIBRATION = 256
_RUNTIMES = ("int8 cpu f32", "int8 openvino bf16", "fp32 openvino bf16")


def make_task(
    checkpoint: Path, work: Path, texts: Sequence[str], *, threads: int, streams: int, say: Callable[[str], None]
) -> SentenceTask:
    """Make the engines that `work` lacks. Raises EngineError where a command fails, InputError for a foreign model."""
    task = SentenceTask(
        peer="",
        comparison="",
        checkpoint=checkpoint,
        bundle=work / "int8",
        plain=work / "plain",
        openvino_int8=work / "openvino" / "text.int8.xml",
        fastembed=work / "fastembed",
        captions=work / "captions.json",
        threads=threads,
        streams=streams,
    )
    work.mkdir(parents=True, exist_ok=True)
    for folder, options in ((work / "fp32", ()), (task.plain, ("--rewrites", "none"))):
        if not folder.exists():
            say(f"exporting {folder.name}")
            run(*TWINSPIRE, "export", checkpoint, "-o", folder, *options)
    if Bundle.open(task.plain).towers != (Tower.TEXT,):
        raise InputError(f"{checkpoint} has an image tower: expected a model of texts alone")
    if not task.bundle.exists():
        say("quantizing")
        run(*TWINSPIRE, "quantize", work / "fp32", "-o", task.bundle)
    task.captions.write_text(json.dumps(list(texts)), encoding="utf-8")
    if not task.openvino_int8.exists():
        say("quantizing the plain engine for OpenVINO")
        bundle = Bundle.open(task.plain)
        ids = Tokenizer(bundle.tokenizer_path, bundle.text).encode(texts[:_CALIBRATION])
        quantize_for_openvino(task.plain_engine(), ids, task.openvino_int8)
    if not task.fastembed.exists():
        _write_for_fastembed(task)
    return task


def _write_for_fastembed(task: SentenceTask) -> None:
    """Write the plain engine with int64 ids, as fastembed gives them, beside the checkpoint's tokenizer."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(task.plain_engine())
    name = INPUT_NAMES[Tower.TEXT]
    for node in model.graph.node:
        node.input[:] = [f"{name}_int32" if value == name else value for value in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}_int32"], to=TensorProto.INT32))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    assert model.graph.output[0].name == EMBEDDING
    task.fastembed.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(task.checkpoint / file, task.fastembed / file)
    onnx.save(model, task.fastembed / "model.onnx")


def measure(
    task: SentenceTask, *, runtimes: Sequence[str], rounds: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Measure both comparisons: texts/s by label, and the best of `runtimes` over each peer, paired by round."""
    results = {}
    for comparison in (STRINGS, ENGINE):
        ours = [f"twinspire {runtime}" for runtime in runtimes]
        labels = [*ours, *(label for label, peer in PEERS.items() if comparison in peer.comparisons)]
        with ExitStack() as stack:
            calls = {}
            for label in labels:
                say(f"{comparison}: starting {label}")
                document = encode(task) | {"peer": label, "comparison": comparison}
                worker = Worker(start_peer, document, label=label)
                calls[label] = stack.enter_context(worker).call
            rates = interleaved(calls, rounds=rounds, on_round=lambda stage, name=comparison: say(f"{name}: {stage}"))  # type: ignore[misc]
        best = max(ours, key=lambda label: float(np.median(rates[label])))
        results[comparison] = {
            "texts_per_s": {label: series(found, "median") for label, found in rates.items()},
            "best": best,
            "times_as_fast_as": {
                label: paired_ratio(rates[best], found) for label, found in rates.items() if label != best
            },
        }
    return results


def closeness(task: SentenceTask) -> dict[str, dict[str, float]]:
    """Return how close the int8 embeddings of all texts are to the plain engine's in fp32, by label.

    `mean_cosine` and `min_cosine` are over the texts; `same_nearest` is the share of texts whose nearest other text is
    the same as with the fp32 embeddings.
    """
    texts = task.texts()

    def ours(bundle: Path, precision: Precision) -> NDArray[np.float32]:
        with Client.local(bundle, precision=precision, provider=Provider.CPU, threads=task.threads) as client:
            return client.encode_texts(texts)

    reference = ours(task.plain, Precision.FP32)  # (N, D)
    nearest = _nearest_others(reference)  # (N,)
    found = {}
    int8 = {"twinspire int8": ours(task.bundle, Precision.INT8), "OpenVINO int8": OpenVinoInt8(task).vectors()}
    for label, vectors in int8.items():
        cosines = row_cosines(vectors, reference)
        found[label] = {
            "mean_cosine": float(cosines.mean()),
            "min_cosine": float(cosines.min()),
            "same_nearest": float((_nearest_others(vectors) == nearest).mean()),
        }
    return found


def _nearest_others(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return for each of N vectors, (N, D), the row of the most similar other one: (N,)."""
    _, rows = flat.nearest(vectors, vectors, 2)
    is_itself = rows[:, 0] == np.arange(len(vectors))  # not where another has the same vector and a lower row
    return np.where(is_itself, rows[:, 1], rows[:, 0])


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint in the layout of sentence-transformers.")],
    work: Annotated[Path, typer.Option(help="Folder in which engines are made and kept.")] = DEFAULT_WORK / "sentences",
    captions: CaptionsOption = None,
    texts: Annotated[int, typer.Option(min=2, help="Captions that are encoded.")] = 2_000,
    runtime: Annotated[
        list[str] | None, typer.Option(help="Runtime of ours: precision, provider and what it computes in; repeatable.")
    ] = None,
    threads: ThreadsOption = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams of twinspire and of OpenVINO.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every peer once.")] = 10,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(texts=64, rounds=1)] = False,
) -> None:
    """Compare a sentence encoder's speed with sentence-transformers, OpenVINO and fastembed."""
    console = Console(stderr=True)
    with exit_on_error(console):
        say = progress_lines(console)
        sentences = read_captions(captions, texts)
        task = make_task(checkpoint, work, sentences, threads=thread_count(threads), streams=streams, say=say)
        results = measure(task, runtimes=runtime or _RUNTIMES, rounds=rounds, say=say)
        say("how close int8 embeddings are to fp32 ones")
        bundle = Bundle.open(task.bundle)
        record = Record(
            kind="sentences",
            parameters={
                "texts": texts,
                "rounds": rounds,
                "threads": task.threads,
                "streams": streams,
                "batch": BATCH,
                "captions": "scenes" if captions is None else captions.name,
            },
            subject={"bundle": bundle.name, "space": bundle.space},
            results={"closeness_to_fp32": closeness(task), "comparisons": results},
        )
        _show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


def _show(record: Record, console: Console) -> None:
    """Print how close the int8 embeddings are, and a table for each comparison."""
    console.print(f"{record.hardware.cpu_model}, {record.parameters['threads']} threads; {record.subject['bundle']}")
    for label, found in record.results["closeness_to_fp32"].items():
        console.print(
            f"{label}: cosine to fp32 {found['mean_cosine']:.4f} on average, {found['min_cosine']:.4f} at least; "
            f"{found['same_nearest']:.1%} of {record.parameters['texts']} texts have the same nearest text"
        )
    for comparison, found in record.results["comparisons"].items():
        table = figures_table(["peer"], ["texts/s", f"{found['best']} / peer", "95% interval"], title=f"\n{comparison}")
        for label, rates in found["texts_per_s"].items():
            ratio = found["times_as_fast_as"].get(label)
            table.add_row(label, figure(rates["median"]), *ratio_cells(ratio))
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
