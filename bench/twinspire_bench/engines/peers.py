"""Who is measured: twinspire, and what people use today, each as its own documentation has it.

Each function of `CONTESTANTS` loads what its task names and returns what measures it once: images, texts or captions
a second.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire import Client, LocalTowers
from twinspire.bundle import Bundle, Precision
from twinspire.contract import padded
from twinspire.errors import MissingDependencyError
from twinspire.images import Preprocessor
from twinspire.text import Tokenizer
from twinspire_bench.engines.task import Task

Measure: TypeAlias = Callable[[], float]

LONE_CAPTIONS = 30
"""How many captions are encoded one by one in a measurement."""


_PACKAGES = {
    "onnx": ("onnx", "bench"),
    "nncf": ("nncf", "quantize"),
    "openvino": ("openvino", "peers"),
    "fastembed": ("fastembed", "peers"),
    "transformers": ("transformers", "export"),
}
"""Module to find: the package it comes in, and the extra that brings it."""


def require_peers() -> None:
    """Look for what contestants and their files need. Raises MissingDependencyError for the first that is missing."""
    for module, (package, extra) in _PACKAGES.items():
        if find_spec(module) is None:
            raise MissingDependencyError(package, extra, "Measuring against what is used today")


def twinspire_images(task: Task) -> Measure:
    """The bundle's int8 image tower on whole batches."""
    towers, pictures = _towers(task), np.load(task.path("pictures"))
    return lambda: _rate(towers.encode_images, _batches(pictures, task.batch))


def twinspire_texts(task: Task) -> Measure:
    """The bundle's int8 text tower on all captions in one call, which sorts them inside and restores their order."""
    towers, sequences = _towers(task), _tokenizer(task).encode(_captions(task))

    def measure() -> float:
        start = time.perf_counter()
        towers.encode_texts(sequences)
        return len(sequences) / (time.perf_counter() - start)

    return measure


def twinspire_folder(task: Task) -> Measure:
    """The client on files: decoding beside the tower."""
    files = _files(task)
    client = _client(task)

    def measure() -> float:
        start = time.perf_counter()
        client.encode_images(files)
        return len(files) / (time.perf_counter() - start)

    return measure


def folder_limit(task: Task) -> Measure:
    """What all threads could do if decoding and tower shared them without loss: threads / core-seconds an image.

    Both are measured here on one thread: reading, decoding and resizing a file, and the tower on a batch.
    """
    files, bundle = _files(task), Bundle.open(task.path("bundle"))
    towers = LocalTowers(bundle, precision=Precision.INT8, threads=1, streams=1)
    preprocessor = Preprocessor(bundle.image)

    def measure() -> float:
        start = time.perf_counter()
        pixels = np.stack([preprocessor.one(file) for file in files])  # (N, S, S, 3)
        for batch in _batches(pixels, task.batch):
            towers.encode_images(batch)
        return task.threads * len(files) / (time.perf_counter() - start)

    return measure


def twinspire_caption(task: Task) -> Measure:
    """The client on one caption at a time, from string to embedding."""
    client = _client(task)
    return _lone(lambda caption: client.encode_texts([caption]), _captions(task))


def onnxruntime_images(task: Task) -> Measure:
    """Plain onnxruntime, fp32, on the tower as it was exported."""
    session = _session(task)
    batches = _batches(np.load(task.path("pictures")), task.batch)
    return lambda: _rate(lambda batch: session.run(None, {"image": batch}), batches)


def onnxruntime_padded_texts(task: Task) -> Measure:
    """Plain onnxruntime, fp32, on captions padded to the context length. Their length decides: any part will do."""
    session, tokenizer = _session(task), _tokenizer(task)
    ids = _padded(tokenizer, _captions(task)[: task.part], tokenizer.settings.context_length)  # (N, context)
    return lambda: _rate(lambda batch: session.run(None, {"input_ids": batch}), _batches(ids, task.batch))


def openvino_images(task: Task) -> Measure:
    """OpenVINO on batches, one a stream under way."""
    queue = _openvino(task, {})
    batches = _batches(np.load(task.path("pictures")), task.batch)
    return lambda: _queue_rate(queue, batches)


def openvino_bf16_texts(task: Task) -> Measure:
    """OpenVINO in bf16 on batches in the order given, padded to their longest; each measurement takes the next part."""
    queue = _openvino(task, {"INFERENCE_PRECISION_HINT": "bf16"})
    tokenizer, captions = _tokenizer(task), _captions(task)
    parts = cycle(captions[start : start + task.part] for start in range(0, len(captions), task.part))

    def measure() -> float:
        part = next(parts)
        batches = [_padded(tokenizer, part[at : at + task.batch]) for at in range(0, len(part), task.batch)]
        return _queue_rate(queue, batches)

    return measure


def transformers_folder(task: Task) -> Measure:
    """transformers, fp32, with its own image processor, batch by batch."""
    from PIL import Image

    from twinspire_bench.engines.reference import Reference

    reference, files = Reference(task.path("checkpoint"), task.threads), _files(task)

    def encode(batch: Sequence[Path]) -> None:
        reference.images([Image.open(file).convert("RGB") for file in batch])

    return lambda: _rate(encode, _batches(files, task.batch))


