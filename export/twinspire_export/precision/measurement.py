"""Measurement of a candidate on this machine: its embeddings of a data set, and its speed in turn with fp32's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire import Client
from twinspire.towers import LocalTowers, OpenVinoOptions, Towers
from twinspire_eval.datasets import CaptionedImages
from twinspire_eval.load import interleaved
from twinspire_eval.recall.benchmark import DatasetEmbeddings, OnProgress, encode_dataset
from twinspire_eval.statistics import Ratio, paired_ratio
from twinspire_export.precision.candidates import PrecisionCandidate, RuntimeConfig

IMAGES = 64
"""Images per call: two full batches, so that every stream has work."""
TEXTS = 256
"""Captions per call, of the data set's own lengths."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Items per second in each round, and those of fp32 on the CPU provider with one stream in the same rounds."""

    images_per_s: tuple[float, ...]
    texts_per_s: tuple[float, ...]
    fp32_images_per_s: tuple[float, ...]
    fp32_texts_per_s: tuple[float, ...]

    @property
    def images(self) -> Ratio:
        """Images per second relative to fp32."""
        return paired_ratio(self.images_per_s, self.fp32_images_per_s)

    @property
    def texts(self) -> Ratio:
        """Texts per second relative to fp32."""
        return paired_ratio(self.texts_per_s, self.fp32_texts_per_s)

    @property
    def overall(self) -> Ratio:
        """The geometric mean of both, round by round: twice the images counts as much as twice the texts."""
        return paired_ratio(
            np.sqrt(np.multiply(self.images_per_s, self.texts_per_s)),
            np.sqrt(np.multiply(self.fp32_images_per_s, self.fp32_texts_per_s)),
        )


@dataclass(frozen=True, eq=False)
class SpeedInputs:
    """The inputs that speed is measured on: images (n, S, S, 3) uint8, and token ids of captions."""

    images: NDArray[np.uint8]
    texts: Sequence[NDArray[np.int32]]

    @classmethod
    def of(cls, data: CaptionedImages, client: Client) -> SpeedInputs:
        """Take the first of a data set, repeated where there are not enough."""
        first = list(next(iter(data.chunks(IMAGES))))
        prepared = client.preprocess(first)
        ids = client.tokenize([caption.text for captions in data.captions[:TEXTS] for caption in captions][:TEXTS])
        return cls(
            prepared[np.arange(IMAGES) % len(prepared)],
            [ids[position % len(ids)] for position in range(TEXTS)],
        )


def open_towers(candidate: PrecisionCandidate, *, threads: int) -> LocalTowers:
    """Open a candidate's engines with nothing left to `auto`. Raises what `LocalTowers` raises."""
    config = candidate.config
    return LocalTowers(
        config.engines.bundle,
        precision=config.engines.precision,
        provider=config.provider,
        threads=threads,
        streams=candidate.streams,
        openvino=OpenVinoOptions(inference_precision=config.inference_precision),
    )


def embed(config: RuntimeConfig, data: CaptionedImages, *, threads: int, on_progress: OnProgress) -> DatasetEmbeddings:
    """Encode a data set. Raises what opening and encoding raise, ImageError for an image that cannot be read."""
    towers = open_towers(PrecisionCandidate(config, 1), threads=threads)
    with Client(config.engines.bundle, towers, threads=threads) as client:
        return encode_dataset({"": client}, data, on_progress=on_progress)[""]


def measure_speed(
    candidate: PrecisionCandidate,
    reference: PrecisionCandidate,
    inputs: SpeedInputs,
    *,
    threads: int,
    rounds: int,
    visit_s: float,
) -> Throughput:
    """Measure a candidate and fp32 in turn, in `rounds` rounds, each for at least `visit_s` seconds for each tower."""
    this = open_towers(candidate, threads=threads)
    # The reference compared with itself is opened once: its ratios are 1.
    other = this if candidate == reference else open_towers(reference, threads=threads)
    opened = {"this": this} if other is this else {"this": this, "fp32": other}

    def rates(encode: Callable[[Towers], int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        found = interleaved({name: _visit(encode, towers, visit_s) for name, towers in opened.items()}, rounds=rounds)
        return tuple(found["this"].tolist()), tuple(found.get("fp32", found["this"]).tolist())

    with closing(this), closing(other):
        images, fp32_images = rates(lambda towers: len(towers.encode_images(inputs.images)))
        texts, fp32_texts = rates(lambda towers: len(towers.encode_texts(inputs.texts)))
    return Throughput(
        images_per_s=images, texts_per_s=texts, fp32_images_per_s=fp32_images, fp32_texts_per_s=fp32_texts
    )


def _visit(encode: Callable[[Towers], int], towers: Towers, visit_s: float) -> Callable[[], float]:
    def items_per_s() -> float:
        began, done = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < visit_s or not done:
            done += encode(towers)
        return done / passed

    return items_per_s
