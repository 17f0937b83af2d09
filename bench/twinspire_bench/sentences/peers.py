"""Peers: twinspire and the libraries that sentence encoders are run with, each used as its documentation says."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twinspire import Client
from twinspire._codec import decode
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.text import Tokenizer
from twinspire.towers import InferencePrecision, OpenVinoOptions
from twinspire.towers.batching import InputBatch, fitted_batches
from twinspire_bench.scripts import openvino_queue, rate

BATCH = 32
"""Texts of a peer's run, the default of sentence-transformers."""
STRINGS, ENGINE = "strings", "engine"


@dataclass(frozen=True, kw_only=True)
class SentenceTask:
    """What a worker process measures: the peer, as NAME or `twinspire RUNTIME`, in one comparison, and its files."""

    peer: str
    comparison: str
    checkpoint: Path
    bundle: Path
    plain: Path
    openvino_int8: Path
    fastembed: Path
    captions: Path
    threads: int
    streams: int

    def texts(self) -> list[str]:
        """Read the captions."""
        found: list[str] = json.loads(self.captions.read_text(encoding="utf-8"))
        return found

    def plain_engine(self) -> Path:
        """Return the file of the plain engine."""
        return Bundle.open(self.plain).engine(Tower.TEXT, Precision.FP32)

    def batches(self, texts: Sequence[str]) -> list[InputBatch]:
        """Tokenize and pad texts as the plain engine takes them, sorted by length: an array (n, L) int32 each."""
        bundle = Bundle.open(self.plain)
        ids = Tokenizer(bundle.tokenizer_path, bundle.text).encode(texts)
        return list(fitted_batches(ids, bundle.text, batch=BATCH))


class SentencePeer(ABC):
    """A library that encodes texts; its constructor loads what it needs. `comparisons` are those it takes part in."""

    comparisons: ClassVar[tuple[str, ...]] = (STRINGS, ENGINE)

    def __init__(self, task: SentenceTask) -> None:
        self.task, self.texts = task, task.texts()

    @abstractmethod
    def measure(self) -> float:
        """Encode all texts once and return the texts/s."""


class Twinspire(SentencePeer):
    """The bundle's engine in one runtime, on all texts in one call."""

    def __init__(self, task: SentenceTask) -> None:
        super().__init__(task)
        precision, provider, computed = task.peer.split()[1:]
        self._client = Client.local(
            task.bundle,
            precision=precision,
            provider=provider,
            threads=task.threads,
            streams=task.streams,
            openvino=OpenVinoOptions(inference_precision=InferencePrecision(computed)),
        )
        self._ids = self._client.tokenize(self.texts)

    def measure(self) -> float:
        if self.task.comparison == STRINGS:
            return rate(self._client.encode_texts, [self.texts])
        return rate(self._client.towers.encode_texts, [self._ids])


class SentenceTransformers(SentencePeer):
    """sentence-transformers, fp32, which sorts texts by length itself."""

    comparisons = (STRINGS,)

    def __init__(self, task: SentenceTask) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        super().__init__(task)
        torch.set_num_threads(task.threads)
        self._model = SentenceTransformer(str(task.checkpoint), device="cpu", local_files_only=True)

    def measure(self) -> float:
        return rate(lambda texts: self._model.encode(texts, batch_size=BATCH, show_progress_bar=False), [self.texts])


class OpenVino(SentencePeer):
    """OpenVINO on sorted batches, one in flight on each stream; token ids by the tokenizers library."""

    precision: ClassVar[str]

    @abstractmethod
    def engine(self) -> Path:
        """Return the file of the engine."""

    def __init__(self, task: SentenceTask) -> None:
        super().__init__(task)
        self._queue = openvino_queue(
            self.engine(), threads=task.threads, streams=task.streams, precision=self.precision
        )
        self._batches = task.batches(self.texts)

    def measure(self) -> float:
        return rate(self._encode, [self.texts])

    def _encode(self, texts: Sequence[str]) -> None:
        for batch in self.task.batches(texts) if self.task.comparison == STRINGS else self._batches:
            self._queue.start_async(batch.arrays, batch.positions)
        self._queue.wait_all()

    def vectors(self) -> NDArray[np.float32]:
        """Return the embeddings of all texts, (N, D), L2-normalised."""
        vectors = np.empty((len(self.texts), Bundle.open(self.task.plain).dim), np.float32)

        def keep(request: Any, positions: NDArray[np.int64]) -> None:  # noqa: ANN401 - openvino.InferRequest
            vectors[positions] = request.get_output_tensor(0).data

        self._queue.set_callback(keep)
        self._encode(self.texts)
        return vectors


class OpenVinoBf16(OpenVino):
    """The plain engine in bf16."""

    precision = "bf16"

    def engine(self) -> Path:
        return self.task.plain_engine()


class OpenVinoInt8(OpenVino):
    """The plain engine quantized by NNCF as it documents it for transformers."""

    precision = "f32"

    def engine(self) -> Path:
        return self.task.openvino_int8


class Fastembed(SentencePeer):
    """fastembed, fp32, on the plain engine; texts sorted by length, which it does not do itself."""

    comparisons = (STRINGS,)

    def __init__(self, task: SentenceTask) -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        super().__init__(task)
        bundle = Bundle.open(task.plain)
        TextEmbedding.add_custom_model(
            model="bench/sentences",
            pooling=PoolingType.DISABLED,
            normalization=False,
            sources=ModelSource(hf="bench/sentences"),
            dim=bundle.dim,
            model_file="model.onnx",
        )
        self._model = TextEmbedding(
            "bench/sentences",
            specific_model_path=str(task.fastembed),
            threads=task.threads,
            providers=["CPUExecutionProvider"],
        )
        self._sorted = sorted(self.texts, key=len)

    def measure(self) -> float:
        return rate(lambda texts: list(self._model.embed(texts, batch_size=BATCH)), [self._sorted])


PEERS: Mapping[str, type[SentencePeer]] = {
    "sentence-transformers fp32": SentenceTransformers,
    "OpenVINO bf16": OpenVinoBf16,
    "OpenVINO int8": OpenVinoInt8,
    "fastembed fp32": Fastembed,
}


def start_peer(document: dict[str, Any]) -> Callable[[], float]:
    """Load the peer of a task and warm it up; return its `measure`. Runs in a worker process."""
    task = decode(SentenceTask, document, "task")
    peer = PEERS.get(task.peer, Twinspire)(task)
    peer.measure()
    return peer.measure
