"""What scaled decoding of JPEG files changes for a model: pixels, embeddings and recall, on one data set."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire import Client
from twinspire.bundle import DecodeMode, Tower
from twinspire.errors import ImageError
from twinspire.images import ImageItem, Preprocessor
from twinspire_eval.datasets import CaptionedImages
from twinspire_eval.recall.benchmark import UNDETERMINED, DatasetEmbeddings, OnProgress
from twinspire_eval.statistics import row_cosines

_CHUNK = 16
"""Images at a time: the files of photographs take megabytes each."""


@dataclass(frozen=True, eq=False)
class DecodingComparison:
    """A data set's embeddings with exact and with scaled decoding, by the same engines, and what differs.

    `reduced` of the `images` have other pixels: those are the JPEG files that are large enough. `mean_difference` and
    `max_difference` are of a pixel's channel of those, from 0 to 255, `cosines` (`reduced`,) are between both
    embeddings of each. `seconds` is how long decoding and resizing of all images took.
    """

    embeddings: dict[DecodeMode, DatasetEmbeddings]
    images: int
    reduced: int
    mean_difference: float
    max_difference: int
    cosines: NDArray[np.float64]
    seconds: dict[DecodeMode, float]

    @property
    def speed(self) -> float:
        """How many times as many files a second scaled decoding takes."""
        return self.seconds[DecodeMode.EXACT] / self.seconds[DecodeMode.SCALED]


def compare_decoding(
    client: Client, data: CaptionedImages, *, threads: int | None = None, on_progress: OnProgress | None = None
) -> DecodingComparison:
    """Encode a data set with exact and with scaled decoding, each image from the same bytes.

    Raises ImageError with the position in the data set and the id for an image that cannot be used, BundleError for a
    model without an image or a text tower, and EngineError.
    """
    client.bundle.manifest.tower(Tower.IMAGE)
    report = on_progress or (lambda *_: None)
    preparing = {mode: Preprocessor(client.bundle.image, decode=mode, threads=threads) for mode in DecodeMode}
    parts: dict[DecodeMode, list[NDArray[np.float32]]] = {mode: [] for mode in DecodeMode}
    seconds = dict.fromkeys(DecodeMode, 0.0)
    means, largest, changed, done = list[float](), 0, list[NDArray[np.bool_]](), 0
    for turn, chunk in enumerate(data.chunks(_CHUNK)):
        report("images", done, len(data))
        items = list(chunk)  # generated images are drawn once
        pixels: dict[DecodeMode, NDArray[np.uint8]] = {}
        for mode in list(DecodeMode)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            pixels[mode] = _prepared(preparing[mode], items, data, done)
            seconds[mode] += time.perf_counter() - began
            parts[mode].append(client.towers.encode_images(pixels[mode]))
        gaps = np.abs(pixels[DecodeMode.EXACT].astype(np.int16) - pixels[DecodeMode.SCALED])  # (n, H, W, 3)
        own = gaps.any(axis=(1, 2, 3))
        changed.append(own)
        means += [float(gap.mean()) for gap in gaps[own]]
        largest = max(largest, int(gaps.max(initial=0)))
        done += len(items)
    report("images", done, len(data))
    exact, scaled = (np.concatenate(parts[mode]) for mode in (DecodeMode.EXACT, DecodeMode.SCALED))
    places = np.concatenate(changed)
    texts = {lang or UNDETERMINED: client.encode_texts(data.captions_in(lang).texts) for lang in data.languages}
    return DecodingComparison(
        embeddings={
            DecodeMode.EXACT: DatasetEmbeddings(exact, texts),
            DecodeMode.SCALED: DatasetEmbeddings(scaled, texts),
        },
        images=len(data),
        reduced=int(places.sum()),
        mean_difference=float(np.mean(means)) if means else 0.0,
        max_difference=largest,
        cosines=row_cosines(scaled[places], exact[places]),
        seconds=seconds,
    )


def _prepared(preprocessor: Preprocessor, items: list[ImageItem], data: CaptionedImages, done: int) -> Any:  # noqa: ANN401
    try:
        return preprocessor.many(items)
    except ImageError as error:
        position = done + error.position
        raise ImageError(position, f"{data.ids[position]}: {error.name}", error.cause) from error
