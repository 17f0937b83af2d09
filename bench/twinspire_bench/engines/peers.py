"""Peers: twinspire and the libraries that it is compared with, each used as its documentation says."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Tower
from twinspire.contract import padded
from twinspire.images import Preprocessor
from twinspire.text import Tokenizer
from twinspire.towers import LocalTowers
from twinspire.towers.auto_selection import processor_flags
from twinspire.towers.batching import one_batch
from twinspire.towers.openvino_support import uses_runtime
from twinspire.towers.providers import InferencePrecision, Provider, unavailable_reason
from twinspire_bench.engines.peer import EngineComparison, EnginePeer, PeerTask, register_peer
from twinspire_bench.scripts import batches_of, openvino_queue, rate

SINGLE_CAPTIONS = 30
"""Captions that a measurement encodes one by one."""


@register_peer
class TwinspireImages(EnginePeer):
    """The bundle's image tower on whole batches, with the provider that `auto` takes here."""

    comparison, label = EngineComparison.IMAGE_TOWER, "twinspire"

    def __init__(self, task: PeerTask) -> None:
        self._towers, self._batches = self.open_tower(task), task.image_batches()

    @staticmethod
    def open_tower(task: PeerTask) -> LocalTowers:
        """Open the engine."""
        return task.tower(Tower.IMAGE)

    def measure(self) -> float:
        return rate(self._towers.encode_images, self._batches)


@register_peer
class TwinspireCpuImages(TwinspireImages):
    """The same tower with onnxruntime's own kernels, where `auto` takes others."""

    label = "twinspire, provider cpu"

    @classmethod
    def is_usable(cls) -> bool:
        return _auto_takes_openvino()

    @staticmethod
    def open_tower(task: PeerTask) -> LocalTowers:
        return task.tower(Tower.IMAGE, Provider.CPU)


@register_peer
class TwinspireBf16Images(TwinspireImages):
    """The same tower with float operators in bf16, which is OpenVINO's own default where the processor has it."""

    label = "twinspire, float operators in bf16"

    @classmethod
    def is_usable(cls) -> bool:
        return _auto_takes_openvino() and _computes_bf16()

    @staticmethod
    def open_tower(task: PeerTask) -> LocalTowers:
        return task.tower(Tower.IMAGE, Provider.OPENVINO, InferencePrecision.BF16)


@register_peer
class OnnxRuntimeImages(EnginePeer):
    """Plain onnxruntime, fp32, on the image tower as exported."""

    comparison, label = EngineComparison.IMAGE_TOWER, "onnxruntime fp32"

    def __init__(self, task: PeerTask) -> None:
        self._session, self._batches = _session(task, Tower.IMAGE), task.image_batches()

    def measure(self) -> float:
        return rate(lambda batch: self._session.run(None, {"image": batch}), self._batches)


@register_peer
class OpenVinoImages(EnginePeer):
    """OpenVINO on batches, one in flight on each stream. The better number of streams counts."""

    comparison, label, stream_counts = EngineComparison.IMAGE_TOWER, "OpenVINO int8", (1, 2)
    packages: ClassVar = {"openvino": ("openvino", "peers")}
    precision: ClassVar[str | None] = None

    def __init__(self, task: PeerTask) -> None:
        self._queue = openvino_queue(
            task.inputs.openvino_int8, threads=task.threads, streams=task.streams, precision=self.precision
        )
        self._batches = task.image_batches()

    def measure(self) -> float:
        return _queue_rate(self._queue, self._batches)


class OpenVinoFp32Images(OpenVinoImages):
    """The same on the fp32 engine as exported, in OpenVINO's default arithmetic; `merged_tokens` alone measures it."""

    def __init__(self, task: PeerTask) -> None:
        self._queue = openvino_queue(task.inputs.plain_engine(Tower.IMAGE), threads=task.threads, streams=task.streams)
        self._batches = task.image_batches()


@register_peer
class OpenVinoF32Images(OpenVinoImages):
    """The same with float operators in float32, as twinspire computes them unless bf16 was requested or measured."""

    label, precision = "OpenVINO int8, float operators in f32", "f32"

    @classmethod
    def is_usable(cls) -> bool:
        return _computes_bf16()


