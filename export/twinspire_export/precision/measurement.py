"""Measurement of a candidate on this machine: its embeddings of a data set, and its speed in turn with fp32's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire import Client
from twinspire.bundle import Tower
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
    """Items per second in each round, and those of fp32 on the CPU provider with one stream in the same rounds.

    Empty for a tower that the model does not have.
    """

    images_per_s: tuple[float, ...] = ()
    texts_per_s: tuple[float, ...] = ()
    fp32_images_per_s: tuple[float, ...] = ()
    fp32_texts_per_s: tuple[float, ...] = ()

    def rounds(self, tower: Tower) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the items per second of a tower in each round, and those of fp32."""
        if tower is Tower.IMAGE:
            return self.images_per_s, self.fp32_images_per_s
        return self.texts_per_s, self.fp32_texts_per_s

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers that were measured."""
        return tuple(tower for tower in (Tower.IMAGE, Tower.TEXT) if self.rounds(tower)[0])

    def ratio(self, tower: Tower) -> Ratio:
        """Return a tower's items per second relative to fp32."""
        return paired_ratio(*self.rounds(tower))

    @property
    def overall(self) -> Ratio:
        """The geometric mean of the towers, round by round: twice the images counts as much as twice the texts."""
        rates = np.array([self.rounds(tower) for tower in self.towers])  # (towers, 2, rounds)
        own, fp32 = rates.prod(axis=0) ** (1 / len(rates))
        return paired_ratio(own, fp32)


@dataclass(frozen=True, eq=False)
class SpeedInputs:
    """The inputs that speed is measured on: images (n, S, S, 3) uint8, and token ids of captions.

    None for a tower that the model does not have, or that the data set has no inputs of.
    """

    images: NDArray[np.uint8] | None
    texts: Sequence[NDArray[np.int32]] | None

    @classmethod
    def of(cls, data: CaptionedImages, client: Client) -> SpeedInputs:
        """Take the first of a data set, repeated where there are not enough."""
        images: NDArray[np.uint8] | None = None
        texts: list[NDArray[np.int32]] | None = None
        if data.has_images and Tower.IMAGE in client.bundle.towers:
            prepared = client.preprocess(list(next(iter(data.chunks(IMAGES)))))
            images = prepared[np.arange(IMAGES) % len(prepared)]
        if Tower.TEXT in client.bundle.towers:
            ids = client.tokenize([caption.text for captions in data.captions[:TEXTS] for caption in captions][:TEXTS])
            texts = [ids[position % len(ids)] for position in range(TEXTS)]
        return cls(images, texts)


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

    images, texts = inputs.images, inputs.texts
    measured: dict[str, tuple[float, ...]] = {}
    with closing(this), closing(other):
        if images is not None:
            measured["images_per_s"], measured["fp32_images_per_s"] = rates(
                lambda towers: len(towers.encode_images(images))
            )
        if texts is not None:
            measured["texts_per_s"], measured["fp32_texts_per_s"] = rates(
                lambda towers: len(towers.encode_texts(texts))
            )
    return Throughput(**measured)


def _visit(encode: Callable[[Towers], int], towers: Towers, visit_s: float) -> Callable[[], float]:
    def items_per_s() -> float:
        began, done = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < visit_s or not done:
            done += encode(towers)
        return done / passed

    return items_per_s