def fastembed_folder(task: Task) -> Measure:
    """fastembed, fp32, on the same ONNX; `engine` is in a folder as it wants one."""
    from fastembed import ImageEmbedding

    model = ImageEmbedding(
        "Qdrant/clip-ViT-B-32-vision",
        specific_model_path=str(task.path("engine").parent),
        threads=task.threads,
        providers=["CPUExecutionProvider"],
    )
    files = [str(file) for file in _files(task)]

    def measure() -> float:
        start = time.perf_counter()
        for _ in model.embed(files, batch_size=task.batch):
            pass
        return len(files) / (time.perf_counter() - start)

    return measure


def transformers_padded_caption(task: Task) -> Measure:
    """transformers, fp32, on one caption at a time, padded to the context length as CLIP was trained."""
    return _transformers_caption(task, padded=True)


def transformers_caption(task: Task) -> Measure:
    """transformers, fp32, on one caption at a time, as long as it is."""
    return _transformers_caption(task, padded=False)


def _transformers_caption(task: Task, *, padded: bool) -> Measure:
    from twinspire_bench.engines.reference import Reference

    reference = Reference(task.path("checkpoint"), task.threads)
    return _lone(lambda caption: reference.texts([caption], padded=padded), _captions(task))


def _towers(task: Task) -> LocalTowers:
    bundle = Bundle.open(task.path("bundle"))
    return LocalTowers(bundle, precision=Precision.INT8, threads=task.threads, streams=task.streams)


def _client(task: Task) -> Client:
    return Client.local(task.path("bundle"), precision=Precision.INT8, threads=task.threads, streams=task.streams)


def _session(task: Task) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    return onnxruntime.InferenceSession(str(task.path("engine")), options, providers=["CPUExecutionProvider"])


def _openvino(task: Task, options: Mapping[str, str]) -> Any:  # noqa: ANN401 - as openvino has it
    import openvino

    core = openvino.Core()
    settings = {
        "NUM_STREAMS": str(task.streams),
        "INFERENCE_NUM_THREADS": str(task.threads),
        "PERFORMANCE_HINT": "THROUGHPUT",
        **options,
    }
    return openvino.AsyncInferQueue(core.compile_model(str(task.path("engine")), "CPU", settings), task.streams)


def _queue_rate(queue: Any, batches: Sequence[NDArray[Any]]) -> float:  # noqa: ANN401
    start = time.perf_counter()
    for batch in batches:
        queue.start_async([batch])
    queue.wait_all()
    return sum(map(len, batches)) / (time.perf_counter() - start)


def _rate(encode: Callable[[Any], object], batches: Sequence[Any]) -> float:
    start = time.perf_counter()
    for batch in batches:
        encode(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def _lone(encode: Callable[[str], object], captions: Sequence[str]) -> Measure:
    """Measure captions one by one, others each time: 1 / the median seconds of one."""
    endless = cycle(captions)

    def measure() -> float:
        seconds = []
        for _ in range(LONE_CAPTIONS):
            caption = next(endless)
            start = time.perf_counter()
            encode(caption)
            seconds.append(time.perf_counter() - start)
        return 1 / statistics.median(seconds)

    return measure


def _batches(items: Any, size: int) -> list[Any]:  # noqa: ANN401 - an array or a list
    return [items[start : start + size] for start in range(0, len(items), size)]


def _tokenizer(task: Task) -> Tokenizer:
    bundle = Bundle.open(task.path("bundle"))
    return Tokenizer(bundle.tokenizer_path, bundle.text)


def _padded(tokenizer: Tokenizer, captions: Sequence[str], length: int | None = None) -> NDArray[np.int32]:
    """Return ids (N, L) int32 of captions, padded to `length` or to the longest."""
    return padded(tokenizer.encode(captions), tokenizer.settings.pad_id, length)


def _captions(task: Task) -> list[str]:
    captions: list[str] = json.loads(task.path("captions").read_text(encoding="utf-8"))
    return captions


def _files(task: Task) -> list[Path]:
    return sorted(task.path("folder").glob("*.jpg"))


CONTESTANTS: Mapping[str, Callable[[Task], Measure]] = MappingProxyType(
    {
        maker.__name__.replace("_", " "): maker
        for maker in (
            twinspire_images,
            twinspire_texts,
            twinspire_folder,
            folder_limit,
            twinspire_caption,
            onnxruntime_images,
            onnxruntime_padded_texts,
            openvino_images,
            openvino_bf16_texts,
            transformers_folder,
            fastembed_folder,
            transformers_padded_caption,
            transformers_caption,
        )
    }
)


def contestant(document: dict[str, Any]) -> Measure:
    """Return what measures the task in `document`, warmed up; a target of `twinspire_bench.worker.Worker`."""
    task = Task.from_json(document)
    measure = CONTESTANTS[task.name](task)
    measure()
    return measure