@register_peer
class TwinspireTexts(EnginePeer):
    """The bundle's int8 text tower on all captions in one call, which sorts them and restores their order."""

    comparison, label = EngineComparison.TEXT_TOWER, "twinspire"

    def __init__(self, task: PeerTask) -> None:
        self._towers, self._sequences = task.tower(Tower.TEXT), task.tokenizer().encode(task.captions())

    def measure(self) -> float:
        return rate(self._towers.encode_texts, [self._sequences])


@register_peer
class OnnxRuntimePaddedTexts(EnginePeer):
    """Plain onnxruntime, fp32, on captions padded to the context length, so that any of them take the same time."""

    comparison, label = EngineComparison.TEXT_TOWER, "onnxruntime fp32, padded to the context"

    def __init__(self, task: PeerTask) -> None:
        self._session, tokenizer = _session(task, Tower.TEXT), task.tokenizer()
        ids = _padded(tokenizer, task.captions()[: task.padded_texts], tokenizer.settings.context_length)
        self._batches = batches_of(ids, task.batch)

    def measure(self) -> float:
        return rate(lambda batch: self._session.run(None, {"input_ids": batch}), self._batches)


@register_peer
class OpenVinoBf16Texts(EnginePeer):
    """OpenVINO in bf16 on batches in the given order, padded to their longest; each measurement takes the next part."""

    comparison, label, stream_counts = EngineComparison.TEXT_TOWER, "OpenVINO bf16", (1, 2)
    packages: ClassVar = {"openvino": ("openvino", "peers")}

    def __init__(self, task: PeerTask) -> None:
        engine = task.inputs.plain_engine(Tower.TEXT)
        self._queue = openvino_queue(engine, threads=task.threads, streams=task.streams, precision="bf16")
        self._tokenizer, self._batch = task.tokenizer(), task.batch
        self._parts = cycle(batches_of(task.captions(), task.bf16_texts))

    def measure(self) -> float:
        batches = [_padded(self._tokenizer, captions) for captions in batches_of(next(self._parts), self._batch)]
        return _queue_rate(self._queue, batches)


@register_peer
class TwinspireFolder(EnginePeer):
    """The client on image files: it decodes beside the tower."""

    comparison, label = EngineComparison.FOLDER, "twinspire"

    def __init__(self, task: PeerTask) -> None:
        self._client, self._files = task.client(), task.files()

    def measure(self) -> float:
        return rate(self._client.encode_images, [self._files])


@register_peer
class FolderLimit(EnginePeer):
    """Rate of all threads if decoding and tower shared them without loss: threads / core-seconds an image.

    Measured on one thread: reading, decoding and resizing the files, and the tower on batches.
    """

    comparison, label = EngineComparison.FOLDER, "limit of decoding and tower"

    def __init__(self, task: PeerTask) -> None:
        super().__init__(task)
        self._towers, self._files = replace(task, threads=1, streams=1).tower(Tower.IMAGE), task.files()
        self._preprocessor = Preprocessor(Bundle.open(task.inputs.bundle).image)

    def measure(self) -> float:
        start = time.perf_counter()
        pixels = np.stack([self._preprocessor.one(file) for file in self._files])  # (N, S, S, 3)
        for batch in batches_of(pixels, self.task.batch):
            self._towers.encode_images(batch)
        return self.task.threads * len(self._files) / (time.perf_counter() - start)


@register_peer
class TransformersFolder(EnginePeer):
    """transformers, fp32, with its own image processor, batch by batch."""

    comparison, label = EngineComparison.FOLDER, "transformers fp32"
    packages: ClassVar = {"transformers": ("transformers", "export")}

    def __init__(self, task: PeerTask) -> None:
        self._model = TransformersClip(task.inputs.checkpoint, task.threads)
        self._batches = batches_of(task.files(), task.batch)

    def measure(self) -> float:
        from PIL import Image

        return rate(
            lambda files: self._model.encode_images([Image.open(file).convert("RGB") for file in files]), self._batches
        )


@register_peer
class FastembedFolder(EnginePeer):
    """fastembed, fp32, on the same ONNX model, which lies in a folder as fastembed expects it."""

    comparison, label = EngineComparison.FOLDER, "fastembed fp32"
    packages: ClassVar = {"fastembed": ("fastembed", "peers")}

    def __init__(self, task: PeerTask) -> None:
        from fastembed import ImageEmbedding

        super().__init__(task)
        self._model = ImageEmbedding(
            "Qdrant/clip-ViT-B-32-vision",
            specific_model_path=str(task.inputs.fastembed_onnx.parent),
            threads=task.threads,
            providers=["CPUExecutionProvider"],
        )
        self._files = [str(file) for file in task.files()]

    def measure(self) -> float:
        return rate(lambda files: list(self._model.embed(files, batch_size=self.task.batch)), [self._files])


@register_peer
class TwinspireCaption(EnginePeer):
    """The client on one caption at a time, from string to embedding."""

    comparison, label = EngineComparison.ONE_CAPTION, "twinspire"

    def __init__(self, task: PeerTask) -> None:
        self._client, self._captions = task.client(), cycle(task.captions())

    def measure(self) -> float:
        return _single_rate(lambda caption: self._client.encode_texts([caption]), self._captions)


@register_peer
class TransformersPaddedCaption(EnginePeer):
    """transformers, fp32, on one caption at a time, padded to the context length as CLIP was trained."""

    comparison, label = EngineComparison.ONE_CAPTION, "transformers fp32, padded to the context"
    packages: ClassVar = {"transformers": ("transformers", "export")}
    padded: ClassVar[bool] = True

    def __init__(self, task: PeerTask) -> None:
        self._model = TransformersClip(task.inputs.checkpoint, task.threads)
        self._captions = cycle(task.captions())

    def measure(self) -> float:
        return _single_rate(lambda caption: self._model.encode_texts([caption], padded=self.padded), self._captions)


@register_peer
class TransformersCaption(TransformersPaddedCaption):
    """transformers, fp32, on one caption at a time, not padded."""

    label, padded = "transformers fp32, not padded", False


class TransformersClip:
    """CLIP of transformers, fp32, used as its documentation says."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = CLIPModel.from_pretrained(checkpoint).eval()
        self._processor = CLIPImageProcessor.from_pretrained(checkpoint)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def encode_images(self, images: Sequence[Any]) -> Any:  # noqa: ANN401 - a tensor
        """Encode Pillow images: a tensor (N, D) float32, L2-normalised."""
        with self._torch.inference_mode():
            inputs = self._processor(images=list(images), return_tensors="pt")
            return self._torch.nn.functional.normalize(self._model.get_image_features(**inputs))

    def encode_texts(self, captions: Sequence[str], *, padded: bool) -> Any:  # noqa: ANN401 - a tensor
        """Encode captions, padded to the context length or to the longest: a tensor (N, D) float32, L2-normalised."""
        with self._torch.inference_mode():
            padding = "max_length" if padded else "longest"
            inputs = self._tokenizer(list(captions), padding=padding, truncation=True, return_tensors="pt")
            return self._torch.nn.functional.normalize(self._model.get_text_features(**inputs))


def _computes_bf16() -> bool:
    """Whether OpenVINO computes float operators in bf16 here unless told otherwise."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor_flags())


def _auto_takes_openvino() -> bool:
    return unavailable_reason(Provider.OPENVINO) is None and ("amx_int8" in processor_flags() or uses_runtime())


def _session(task: PeerTask, tower: Tower) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    engine = str(task.inputs.plain_engine(tower))
    return onnxruntime.InferenceSession(engine, options, providers=["CPUExecutionProvider"])


def _queue_rate(queue: Any, batches: Sequence[NDArray[Any]]) -> float:  # noqa: ANN401 - OpenVINO's
    start = time.perf_counter()
    for batch in batches:
        queue.start_async([batch])
    queue.wait_all()
    return sum(map(len, batches)) / (time.perf_counter() - start)


def _single_rate(encode: Callable[[str], object], captions: Iterator[str]) -> float:
    """Return 1 / the median seconds of the next captions, encoded one by one."""
    seconds = []
    for _ in range(SINGLE_CAPTIONS):
        caption = next(captions)
        start = time.perf_counter()
        encode(caption)
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds)


def _padded(tokenizer: Tokenizer, captions: Sequence[str], length: int | None = None) -> NDArray[np.int32]:
    """Return ids (N, L) int32 of captions, padded to `length`, or as little as the model allows."""
    ids, settings = tokenizer.encode(captions), tokenizer.settings
    return one_batch(ids, settings) if length is None else padded(ids, settings.pad_id, length)
